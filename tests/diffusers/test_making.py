"""Files made of tiny models in either layout: the values of the original, the layouts of their spec, and what they say of themselves."""

import copy
import re

import pytest
import torch

from qtransformers.convert import convert
from qtransformers.diffusers import load_transformer, save_gguf
from qtransformers.errors import ConfigError
from tiny_diffusion.cases import CASES
from tiny_diffusion.checkpoints import LAYOUTS, checkpoint, layouts, tensors
from tiny_diffusion.files import error, model_of, run, settings

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
AURA = next(case for case in CASES if case.id == "aura")


def told(case, layout):
    """What comes with a folder of diffusers, and has to be given with a file of the original layout."""
    return dict(case.config) if layout == "original" else None


def plain(config):
    return {
        n: tuple(v) if isinstance(v, list) else v for n, v in config.items() if v is not None and not n.startswith("_")
    }


@cases
@pytest.mark.parametrize("of", LAYOUTS)
def test_all_values_arrive_in_the_other_layout(case, of, tmp_path):
    if of not in layouts(case):
        pytest.skip("published in the layout of diffusers")
    to = next((other for other in layouts(case) if other != of), of)
    model, path = checkpoint(case, of, tmp_path)
    made = convert(path, tmp_path / "m.gguf", "F32", layout=to, config=told(case, of))
    ours = load_transformer(made, accuracy="exact")  # without a config: the file says all
    assert ours.gguf.plan.layout == to
    assert plain(ours.config).items() >= plain(settings(case, model)).items()
    assert error(run(ours, case), run(model, case)) < 1e-5
    again = convert(made, tmp_path / "again.gguf", "F32", layout=of)
    back = convert(again, tmp_path / "back.gguf", "F32", layout=to)
    assert tensors(made) == tensors(back)


@pytest.mark.parametrize("id", ["aura", "flux", "wan", "sd1"])
def test_a_live_plain_model_is_saved(id, tmp_path):
    case = next(case for case in CASES if case.id == id)
    model, path = checkpoint(case, "diffusers", tmp_path)
    made = save_gguf(model, tmp_path / "q.gguf", "Q4_K_M")
    assert tensors(made) == tensors(convert(path, tmp_path / "n.gguf", "Q4_K_M"))
    off = error(run(load_transformer(made, accuracy="exact"), case), run(model, case))
    assert 1e-4 < off < case.quantised["Q4_K"]


@pytest.mark.parametrize("id", ["aura", "flux", "sd3", "lumina2"])
def test_a_loaded_model_keeps_its_blocks(id, tmp_path):
    case = next(case for case in CASES if case.id == id)
    _, path = checkpoint(case, "diffusers", tmp_path)
    files = {to: convert(path, tmp_path / f"{to}.gguf", "Q4_K_S", layout=to) for to in LAYOUTS}
    for of, file in files.items():
        model = load_transformer(file)
        for to, other in files.items():
            assert tensors(save_gguf(model, tmp_path / f"{of}-{to}.gguf", layout=to)) == tensors(other)


def test_a_parameter_that_was_changed_is_saved_as_it_is(tmp_path):
    _, path = checkpoint(AURA, "diffusers", tmp_path)
    model = load_transformer(convert(path, tmp_path / "m.gguf", "Q4_0"))
    model.time_step_proj.linear_1.bias.data += 1.0
    again = load_transformer(save_gguf(model, tmp_path / "n.gguf"))
    assert torch.equal(again.time_step_proj.linear_1.bias, model.time_step_proj.linear_1.bias)
    assert torch.equal(run(again, AURA), run(model, AURA))


def test_models_whose_layers_were_replaced_are_refused(tmp_path):
    _, path = checkpoint(AURA, "diffusers", tmp_path)
    model = load_transformer(convert(path, tmp_path / "m.gguf", "Q4_0"))
    with pytest.raises(ConfigError, match="is the file the model reads"):
        save_gguf(model, tmp_path / "m.gguf", overwrite=True)
    model.proj_out = torch.nn.Identity()
    with pytest.raises(ConfigError, match=r"in place of proj_out\.weight"):
        save_gguf(model, tmp_path / "n.gguf")
    assert not (tmp_path / "n.gguf").exists()


def bias_of_its_own(model):
    model.single_transformer_blocks[0].attn.to_v.bias = torch.nn.Parameter(torch.ones(256))


def block_copied(model):
    model.single_transformer_blocks.append(copy.deepcopy(model.single_transformer_blocks[0]))


def block_twice(model):
    model.single_transformer_blocks.append(model.single_transformer_blocks[0])


def parameter(model):
    model.register_parameter("gain", torch.nn.Parameter(torch.ones(2)))


@pytest.mark.parametrize(
    "add, name",
    [(bias_of_its_own, "single_transformer_blocks.0.attn.to_v.bias"), (block_copied, "single_transformer_blocks.2.attn.to_k.weight"),
     (block_twice, "single_transformer_blocks.2.attn.to_k.weight"), (parameter, "gain")],
)  # fmt: skip
def test_models_that_were_added_to_are_refused(add, name, tmp_path):
    _, path = checkpoint(AURA, "diffusers", tmp_path)
    model = load_transformer(convert(path, tmp_path / "m.gguf", "Q4_0"))
    add(model)
    with pytest.raises(ConfigError, match=rf"not loaded with \(.*{re.escape(name)}.*m\.gguf has no tensors"):
        save_gguf(model, tmp_path / "n.gguf")
    assert not (tmp_path / "n.gguf").exists()


@pytest.mark.parametrize("id", ["aura", "flux"])
def test_mixtures_go_where_error_is(id, tmp_path):
    case = next(case for case in CASES if case.id == id)
    model = model_of(case)
    wanted, found = run(model, case), {}
    for type in ("Q4_K_S", "Q4_K_M", "Q5_K_S"):
        made = save_gguf(model, tmp_path / f"{type}.gguf", type)
        found[type] = made.stat().st_size, error(run(load_transformer(made, accuracy="exact"), case), wanted)
    size = {type: n for type, (n, _) in found.items()}
    off = {type: e for type, (_, e) in found.items()}
    assert size["Q4_K_S"] < size["Q4_K_M"] < size["Q5_K_S"]
    part = (size["Q4_K_M"] - size["Q4_K_S"]) / (size["Q5_K_S"] - size["Q4_K_S"])
    assert off["Q4_K_M"] ** 2 < off["Q4_K_S"] ** 2 - 1.1 * part * (off["Q4_K_S"] ** 2 - off["Q5_K_S"] ** 2)
