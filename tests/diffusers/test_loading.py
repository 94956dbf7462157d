"""Whole tiny models through GGUF files: the pictures of diffusers' class, whatever the layout, and reports of what is wrong."""

import re

import pytest
import torch

from qtransformers.archs.diffusion import SPECS
from qtransformers.convert import convert
from qtransformers.diffusers import load_transformer
from qtransformers.errors import ConfigError, LoadError, UnsupportedError
from qtransformers.torch import QuantWeight
from tiny_diffusion.cases import CASES
from tiny_diffusion.files import error, model_of, original_layout, run, settings, write

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
AURA = next(case for case in CASES if case.id == "aura")


def state_of(case, layout):
    model = model_of(case)
    if layout == "diffusers":
        return model, model.state_dict()
    if not case.original:
        pytest.skip("published in the layout of diffusers")
    return model, original_layout(SPECS[case.id], settings(case, model), model.state_dict())


def told(case):
    return {name: case.config[name] for name in case.told} or None


def mapped(model, path):
    """Whether all blocks of a model, views of rows too, lie in the map of its file."""
    with open("/proc/self/maps") as maps:
        areas = [range(*(int(x, 16) for x in line.split()[0].split("-"))) for line in maps if str(path) in line]
    blocks = [b for name, b in model.named_buffers() if name.endswith(".blocks")]
    return bool(blocks) and all(any(b.data_ptr() in a and b.data_ptr() + b.nbytes <= a.stop for a in areas) for b in blocks)  # fmt: skip


@cases
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_f32_files_give_the_same_picture(case, layout, tmp_path):
    model, state = state_of(case, layout)
    path = write(tmp_path / "m.gguf", case.id, state)
    ours = load_transformer(path, told(case), accuracy="exact")
    assert error(run(ours, case), run(model, case)) < 1e-5
    for name, value in settings(case, model).items():
        if value is not None and ours.gguf.plan.config.origins[name] != "default":
            assert ours.config[name] == (tuple(value) if isinstance(ours.config[name], tuple) else value), name


@cases
def test_every_weight_and_bias_takes_part_in_the_picture(case):
    """Else a picture that is the same would say nothing of it; the last text layers of some models do nothing."""
    model = model_of(case).requires_grad_(True)
    picture = model(**case.inputs(model.config), return_dict=False)[0]
    (picture[0] if isinstance(picture, list) else picture).square().sum().backward()
    used = {}
    for name, p in model.named_parameters():
        row = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        used[row] = used.get(row, False) or (p.grad is not None and bool(p.grad.any()))
    assert [row for row, takes_part in used.items() if not takes_part and not re.match(case.idle, row)] == []


@cases
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_quantised_files_are_off_by_what_their_type_costs(case, layout, tmp_path):
    model, state = state_of(case, layout)
    wanted = run(model, case)
    for type, bound in case.quantised.items():
        ours = load_transformer(write(tmp_path / f"{type}.gguf", case.id, state, type), told(case), accuracy="exact")
        weights = [m for m in ours.modules() if isinstance(m, QuantWeight) and m.quant_type.name == type]
        assert weights, "nothing was quantised"
        assert mapped(ours, tmp_path / f"{type}.gguf")
        off = error(run(ours, case), wanted)
        assert 1e-4 < off < bound, f"{type}: {off}"


@cases
def test_files_that_name_no_architecture_are_known_by_their_tensors(case, tmp_path):
    model, state = state_of(case, "diffusers")
    named = {f"model.diffusion_model.{name}": values for name, values in state.items()}
    ours = load_transformer(write(tmp_path / "m.gguf", "pig", named), told(case), accuracy="exact")
    assert type(ours) is type(model)


@cases
def test_settings_that_no_tensor_shows_are_asked_for_by_name(case, tmp_path):
    if not case.told:
        pytest.skip("its tensors show all settings")
    _, state = state_of(case, "diffusers")
    with pytest.raises(ConfigError) as e:
        load_transformer(write(tmp_path / "m.gguf", case.id, state))
    assert all(name in str(e.value) for name in case.told)


