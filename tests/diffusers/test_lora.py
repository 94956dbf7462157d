"""LoRA beside quantised weights: what it adds is what float64 says, in every naming, several at once, taken away and fused."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qtransformers.archs.diffusion import SPECS
from qtransformers.diffusers import adapters, dequantized, fuse_lora, load_lora, load_transformer, remove_lora, set_lora
from qtransformers.errors import ConfigError, LoadError, ModelNotFoundError, UnsupportedError
from qtransformers.torch import QuantConv2d, QuantLinear
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


CONFIGS = {
    "alpha": ({"r": 4, "lora_alpha": 8}, 2.0),
    "rslora": ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
    "end of a name": ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"attn.to_q": 16}}, 4.0),
    "whole name": ({"r": 4, "lora_alpha": 8, "alpha_pattern": {f"^{Q}": 2}}, 0.5),
    "another layer": ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"0.to_q": 16}}, 2.0),
    "rank by pattern": ({"r": 2, "lora_alpha": 8, "rank_pattern": {"to_q": 4}, "use_rslora": True}, 8 / math.sqrt(4)),
    "nothing": ({}, 1.0),
}  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("kept", ["metadata", "folder", "file in its folder", "bare names"])
def test_its_scale_is_that_of_its_config(config, kept, file, tmp_path):
    told, scale = CONFIGS[config]
    down, up = pair(256, 256)
    prefix, component = {"metadata": ("transformer.", "transformer."), "bare names": ("", "unet.")}.get(kept, ("base_model.model.", ""))  # fmt: skip
    state = {f"{prefix}{Q}.lora_A.weight": down, f"{prefix}{Q}.lora_B.weight": up}
    path = tmp_path / "adapter_model.safetensors"
    if component:
        text = json.dumps({f"{component}{key}": value for key, value in told.items()} | {"text_encoder.lora_alpha": 99})
        save_file(state, path, metadata={"lora_adapter_metadata": text})
    else:
        save_file(state, path)
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "bias": "none", **told}))
    model = loaded(file)
    load_lora(model, tmp_path if kept == "folder" else path, "a")
    assert torch.allclose(model.get_submodule(Q).up, scale * up)


def test_an_alpha_of_the_state_counts_before_that_of_the_config(file, tmp_path):
    down, up = pair(256, 256)
    state = {f"{Q}.lora_A.weight": down, f"{Q}.lora_B.weight": up, f"{Q}.alpha": torch.tensor(2.0)}
    save_file(state, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": '{"transformer.lora_alpha": 8}'})
    model = loaded(file)
    load_lora(model, tmp_path / "a.safetensors")
    assert torch.allclose(model.get_submodule(Q).up, 0.5 * up)


@pytest.mark.parametrize(
    "text, kind, message",
    [
        ('{"transformer.use_dora": true}', UnsupportedError, "use_dora"),
        ('{"transformer.bias": "all"}', UnsupportedError, "bias 'all' is not supported"),
        ('{"transformer.lora_alpha": "x"}', LoadError, "lora_alpha is 'x'; expected a number"),
        ('{"transformer.alpha_pattern": 5}', LoadError, "alpha_pattern is 5; expected an object"),
        ('{"transformer.r": 8, "transformer.lora_alpha": 8}', LoadError, "has rank 8, but its factors 4"),
        ("[1]", LoadError, "lora_adapter_metadata is '\\[1\\]'; expected a JSON object"),
        ("{", LoadError, "expected a JSON object"),
    ],
)  # fmt: skip
def test_configs_that_are_wrong_or_of_no_plain_lora(text, kind, message, file, tmp_path):
    down, up = pair(256, 256)
    state = {f"{Q}.lora_A.weight": down, f"{Q}.lora_B.weight": up}
    save_file(state, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": text})
    model = loaded(file)
    with pytest.raises(kind, match=message):
        load_lora(model, tmp_path / "a.safetensors")
    assert type(model.get_submodule(Q)) is QuantLinear


def test_where_there_is_no_adapter(file, tmp_path):
    model = loaded(file)
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(
            ModelNotFoundError, match=r"no adapter there; expected a \.safetensors file, or a folder with"
        ):
            load_lora(model, path)
    (tmp_path / "none.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(LoadError, match="cannot be read as safetensors"):
        load_lora(model, tmp_path / "none.safetensors")


ORIGINAL = "single_layers.0.attn.w1q"


@pytest.mark.parametrize("first, second", [(f"transformer.{Q}", Q), (f"lora_transformer_{Q.replace('.', '_')}", Q), (ORIGINAL, Q), (f"diffusion_model.{ORIGINAL}", ORIGINAL)])  # fmt: skip
def test_two_names_for_one_layer_are_refused(first, second, file):
    model = loaded(file)
    state = {}
    for i, name in enumerate((first, second)):
        down, up = pair(256, 256, seed=i)
        state |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    with pytest.raises(LoadError, match="Which of them counts cannot be known"):
        load_lora(model, state)
    assert type(model.get_submodule(Q)) is QuantLinear


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
        ({f"{Q}.lora_A.weight": torch.ones(4, 256), f"{Q}.lora_B.weight": torch.ones(256, 4), f"{Q}.alpha": torch.ones(2)}, LoadError, "alpha of 2 values"),
        ({f"{Q}.lora_A.weight": torch.ones(4, 256, dtype=torch.int8), f"{Q}.lora_B.weight": torch.ones(256, 4)}, UnsupportedError, "lora_A.weight holds int8; expected floats"),
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


SD1 = next(case for case in CASES if case.id == "sd1")


def with_unet(folder):
    path = write(folder / "m.gguf", "sd1", model_of(SD1).state_dict())
    return lambda: load_transformer(path, {name: SD1.config[name] for name in SD1.told}, accuracy="exact")


def test_convolutions_of_single_pixels_are_products(tmp_path):
    """As kohya writes proj_in and proj_out of Stable Diffusion 1."""
    unet = with_unet(tmp_path)
    model, by_hand = unet(), unet()
    stem = "down_blocks.0.attentions.0.proj_in"
    layer = model.get_submodule(stem)
    assert type(layer) is QuantConv2d
    n = layer.in_channels
    down, up = pair(n, n)
    plain = run(model, SD1)
    name = f"lora_unet_{stem.replace('.', '_')}"
    state = {f"{name}.lora_down.weight": down[..., None, None], f"{name}.lora_up.weight": up[..., None, None], f"{name}.alpha": torch.tensor(8.0)}  # fmt: skip
    load_lora(model, state, "a")
    beside = run(model, SD1)
    conv = torch.nn.Conv2d(n, n, 1).requires_grad_(False)
    conv.weight.copy_(layer.dequantize().double() + (2.0 * up.double() @ down.double())[..., None, None])
    conv.bias.copy_(layer.bias)
    by_hand.down_blocks[0].attentions[0].proj_in = conv
    assert error(beside, run(by_hand, SD1)) < 1e-5
    assert error(beside, plain) > 1e-3
    assert fuse_lora(model) == n * n * 4
    assert type(model.get_submodule(stem)) is QuantConv2d
    assert error(run(model, SD1), beside) < 1e-5
    load_lora(by_hand, state, "b")  # a plain convolution too
    twice, before = run(by_hand, SD1), conv.weight.clone()
    assert error(twice, beside) > 1e-3
    fuse_lora(by_hand)
    assert error(run(by_hand, SD1), twice) < 1e-5
    assert torch.equal(conv.weight, before), "the layer it was made of is untouched"


@pytest.mark.parametrize("name", ["lora_unet_conv_in", "input_blocks.0.0", "down_blocks.0.resnets.0.conv1"])
def test_other_convolutions_are_named_so(name, tmp_path):
    state = {f"{name}.lora_down.weight": torch.ones(4, 4, 3, 3), f"{name}.lora_up.weight": torch.ones(64, 4, 1, 1)}
    with pytest.raises(UnsupportedError, match="is a convolution of 3x3 pixels, whose LoRA is not supported"):
        load_lora(with_unet(tmp_path)(), state)


@pytest.mark.parametrize("wrong", [5, None, [1], b"x", object()], ids=lambda x: type(x).__name__)
def test_arguments_of_another_type_are_named(wrong, file):
    model = loaded(file)
    calls = {
        "model=": (lambda: load_lora(wrong, {}), lambda: set_lora(wrong, {}), lambda: remove_lora(wrong), lambda: fuse_lora(wrong), lambda: adapters(wrong), lambda: dequantized(wrong)),
        "path=": (lambda: load_lora(model, wrong),),
        "path has": (lambda: load_lora(model, {"a": wrong}),),
        "weights=": (lambda: set_lora(model, wrong),),
    }  # fmt: skip
    if wrong is not None:
        calls["name="] = (lambda: load_lora(model, {}, wrong),)
        calls["no adapter"] = (lambda: remove_lora(model, wrong),)
        calls["type is"] = (lambda: fuse_lora(model, wrong),)
    for text, tried in calls.items():
        for call in tried:
            with pytest.raises(ConfigError, match=text):
                call()
    assert not adapters(model)
