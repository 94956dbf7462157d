"""`plan` of diffusion transformers, and what the commands for language models say of them; nothing here needs torch."""

import json

import numpy as np
import pytest

from qtransformers import Model
from qtransformers.archs.diffusion import SPECS
from qtransformers.cli import main
from qtransformers.convert import plan_conversion
from qtransformers.errors import UnsupportedError
from qtransformers.gguf import GGUFFile, GGUFWriter
from qtransformers.gguf.encode import TensorSpec
from qtransformers.gguf.headers import HeaderFile
from qtransformers.load.diffusion import is_diffusion, source_name, whole_shape
from qtransformers.load.diffusion_fit import outlook
from qtransformers.quants import quantize
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME

FLUX = {
    "patch_size": 1, "in_channels": 64, "out_channels": 64, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 128, "num_attention_heads": 2,
    "joint_attention_dim": 512, "pooled_projection_dim": 256, "guidance_embeds": True, "axes_dims_rope": (16, 56, 56),
}  # fmt: skip
GIB = 1 << 30
WIDE = ((1024, 256), (256, 1280))  # feed-forward layers, out and in


def write(path, spec, config, arch, without=(), **metadata):
    """A file in the original layout, in Q8_0 where rows fill its blocks."""
    sharers = {}
    for declared in spec.declared(config):
        if declared.presence == "required":
            sharers.setdefault(source_name(declared, "original"), []).append(declared)
    shapes = {name: whole_shape(there, "original") for name, there in sharers.items() if name not in without}
    kinds = {
        name: BY_NAME["Q8_0" if len(shape) == 2 and shape[1] % 32 == 0 else "F32"] for name, shape in shapes.items()
    }
    with GGUFWriter(
        path, {"general.architecture": arch, **metadata}, [TensorSpec(n, s, kinds[n]) for n, s in shapes.items()]
    ) as out:
        for name, shape in shapes.items():
            out.write(
                name, QTensor(name, kinds[name], shape, quantize(np.zeros(shape, np.float32).reshape(-1), kinds[name]))
            )
    return path


@pytest.fixture
def flux(tmp_path):
    return write(tmp_path / "flux.gguf", SPECS["flux"], FLUX, "flux")


def planned(capsys, *words, code=0):
    assert main(["plan", *map(str, words)]) == code
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_a_good_model(flux, capsys):
    out = planned(capsys, flux, "--ram", "8GiB")
    assert "Flux.1, original layout, 5.03 million parameters" in out
    assert "FluxTransformer2DModel of diffusers" in out and "4,608 tokens" in out and "there are 8 GiB" in out
    assert out.splitlines()[-1] == "fits"


def test_json_adds_up(flux, capsys):
    found = json.loads(planned(capsys, flux, "--ram", "8GiB", "--json", "--ctx-size", 1000))
    (host,) = found["devices"]
    assert (found["architecture"], found["layout"], found["class"]) == ("flux", "original", "FluxTransformer2DModel")
    assert found["runnable"] and found["problems"] == [] and found["verdict"] == "fits"
    assert {name: tuple(v) if isinstance(v, list) else v for name, v in found["config"].items()} == FLUX
    assert sum(group["bytes"] for group in found["tensors"]) == found["weights"] == host["weights"]
    assert {group["role"] for group in found["tensors"]} >= {
        "attn",
        "bias",
        "dense_ffn",
        "embed_in",
        "modulation",
        "norm",
        "output",
    }
    assert found["tokens"] == 1000 and found["temporaries"] == host["activations"] == 4 * 1000 * 4 * 1536
    assert host["needed"] == sum(host[k] for k in ("weights", "cache", "activations", "program", "system"))


def test_one_that_does_not_fit(flux, capsys):
    out = planned(capsys, flux, "--ram", "600MiB", code=5)
    assert "does not fit" in out and "a file of fewer bits a weight, or smaller pictures" in out
    assert planned(capsys, flux, "--ram", "600MiB", "--ctx-size", 64, code=0).splitlines()[-1] in ("fits", "tight")


def test_a_gpu(flux, capsys):
    out = planned(capsys, flux, "--vram", "2GiB")
    assert "cuda:0" in out and "the driver's context" in out and "main memory" not in out


def test_a_broken_model_is_still_counted(tmp_path, capsys):
    path = write(
        tmp_path / "flux.gguf", SPECS["flux"], FLUX, "flux", without=("img_in.bias", "double_blocks.0.img_mlp.2.weight")
    )
    out = planned(capsys, path, "--ram", "8GiB", code=4)
    assert (
        "cannot be loaded" in out
        and "img_in.bias is missing" in out
        and "double_blocks.0.img_mlp.2.weight is missing" in out
    )
    assert "weights as stored" in out and "other" in out
    lines = out.splitlines()
    assert "img_in.bias is missing" in "".join(lines[lines.index("cannot be loaded") :])  # where the eye ends
    assert "fits" not in lines
    found = json.loads(planned(capsys, path, "--ram", "8GiB", "--json", code=4))
    assert not found["runnable"] and len(found["problems"]) == 1 and found["weights"] > 0


def test_a_file_that_names_no_architecture(tmp_path, capsys):
    assert "Flux.1" in planned(capsys, write(tmp_path / "flux.gguf", SPECS["flux"], FLUX, "pig"), "--ram", "8GiB")


