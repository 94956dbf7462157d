"""LoRA beside quantised weights: what it adds is what float64 says, in every naming, several at once, taken away and fused."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qtransformers.archs.diffusion import SPECS
from qtransformers.diffusers import adapters, fuse_lora, load_lora, load_transformer, remove_lora, set_lora
from qtransformers.errors import ConfigError, LoadError, UnsupportedError
from qtransformers.torch import QuantLinear
from tiny_diffusion.cases import CASES
from tiny_diffusion.files import error, model_of, original_layout, run, settings, write

AURA = next(case for case in CASES if case.id == "aura")
TOLD = {name: AURA.config[name] for name in AURA.told}
Q = "single_transformer_blocks.0.attn.to_q"
MOD = "norm_out.linear"  # in the original layout its rows are swapped


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    model = model_of(AURA)
    return write(tmp_path_factory.mktemp("lora") / "m.gguf", "aura", model.state_dict(), "Q8_0")


def loaded(file):
    return load_transformer(file, TOLD, accuracy="exact")


def pair(out, width, rank=4, seed=3):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rank, width, generator=g) * 0.2, torch.randn(out, rank, generator=g) * 0.2


def by_hand(file, deltas):
    """The picture of a model whose decoded weights have these matrices added."""
    model = loaded(file)
    for path, delta in deltas.items():
        layer = model.get_submodule(path)
        plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.weight.data = (layer.dequantize().double() + delta.double()).float()
        if layer.bias is not None:
            plain.bias.data = layer.bias.data
        parent, _, own = path.rpartition(".")
        setattr(model.get_submodule(parent), own, plain)
    return run(model, AURA)


NAMINGS = {
    "diffusers": (f"transformer.{Q}.lora_A.weight", f"transformer.{Q}.lora_B.weight", None),
    "peft": (f"base_model.model.{Q}.lora_A.weight", f"base_model.model.{Q}.lora_B.weight", None),
    "kohya": (f"lora_unet_{Q.replace('.', '_')}.lora_down.weight", f"lora_unet_{Q.replace('.', '_')}.lora_up.weight", f"lora_unet_{Q.replace('.', '_')}.alpha"),
    "original": ("diffusion_model.single_layers.0.attn.w1q.lora_A.weight", "diffusion_model.single_layers.0.attn.w1q.lora_B.weight", None),
}  # fmt: skip


@pytest.mark.parametrize("naming", NAMINGS)
def test_it_adds_what_the_paper_says(naming, file, tmp_path):
    down_name, up_name, alpha_name = NAMINGS[naming]
    down, up = pair(256, 256)
    state = {down_name: down, up_name: up} | ({alpha_name: torch.tensor(2.0)} if alpha_name else {})
    save_file(state, tmp_path / "style.safetensors")
    model = loaded(file)
    before = run(model, AURA)
    blocks = model.get_submodule(Q).weight.blocks.clone()
    assert load_lora(model, tmp_path / "style.safetensors", weight=0.7) == "style"
    scale = 0.7 * (2.0 / 4 if alpha_name else 1.0)
    after = run(model, AURA)
    assert error(after, by_hand(file, {Q: scale * up @ down})) < 1e-5
    assert error(after, before) > 1e-3
    assert torch.equal(model.get_submodule(Q).weight.blocks, blocks), "quantised weights stay as they are"


def test_rows_of_the_original_layout_go_where_they_belong(file):
    down, up = pair(512, 256)
    model = loaded(file)
    load_lora(model, {"modF.1.lora_A.weight": down, "modF.1.lora_B.weight": up})
    assert error(run(model, AURA), by_hand(file, {MOD: torch.cat((up[256:], up[:256])) @ down})) < 1e-5


def test_several_at_once_are_weighed_and_taken_away(file):
    (d1, u1), (d2, u2) = pair(256, 256, 4, 1), pair(256, 256, 2, 2)
    model = loaded(file)
    plain = run(model, AURA)
    load_lora(model, {f"{Q}.lora_A.weight": d1, f"{Q}.lora_B.weight": u1}, "a")
    load_lora(model, {f"{Q}.lora_A.weight": d2, f"{Q}.lora_B.weight": u2}, "b", 0.5)
    assert error(run(model, AURA), by_hand(file, {Q: u1 @ d1 + 0.5 * u2 @ d2})) < 1e-5
    set_lora(model, {"b": 2})
    assert adapters(model) == {"a": 0.0, "b": 2}
    assert error(run(model, AURA), by_hand(file, {Q: 2 * u2 @ d2})) < 1e-5
    remove_lora(model, "b")
    assert torch.equal(run(model, AURA), plain)
    remove_lora(model)
    assert type(model.get_submodule(Q)) is QuantLinear
    assert adapters(model) == {}


def test_fusing_requantises_and_only_on_request(file):
    down, up = pair(256, 256)
    model = loaded(file)
    load_lora(model, {f"{Q}.lora_A.weight": down, f"{Q}.lora_B.weight": up})
    beside = run(model, AURA)
    assert fuse_lora(model) == 256 * 256 // 32 * 34
    layer = model.get_submodule(Q)
    assert type(layer) is QuantLinear
    assert layer.weight.quant_type.name == "Q8_0"
    assert 0 < error(run(model, AURA), beside) < 0.01
    assert adapters(model) == {}


@pytest.mark.parametrize(
    "state, kind, text",
    [
        ({"x.lora_A.weight": torch.ones(4, 256), "x.lora_B.weight": torch.ones(256, 4)}, LoadError, "x is no linear layer"),
        ({f"{Q}.lora_A.weight": torch.ones(4, 255), f"{Q}.lora_B.weight": torch.ones(256, 4)}, LoadError, r"expected \[r, 256\] and \[256, r\]"),
        ({f"{Q}.lora_A.weight": torch.ones(4, 256)}, LoadError, "has no up matrix"),
        ({f"{Q}.lora_A.weight": torch.full((4, 256), float("nan")), f"{Q}.lora_B.weight": torch.ones(256, 4)}, LoadError, "not finite"),
        ({f"{Q}.dora_scale": torch.ones(256)}, UnsupportedError, "DoRA"),
        ({f"{Q}.nonsense": torch.ones(256)}, UnsupportedError, "no part of a LoRA"),
        ({}, LoadError, "no LoRA for the diffusion transformer"),
        ({"lora_te1_x.lora_down.weight": torch.ones(1, 1)}, LoadError, "no LoRA for the diffusion transformer"),
    ],
)  # fmt: skip
def test_what_does_not_fit_changes_nothing(state, kind, text, file):
    model = loaded(file)
    good = {"norm_out.linear.lora_A.weight": torch.ones(1, 256), "norm_out.linear.lora_B.weight": torch.ones(512, 1)}
    with pytest.raises(kind, match=text):
        load_lora(model, {**(good if state and "te1" not in str(state) else {}), **state})
    assert type(model.get_submodule(MOD)) is QuantLinear
    assert adapters(model) == {}


def test_names_and_weights_are_checked(file):
    down, up = pair(256, 256)
    model = loaded(file)
    state = {f"{Q}.lora_A.weight": down, f"{Q}.lora_B.weight": up}
    load_lora(model, state, "a")
    with pytest.raises(ConfigError, match="has an adapter 'a' already"):
        load_lora(model, state, "a")
    for weight in (float("nan"), float("inf"), "1", None, True):
        with pytest.raises(ConfigError, match="the weight of adapter"):
            set_lora(model, {"a": weight})
    with pytest.raises(ConfigError, match="no adapter 'c'; it has a"):
        set_lora(model, {"c": 1})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_joined_matrix_is_shared_out_by_rows(case, tmp_path):
    """One adapter for every linear layer of the original layout is the same as one for every layer of the class."""
    if not case.original:
        pytest.skip("published in the layout of diffusers")
    model = model_of(case)
    path = write(tmp_path / "m.gguf", case.id, model.state_dict())
    told = {name: case.config[name] for name in case.told} or None
    ours, theirs = (load_transformer(path, told, accuracy="exact") for _ in range(2))
    linear = {f"{p}.weight": m for p, m in ours.named_modules() if isinstance(m, QuantLinear)}
    shapes = {name: torch.empty(m.out_features, m.in_features) for name, m in linear.items()}
    g = torch.Generator().manual_seed(5)
    there = original_layout(SPECS[case.id], settings(case, model), {n: torch.zeros_like(v) for n, v in shapes.items()})
    downs = {n: torch.randn(2, v.shape[1], generator=g) * 0.05 for n, v in there.items() if v.ndim == 2}
    ups = {n: torch.randn(len(v), 2, generator=g) * 0.05 for n, v in there.items() if v.ndim == 2}
    state = {f"{n.removesuffix('.weight')}.lora_A.weight": v for n, v in downs.items()}
    load_lora(ours, state | {f"{n.removesuffix('.weight')}.lora_B.weight": v for n, v in ups.items()}, "a")
    split = {}
    for d in SPECS[case.id].declared(settings(case, model)):
        if d.name in linear and d.origin:
            up = ups[d.origin.name]
            stem = d.name.removesuffix(".weight")
            split[f"{stem}.lora_A.weight"] = downs[d.origin.name]
            split[f"{stem}.lora_B.weight"] = torch.cat([up[a:b] for a, b in d.origin.ranges]) if d.origin.ranges else up
    load_lora(theirs, split, "a")
    assert split
    assert torch.equal(run(ours, case), run(theirs, case))
    assert error(run(ours, case), run(model, case)) > 1e-4
    assert np.isfinite(run(ours, case).numpy()).all()
