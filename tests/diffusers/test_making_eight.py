"""Diffusion models from files of 8-bit floats: plain, and with scales as ComfyUI writes them."""

import errno
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qtransformers.archs.diffusion import SPECS
from qtransformers.cli import main
from qtransformers.convert import convert, eight
from qtransformers.diffusers import load_transformer
from qtransformers.errors import LoadError, QTransformersError, UnsupportedError
from qtransformers.gguf import GGUFFile
from tiny_diffusion.cases import CASES
from tiny_diffusion.files import error, model_of, original_layout, run, settings

FLUX = next(case for case in CASES if case.id == "flux")
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


@pytest.fixture(scope="module")
def state():
    model = model_of(FLUX)
    return original_layout(SPECS["flux"], settings(FLUX, model), model.state_dict())


def rounded(state, kind, scaled=False, name="scale_weight"):
    """Matrices in 8 bits, and what they stand for."""
    file, values = {}, {}
    for n, v in state.items():
        if v.ndim != 2:
            file[n] = values[n] = v
            continue
        scale = v.abs().max() / 448 if scaled else torch.tensor(1.0)
        file[n] = (v / scale).to(kind)
        values[n] = file[n].float() * scale
        if scaled:
            file[f"{n.removesuffix('weight')}{name}"] = scale.float()
    return file, values


def converted(file, folder, **how):
    save_file({n: v.contiguous() for n, v in file.items()}, folder / "m.safetensors")
    return GGUFFile(convert(folder / "m.safetensors", folder / "m.gguf", "F32", **how))


@pytest.mark.parametrize("kind", [E4M3, E5M2], ids=["e4m3", "e5m2"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_plain_eight_bits_are_read_exactly(kind, prefix, state, tmp_path):
    file, values = rounded(state, kind)
    made = converted({prefix + n: v for n, v in file.items()}, tmp_path)
    assert made.tensors.keys() == values.keys()
    for n, v in values.items():
        assert np.array_equal(made.tensors[n].dequantize(), v.numpy()), n


@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
def test_scaled_eight_bits_are_multiplied(name, state, tmp_path):
    file, values = rounded(state, E4M3, True, name)
    method = torch.frombuffer(bytearray(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    file |= {"scaled_fp8": torch.zeros(2).to(E4M3)} if name == "scale_weight" else {"img_in.comfy_quant": method}
    file["img_in.scale_input" if name == "scale_weight" else "img_in.input_scale"] = torch.tensor(1.0)
    rows = values["txt_in.weight"].abs().amax(1).clamp(min=1e-6) / 448  # one for each row
    file["txt_in.weight"] = (state["txt_in.weight"] / rows[:, None]).to(E4M3)
    file[f"txt_in.{name}"] = rows
    values["txt_in.weight"] = file["txt_in.weight"].float() * rows[:, None]
    made = converted(file, tmp_path)
    assert made.tensors.keys() == values.keys()
    for n, v in values.items():
        assert np.allclose(made.tensors[n].dequantize(), v.numpy(), rtol=2**-8, atol=0), n
    ours = load_transformer(convert(tmp_path / "m.safetensors", tmp_path / "q.gguf", "Q8_0"), accuracy="exact")
    assert error(run(ours, FLUX), run(model_of(FLUX), FLUX)) < 0.15


def test_eight_bits_are_decoded_once_and_only_where_they_are_needed(state, tmp_path, monkeypatch, capsys):
    file, _ = rounded(state, E4M3, True)
    save_file({n: v.contiguous() for n, v in file.items()}, tmp_path / "m.safetensors")
    decoded, of = [], eight._decode
    monkeypatch.setattr(eight, "_decode", lambda t, *more: decoded.append(t.name) or of(t, *more))
    words = ["convert", str(tmp_path / "m.safetensors"), "-o", str(tmp_path / "q.gguf")]
    assert main([*words, "-t", "Q4_K", "--dry-run"]) == main(["advise", words[1], "--ram", "8GiB"]) == 0
    assert "img_in.weight" in (said := capsys.readouterr().out) and "Take Q8_0" in said and not decoded
    save_file({k: v for k, v in FLUX.inputs(FLUX.config).items() if v is not None}, tmp_path / "call.safetensors")
    assert main([*words, "-t", "Q4_K", "--awq", "-f", str(tmp_path / "call.safetensors")]) == 0
    assert sorted(decoded) == sorted(n for n, v in file.items() if v.dtype == E4M3)
    assert error(run(load_transformer(tmp_path / "q.gguf", accuracy="exact"), FLUX), run(model_of(FLUX), FLUX)) < 0.6


def broken(state):
    file, _ = rounded(state, E4M3, True)
    scale = "img_in.scale_weight"
    yield (
        file | {scale: torch.ones(7)},
        LoadError,
        r"img_in\.scale_weight is \[7\], a scale for img_in\.weight, which is \[256, 64\]",
    )
    yield file | {scale: torch.tensor(float("nan"))}, LoadError, "expected finite scales above 0"
    yield file | {"no_such.scale_weight": torch.tensor(1.0)}, LoadError, "which is not there"
    yield file | {"img_in.weight": state["img_in.weight"]}, UnsupportedError, "whose values are F32"
    other = torch.frombuffer(bytearray(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    yield file | {"img_in.comfy_quant": other}, UnsupportedError, "says 'nvfp4'; expected a format of floats of 8 bits"
    bad = file["img_in.weight"].clone()
    bad.view(torch.uint8)[3, 5] = 0x7F
    yield file | {"img_in.weight": bad}, LoadError, "holds nan in row 3, column 5"


@pytest.mark.parametrize("n", range(6))
def test_what_does_not_fit_is_refused(n, state, tmp_path):
    file, kind, message = list(broken(state))[n]
    with pytest.raises(kind, match=message):
        converted(file, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_scale_that_is_missing_is_told(state, tmp_path):
    file, _ = rounded(state, E4M3, True)
    del file["img_in.scale_weight"]
    with pytest.warns(UserWarning, match=r"1 weights of 8 bits \(img_in\.weight, \.\.\.\) have no scale"):
        made = converted(file, tmp_path)
    assert np.array_equal(made.tensors["img_in.weight"].dequantize(), file["img_in.weight"].float().numpy())


def test_a_full_disk_is_told(state, tmp_path, monkeypatch):
    file, _ = rounded(state, E4M3)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(QTransformersError, match=re.escape("has 10 bytes free")):
        converted(file, tmp_path)


def test_a_disk_that_another_fills_is_told_before_anything_is_decoded(state, tmp_path, monkeypatch):
    def full(descriptor, start, nbytes):
        raise OSError(errno.ENOSPC, "No space left on device")

    file, _ = rounded(state, E4M3)
    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with pytest.raises(
        QTransformersError, match=r"No space left on device; [\d,]+ bytes are needed to decode .* TMPDIR"
    ):
        converted(file, tmp_path)
