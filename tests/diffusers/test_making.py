"""Files made of tiny models in either layout: the values of the original, the layouts of their spec, and what they say of themselves."""

import json

import pytest
import torch
from safetensors.torch import save_file

from diffusion.cases import CASES
from diffusion.files import error, model_of, original_layout, run, settings
from qtransformers.archs.diffusion import SPECS
from qtransformers.convert import convert
from qtransformers.diffusers import load_transformer, save_gguf
from qtransformers.errors import ConfigError
from qtransformers.gguf import GGUFFile

cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
AURA = next(case for case in CASES if case.id == "aura")
LAYOUTS = ("original", "diffusers")


def layouts(case):
    return LAYOUTS if case.original else ("diffusers",)


def checkpoint(case, layout, folder, dtype=torch.float32, around=""):
    """A model and where it lies: a pipeline's folder of diffusers, or one safetensors file, whose tensors have a prefix."""
    model = model_of(case).to(dtype)
    if layout == "diffusers":
        inner = folder / ("unet" if "UNet" in type(model).__name__ else "transformer")
        model.save_pretrained(inner)
        (folder / "model_index.json").write_text(json.dumps({"_class_name": "APipeline"}))
        return model.float(), folder
    there = original_layout(
        SPECS[case.id], settings(case, model), {k: v.float() for k, v in model.state_dict().items()}
    )
    path = folder / "model.safetensors"
    save_file({around + name: values.to(dtype).contiguous() for name, values in there.items()}, path)
    return model.float(), path


def told(case, layout):
    """What comes with a folder of diffusers, and has to be given with a file of the original layout."""
    return dict(case.config) if layout == "original" else None


def plain(config):
    return {
        n: tuple(v) if isinstance(v, list) else v for n, v in config.items() if v is not None and not n.startswith("_")
    }


def tensors(path):
    with GGUFFile(path) as file:
        return {name: (t.type.name, t.shape, t.data.tobytes()) for name, t in file.tensors.items()}


@cases
@pytest.mark.parametrize("to", LAYOUTS)
@pytest.mark.parametrize("of", LAYOUTS)
def test_all_values_arrive_in_either_layout(case, of, to, tmp_path):
    if {of, to} - set(layouts(case)):
        pytest.skip("published in the layout of diffusers")
    model, path = checkpoint(case, of, tmp_path)
    made = convert(path, tmp_path / "m.gguf", "F32", layout=to, config=told(case, of))
    ours = load_transformer(made, accuracy="exact")  # without a config: the file says all
    assert ours.gguf.plan.layout == to
    assert plain(ours.config).items() >= plain(settings(case, model)).items()
    assert error(run(ours, case), run(model, case)) < 1e-5
    again = convert(made, tmp_path / "again.gguf", "F32", layout=of)
    back = convert(again, tmp_path / "back.gguf", "F32", layout=to)
    assert tensors(made) == tensors(back)


@cases
def test_both_layouts_have_the_same_blocks(case, tmp_path):
    _, path = checkpoint(case, "diffusers", tmp_path, torch.bfloat16)
    off = {}
    for layout in layouts(case):
        made = convert(path, tmp_path / f"{layout}.gguf", "Q4_K_S", layout=layout)
        off[layout] = run(load_transformer(made, accuracy="exact"), case)
    wanted = run(model_of(case).to(torch.bfloat16).float(), case)
    for picture in off.values():
        assert 1e-4 < error(picture, wanted) < case.quantised["Q4_K"]


@cases
@pytest.mark.parametrize("to", LAYOUTS)
def test_a_live_plain_model_is_saved(case, to, tmp_path):
    if to not in layouts(case):
        pytest.skip("published in the layout of diffusers")
    model = model_of(case)
    made = save_gguf(model, tmp_path / "m.gguf", layout=to)
    assert error(run(load_transformer(made, accuracy="exact"), case), run(model, case)) < 1e-5
    _, path = checkpoint(case, "diffusers", tmp_path)
    wanted = convert(path, tmp_path / "n.gguf", "Q4_K_M", layout=to, name="m")
    assert tensors(save_gguf(model, tmp_path / "q.gguf", "Q4_K_M", layout=to)) == tensors(wanted)


@cases
def test_a_loaded_model_keeps_its_blocks(case, tmp_path):
    _, path = checkpoint(case, "diffusers", tmp_path)
    files = {to: convert(path, tmp_path / f"{to}.gguf", "Q4_K_M", layout=to) for to in layouts(case)}
    for of, file in files.items():
        model = load_transformer(file)
        assert tensors(save_gguf(model, tmp_path / f"again-{of}.gguf")) == tensors(file)
        for to, other in files.items():
            made = save_gguf(model, tmp_path / f"{of}-{to}.gguf", layout=to)
            wanted = tensors(other)
            same = [n for n, t in tensors(made).items() if t == wanted[n]]
            assert tensors(made).keys() == wanted.keys() and len(same) > 0.9 * len(
                wanted
            )  # what is one there may be of several types here


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
