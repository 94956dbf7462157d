"""gpt-oss as it is published: experts in MXFP4."""

import numpy as np
import pytest

import gguf as gguf_py

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch

from archs.cases import CASES
from archs.models import Ours, error, gguf, prompt, reference
from qtransformers.gguf import GGUFFile, GGUFWriter

MXFP4 = gguf_py.GGMLQuantizationType.MXFP4


def with_mxfp4(path, target):
    """A copy of the file with its experts in MXFP4 by gguf-py, and the values that these mean."""
    values = {}
    with GGUFFile(path) as file:
        tensors = list(file.tensors.values())
        shapes = [(t.name, t.shape, "MXFP4" if t.name.endswith("exps.weight") else "F32") for t in tensors]
        with GGUFWriter(target, file.metadata, shapes) as writer:
            for t, (name, _, kind) in zip(tensors, shapes, strict=True):
                x = t.dequantize()
                if kind == "MXFP4":
                    blocks = gguf_py.quants.quantize(x, MXFP4)
                    values[name] = gguf_py.quants.dequantize(blocks, MXFP4).reshape(t.shape)
                    writer.write(name, blocks.reshape(-1))
                else:
                    writer.write(name, x)
    return values


def test_experts_in_mxfp4_mean_their_values(tmp_path):
    case = CASES["gpt-oss"]
    theirs = reference(case, "gpt-oss")
    values = with_mxfp4(gguf(theirs, tmp_path, "gpt-oss", case), tmp_path / "mxfp4.gguf")
    with torch.no_grad():
        for i, layer in enumerate(theirs.model.layers):
            gate, up, down = (torch.from_numpy(values[f"blk.{i}.ffn_{k}_exps.weight"].swapaxes(1, 2).copy()) for k in ("gate", "up", "down"))  # fmt: skip
            layer.mlp.experts.gate_up_proj.copy_(torch.stack((gate, up), -1).flatten(2))
            layer.mlp.experts.down_proj.copy_(down)
    with torch.inference_mode():
        expected = theirs(torch.tensor([prompt(150)]), use_cache=False).logits[0].numpy()
    ours = Ours.load(tmp_path / "mxfp4.gguf", case)
    assert error(ours.logits(prompt(150)), expected) < 1e-3
    plain = Ours.load(tmp_path / "gpt-oss.gguf", case)
    assert error(plain.logits(prompt(150)), expected) > 0.1, "they are other values than before they were rounded"
    assert np.isfinite(expected).all()
