"""The story of AuraFlow as a user has it: a folder or the original file, one command to GGUF, one command to the picture."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from qtransformers.archs.diffusion import SPECS
from qtransformers.cli import main
from qtransformers.diffusers import Picture, load_transformer, paint
from qtransformers.gguf import GGUFFile
from tiny_diffusion.files import original_layout, settings
from tiny_diffusion.pipelines import AURA, aura_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A whole pipeline of diffusers as it lies on the Hub, and the transformer alone in the original layout."""
    where = tmp_path_factory.mktemp("story")
    pipe = aura_pipeline()
    pipe.save_pretrained(where / "base")
    state = original_layout(SPECS["aura"], settings(AURA, pipe.transformer), pipe.transformer.state_dict())
    save_file({f"model.{name}": values.contiguous() for name, values in state.items()}, where / "original.safetensors")
    return where, pipe


@pytest.mark.parametrize("source", ["base", "original.safetensors"])
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_from_weights_to_a_picture(folder, source, layout, tmp_path, capsys):
    where, theirs = folder
    gguf, picture = tmp_path / "aura.gguf", tmp_path / "fox.png"
    config = ["--config", str(where / "base")] if source != "base" else []
    assert main(["convert", str(where / source), "-t", "F32", "--layout", layout, "-o", str(gguf), *config]) == 0
    with GGUFFile(gguf) as file:
        assert file.metadata["general.architecture"] == "aura"
        assert ("double_layers.0.attn.w2q.weight" in file.tensors) == (layout == "original")
        assert sum(name.endswith(".bias") for name in file.tensors) == 3, "no bias is made up"
    base = tmp_path / "base"
    shutil.copytree(where / "base", base)
    shutil.rmtree(base / "transformer")  # the file says all there is to know
    words = ["image", str(gguf), "a red fox in the rain", "--base", str(base), "--steps", "2", "--size", "32", "--seed", "1", "--accuracy", "exact"]  # fmt: skip
    assert main([*words, "-o", str(picture)]) == 0, capsys.readouterr().err
    theirs.set_progress_bar_config(disable=True)
    wanted = paint(theirs, Picture("a red fox in the rain", steps=2, width=32, height=32, seed=1)).images[0]
    off = np.abs(np.asarray(Image.open(picture)).astype(int) - np.asarray(wanted).astype(int))
    assert off.max() <= 1, "the same picture, up to rounding to 8 bits"


def test_quantised_it_needs_nothing_but_the_file(folder, tmp_path):
    where, theirs = folder
    assert main(["convert", str(where / "base"), "-t", "Q4_K_M", "-o", str(tmp_path / "q.gguf")]) == 0
    ours = load_transformer(tmp_path / "q.gguf", accuracy="exact")
    assert dict(ours.config)["num_attention_heads"] == 4
    assert set(ours.gguf.plan.config.origins.values()) <= {f"{tmp_path / 'q.gguf'}: qtransformers.config", "default"}
    with torch.no_grad():
        inputs = AURA.inputs(ours.config)
        a, b = (m(**inputs, return_dict=False)[0] for m in (ours, theirs.transformer))
    assert 1e-3 < float((a - b).norm() / b.norm()) < 0.5