def test_what_no_tensor_shows_comes_from_a_folder(tmp_path, capsys):
    config = {
        "sample_size": 64, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_mmdit_layers": 1, "num_single_dit_layers": 1,
        "attention_head_dim": 64, "num_attention_heads": 4, "joint_attention_dim": 256, "caption_projection_dim": 256, "pos_embed_max_size": 64,
    }  # fmt: skip
    path = write(tmp_path / "aura.gguf", SPECS["aura"], config, "aura")
    assert "no tensor shows num_attention_heads" in planned(capsys, path, "--ram", "8GiB", code=4)
    assert main(["advise", str(path), "--ram", "8GiB"]) == 2
    assert (said := capsys.readouterr().err).endswith("Give the folder of the pipeline, whose config says it.\n")
    assert "no tensor shows num_attention_heads" in said and "config=" not in said
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text(
        json.dumps({"_class_name": "AuraFlowTransformer2DModel", **config})
    )
    assert "AuraFlow" in planned(capsys, path, "--model-path", tmp_path / "folder", "--ram", "8GiB")
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    (tmp_path / "folder").rename(pipeline / "transformer")
    (pipeline / "model_index.json").write_text("{}")
    assert "AuraFlow" in planned(capsys, path, "--model-path", pipeline, "--ram", "8GiB")
    assert main(["plan", str(path), "--model-path", str(tmp_path / "none")]) == 3
    assert "--model-path" in (err := capsys.readouterr().err) and "no config.json there" in err


def test_a_pipeline_is_to_be_converted_first(tmp_path, capsys):
    (tmp_path / "model_index.json").write_text("{}")
    assert main(["plan", str(tmp_path)]) == 3
    assert "is a pipeline of diffusers: make a GGUF of its transformer with" in capsys.readouterr().err


def test_a_header_alone_tells_all(flux):
    data = flux.read_bytes()
    with GGUFFile(flux) as file:
        cut, found = data[: file.data_offset], outlook(file)
    header = HeaderFile([flux.name], [len(data)], [lambda start, stop: cut[start:stop]], "user/repo:Q8_0")
    assert is_diffusion(header)
    told = outlook(header)
    assert told.plan and dict(told.plan.config) == dict(found.plan.config)
    assert told.weights_bytes == found.weights_bytes and told.temporaries(100) == found.temporaries(100)
    assert {key: len(ts) for key, ts in told.groups().items()} == {key: len(ts) for key, ts in found.groups().items()}


def test_language_models_are_not_made_of_it(flux, tmp_path):
    with pytest.raises(UnsupportedError, match=r"flux\.gguf is a diffusion transformer, Flux\.1.*qtransformers image"):
        Model.load(flux)
    with pytest.raises(UnsupportedError, match="diffusion transformer"):
        Model.load(write(tmp_path / "none.gguf", SPECS["flux"], FLUX, ""))


def advised(capsys, *words, code=0):
    assert main(["advise", *map(str, words)]) == code
    return capsys.readouterr()


def test_advice_is_by_bytes_of_the_mixtures_and_by_memory(flux, capsys):
    """The file is of 13 million weights, most of them in Q8_0: each type's bytes are those that `convert` would write."""
    found = json.loads(advised(capsys, flux, "--ram", "8GiB", "--json").out)
    assert [o["file_type"] for o in found["options"]][:2] == ["F16", "Q8_0"] and len(found["options"]) == 8
    sizes = {o["file_type"]: o["nbytes"] for o in found["options"]}
    assert sizes == dict(sorted(sizes.items(), key=lambda item: -item[1]))
    for file_type in ("Q8_0", "Q4_K_M"):
        plan = plan_conversion(flux, file_type, force=True)
        assert sizes[file_type] == plan.nbytes
    assert (
        found["best"]["file_type"] == "Q8_0"
        and found["quantised"]
        and found["command"].split()[2:] == ["ORIGINAL", "-t", "Q8_0"]
    )
    assert found["options"][0]["needed"] - found["options"][1]["needed"] == pytest.approx(sizes["F16"] - sizes["Q8_0"], rel=0.01)  # fmt: skip
    out = advised(capsys, flux, "--ram", "8GiB", "--vram", "8GiB").out
    assert "Take F16" in out and "on cuda:0" in out and "Flux" in out and "cannot" not in out
    small = found["options"][4]["needed"] + (1 << 20)
    out, err = advised(capsys, flux, "--ram", str(small), "--cache", "q8", code=0)
    assert "Take Q8_0" not in out and "--cache is for language models" in err
    assert "smaller pictures" in advised(capsys, flux, "--ram", "1MiB", code=5).out
    wide = json.loads(advised(capsys, flux, "--ram", "8GiB", "--ctx-size", 9216, "--json").out)
    more = {a["needed"] - b["needed"] for a, b in zip(wide["options"], found["options"], strict=True)}
    assert len(more) == 1 and more.pop() == 4608 * 4 * 4 * max(m + n for m, n in WIDE)


def test_what_is_for_language_models_is_refused_or_said(flux, tmp_path, capsys):
    for flag in ("--draft", "--save"):
        assert main(["plan", str(flux), flag, str(tmp_path / "x.json")]) == 2
        assert f"{flag} is for language models" in capsys.readouterr().err
    assert main(["plan", str(flux), "--ram", "8GiB", "--cache", "q4", "--placement", "auto"]) == 0
    out, err = capsys.readouterr()
    assert err.count("is for language models: not heeded") == 2 and "fits" in out