def test_a_bias_that_the_spec_forbids_is_an_error(tmp_path):
    _, state = state_of(AURA, "diffusers")
    state["single_transformer_blocks.1.attn.to_q.bias"] = torch.ones(256)
    with pytest.raises(LoadError, match=r"single_transformer_blocks\.1\.attn\.to_q\.bias is in the file, but AuraFlow has no bias"):  # fmt: skip
        load_transformer(write(tmp_path / "m.gguf", "aura", state), told(AURA))


def test_a_bias_that_is_required_and_absent_is_an_error(tmp_path):
    _, state = state_of(AURA, "original")
    del state["init_x_linear.bias"]
    with pytest.raises(LoadError, match=r"init_x_linear\.bias is missing; expected \[256\]"):
        load_transformer(write(tmp_path / "m.gguf", "aura", state), told(AURA))


def test_the_config_of_another_model_is_an_error(tmp_path):
    _, state = state_of(AURA, "diffusers")
    path = write(tmp_path / "m.gguf", "aura", state)
    with pytest.raises(LoadError, match=r"num_mmdit_layers is 4, but the tensors of .* say 2"):
        load_transformer(path, {**told(AURA), "num_mmdit_layers": 4})
    with pytest.raises(LoadError, match="_class_name is 'FluxTransformer2DModel'"):
        load_transformer(path, {**told(AURA), "_class_name": "FluxTransformer2DModel"})


def test_an_unknown_file_lists_the_nearest_architectures(tmp_path):
    state = {"context_embedder.weight": torch.ones(8, 8), "register_tokens": torch.ones(1, 8)}
    with pytest.raises(UnsupportedError, match=r"Nearest: AuraFlow \(diffusers layout\) would need time_step_proj"):
        load_transformer(write(tmp_path / "m.gguf", "x", state))


@pytest.mark.parametrize("prefix", ["foo.", "model.diffusion_model.model."])
def test_names_behind_a_prefix_of_others_are_known(prefix, tmp_path):
    _, state = state_of(AURA, "diffusers")
    path = write(tmp_path / "m.gguf", "aura", {prefix + name: values for name, values in state.items()})
    with pytest.raises(
        UnsupportedError,
        match=r"Nearest: AuraFlow \(diffusers layout\) would need names without '[a-z.]+' before them[;.]?",
    ):
        load_transformer(path)


def test_a_config_that_contradicts_what_the_file_says_of_itself(tmp_path):
    """No tensor shows how many heads AuraFlow has."""
    _, state = state_of(AURA, "diffusers")
    plain = write(tmp_path / "m.gguf", "aura", state)
    said = convert(plain, tmp_path / "said.gguf", "F32", config=told(AURA))
    heads = {"num_attention_heads": told(AURA)["num_attention_heads"] * 2, "attention_head_dim": told(AURA)["attention_head_dim"] // 2}  # fmt: skip
    match = r"config=: num_attention_heads is \d+, but .*said\.gguf: qtransformers\.config says \d+\. They belong to different models"
    with pytest.raises(LoadError, match=match):
        load_transformer(said, heads)
    with pytest.raises(LoadError, match=match):
        convert(said, tmp_path / "n.gguf", "Q8_0", config=heads)
    assert not (tmp_path / "n.gguf").exists()
    load_transformer(said, told(AURA))


def test_a_size_of_the_config_is_named_where_it_does_not_fit(tmp_path):
    _, state = state_of(AURA, "diffusers")
    path = write(tmp_path / "m.gguf", "aura", state)
    with pytest.raises(
        LoadError, match=r"pos_embed\.proj\.weight is .*, by .*in_channels 16 of config=\..*pass the config of this one"
    ):
        load_transformer(path, {**told(AURA), "in_channels": 16})
