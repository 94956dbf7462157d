"""Our files in the original layout as ComfyUI-GGUF reads them."""

import numpy as np
import pytest

from qtransformers.archs.diffusion import SPECS
from qtransformers.convert import convert
from qtransformers.gguf import GGUFFile, GGUFWriter
from tiny_diffusion.cases import CASES
from tiny_diffusion.checkpoints import checkpoint
from tiny_diffusion.comfy import ARCHITECTURES, KEYS, objections

# It looks at the fourth layer, the 28th, and three halvings
DEEPER = {
    "aura": {"num_mmdit_layers": 4},
    "ltxv": {"num_layers": 28},
    "sd1": {
        "block_out_channels": (32, 64, 64, 64),
        "down_block_types": (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        "attention_head_dim": (4, 4, 4, 4),
        "transformer_layers_per_block": (1, 1, 1, 1),
    },
}
READ = [c for c in CASES if c.original and ((SPECS[c.id].family or c.id) in ARCHITECTURES) and c.id not in ("flux2", "z_image", "chroma")]  # fmt: skip


@pytest.mark.parametrize("case", READ, ids=lambda case: case.name)
def test_it_takes_our_files(case, tmp_path):
    _, path = checkpoint(case, "diffusers", tmp_path, **DEEPER.get(case.id, {}))
    for type in ("Q4_K_M", "Q8_0"):
        assert objections(convert(path, tmp_path / f"{type}.gguf", type)) == []


def test_it_knows_most_of_what_is_here():
    assert {"aura", "flux", "sd3"} <= {case.id for case in READ} & KEYS.keys()


def test_it_refuses_other_files(tmp_path):
    case = next(c for c in CASES if c.id == "flux")
    _, path = checkpoint(case, "diffusers", tmp_path)
    assert "the layout of diffusers" in objections(convert(path, tmp_path / "m.gguf", "Q8_0", layout="diffusers"))
    metadata = {"general.architecture": "mine", "comfy.gguf.orig_shape.x.weight": np.array([3], np.uint64)}
    with GGUFWriter(tmp_path / "x.gguf", metadata, [("x.weight", (2, 32), "Q8_0")]) as writer:
        writer.write("x.weight", np.zeros(68, np.uint8))
    assert len(objections(tmp_path / "x.gguf")) == 4


@pytest.mark.parametrize("id", ["sd1", "wan"])
def test_shapes_that_a_file_cannot_hold_are_said(id, tmp_path):
    case = next(c for c in CASES if c.id == id)
    model, path = checkpoint(case, "diffusers", tmp_path)
    with GGUFFile(convert(path, tmp_path / "m.gguf", "Q4_0", layout="diffusers")) as file:
        said = {key.removeprefix("comfy.gguf.orig_shape."): tuple(v) for key, v in file.metadata.items() if "orig_shape" in key}  # fmt: skip
        state = model.state_dict()
        packed = {name for name, values in state.items() if values.ndim > (4 if id == "wan" else 3)}
        assert said == {name: tuple(state[name].shape) for name in packed} and packed
        types = {file.tensors[name].type.name for name in packed}
        assert ("Q4_0" in types) if id == "sd1" else types == {"F32"}
