"""Diffusion models on the GPU kernels: in Triton's interpreter, or on a card (make test-gpu)."""

import os

import pytest
import torch
from torch import nn

import interpreter  # noqa: F401
from qtransformers.diffusers import load_transformer
from qtransformers.kernels import triton
from qtransformers.quants import quantize
from qtransformers.tensor import QTensor
from qtransformers.torch import QuantConv2d, QuantWeight, ops
from qtransformers.torch import conv as convolutions
from qtransformers.types import BY_NAME
from tiny_diffusion.cases import CASES, Case, noise
from tiny_diffusion.files import error, model_of, run, write

ON_CARD = os.environ["TRITON_INTERPRET"] == "0"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")] if ON_CARD else []  # fmt: skip
AURA = next(case for case in CASES if case.id == "aura")
SMALL = AURA.config | {
    "num_mmdit_layers": 1, "num_single_dit_layers": 0, "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 32,
    "caption_projection_dim": 32, "pos_embed_max_size": 16, "sample_size": 4,
}  # fmt: skip


def small(device):
    """One joint block: the interpreter takes its time."""
    inputs = {"hidden_states": noise(1, 4, 4, 4), "encoder_hidden_states": noise(1, 2, 32, seed=2), "timestep": torch.tensor([0.5])}  # fmt: skip
    return Case("aura", SMALL, lambda c: {name: values.to(device) for name, values in inputs.items()})


def test_a_step_of_auraflow_is_that_of_the_cpu(device, tmp_path, monkeypatch):
    path = write(tmp_path / "m.gguf", "aura", model_of(small("cpu")).state_dict(), "Q8_0")
    told = {name: SMALL[name] for name in AURA.told}
    products = []
    product = triton.linear_like
    monkeypatch.setattr(triton, "linear_like", lambda x, w, bias: products.append(w.name) or product(x, w, bias))
    model = load_transformer(path, told, device=device, dtype="float32", accuracy="exact")
    found = run(model, small(device))
    assert sorted(products) == sorted(m.name for m in model.modules() if isinstance(m, QuantWeight))
    assert len(products) > 20
    if not ON_CARD:
        ops.HOMES["cpu"] = "on_host"
        ops.side.cache_clear()
    host = load_transformer(path, told, accuracy="exact")
    assert error(found.cpu(), run(host, small("cpu"))) < 1e-4
    assert len(products) < 40  # the host's products are its own


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolutions_decode_a_bounded_part_at_a_time(device, kernel, monkeypatch):
    like = nn.Conv2d(32, 6, kernel, padding=kernel // 2)
    data = quantize(noise(6, 32 * kernel**2).numpy().reshape(-1), BY_NAME["Q8_0"])
    weight = QuantWeight(QTensor("w", BY_NAME["Q8_0"], (6, 32 * kernel**2), data, "test.gguf"), accuracy="exact")
    layer = QuantConv2d(like, weight, like.bias.data).to(device)
    monkeypatch.setattr(QuantConv2d, "_blockwise", lambda self, x: False)  # as on a card
    monkeypatch.setattr(convolutions, "FILTERS", 2 * 32 * kernel**2)
    sizes = []
    slices = QuantWeight.slices
    monkeypatch.setattr(QuantWeight, "slices", lambda self, most: (sizes.append(f.numel()) or (a, f) for a, f in slices(self, most)))  # fmt: skip
    x = noise(2, 32, 5, 4, seed=2).to(device)
    found = layer(x)
    dense = nn.functional.conv2d(x, layer.dequantize(), like.bias.data.to(device), padding=kernel // 2)
    assert error(found, dense) < 1e-5
    assert sizes == [2 * 32 * kernel**2] * 3
