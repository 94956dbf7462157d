"""Models of transformers on the GPU kernels: in Triton's interpreter, or on a card (make test-gpu)."""

import copy
import os

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("triton")
import torch
from torch.nn import functional

from archs.models import error
from qtransformers.errors import ConfigError, UnsupportedError
from qtransformers.machine import Gpu
from qtransformers.quants import quantize
from qtransformers.tensor import QTensor
from qtransformers.torch import (
    QuantEmbedding,
    QuantExperts,
    QuantLinear,
    QuantTransposed,
    QuantWeight,
    load_transformers,
    loading,
    ops,
)
from qtransformers.types import BY_NAME
from torch_models import ids, in_type, make, outputs, wide

ON_CARD = os.environ["TRITON_INTERPRET"] == "0"
card = pytest.mark.skipif(not ON_CARD, reason="needs a card: make test-gpu")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")] if ON_CARD else []  # fmt: skip
RNG = np.random.default_rng(5)


def weight(device, *shape, type="Q8_0", accuracy="exact"):
    values = RNG.standard_normal(shape).astype(np.float32) * shape[-1] ** -0.5
    data = quantize(values.reshape(-1), BY_NAME[type])
    return QuantWeight(QTensor("w", BY_NAME[type], shape, data, "test.gguf"), accuracy=accuracy).to(device)


def x(device, *shape):
    return torch.from_numpy(RNG.standard_normal(shape).astype(np.float32)).to(device)


def near(found, expected, rtol=1e-4):
    assert found.shape == expected.shape and found.dtype == expected.dtype and found.device == expected.device
    assert (found - expected).abs().max() <= rtol * expected.abs().max()


@pytest.mark.parametrize("type_", ["Q4_0", "F16"])
def test_layers(type_, device):
    w, bias = weight(device, 16, 32, type=type_), x(device, 16)
    dense, order = w.dequantize(), RNG.permutation(16)
    layer = QuantLinear(w, bias, order).to(device)
    for n in (2, 17):
        a = x(device, n, 32)
        near(layer(a), functional.linear(a, dense[order], bias), 2e-3 if type_ == "F16" else 1e-4)
    assert copy.deepcopy(layer).bfloat16()(x(device, 1, 32).bfloat16()).dtype == torch.bfloat16
    assert layer(x(device, 0, 32)).shape == (0, 16)
    tokens = torch.tensor([[0, 15, 3]], device=device)
    near(QuantEmbedding(w)(tokens), dense[tokens], 0)


def test_transposed_and_gradients(device):
    w = weight(device, 16, 32)
    b = x(device, 3, 16)
    near(QuantTransposed(w)(b), b @ w.dequantize())
    a = x(device, 2, 32).requires_grad_()
    QuantLinear(w)(a).square().sum().backward()
    c = a.detach().clone().requires_grad_()
    functional.linear(c, w.dequantize()).square().sum().backward()
    near(a.grad, c.grad)


def test_experts(device):
    gate, up, down = (weight(device, 2, 32, 32) for _ in range(3))
    layer = QuantExperts(gate, up, down, "gpt_oss", [x(device, 2, 32) for _ in range(3)]).to(device)
    a, chosen, shares = 3 * x(device, 1, 32), torch.tensor([[1, 0]], device=device), torch.tensor([[0.3, 0.7]], device=device)  # fmt: skip
    near(layer(a, chosen, shares), layer.one_by_one(a, chosen, shares), 1e-3)


def test_a_model(device, tmp_path):
    """Of one layer: the interpreter takes its time."""
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}  # fmt: skip
    folder, path = wide("llama-llama3", tmp_path, **small)
    path = in_type(path, "Q4_0")
    model = load_transformers(folder, path, device=device, dtype="float32", accuracy="exact")
    found = outputs(model, ids(1).to(device))
    if not ON_CARD:
        ops.HOMES["cpu"] = "on_host"
        ops.side.cache_clear()
    host = load_transformers(folder, path, accuracy="exact")
    assert error(found, outputs(host, ids(1))) < 1e-4


@card
@pytest.mark.parametrize("name", ["llama-llama3", "qwen3", "gemma3", "qwen3moe", "gpt-oss", "deepseek-v3", "qwen3next", "gpt2", "phi3"])  # fmt: skip
def test_models_on_a_card(name, tmp_path):
    folder, path = make(name, tmp_path)
    model = load_transformers(folder, path, device="cuda", dtype="float32", accuracy="exact")
    host = load_transformers(folder, path, accuracy="exact")
    tokens = ids(24)
    assert error(outputs(model, tokens.cuda()), outputs(host, tokens)) < 2e-3
    ours, theirs = (
        m.generate(tokens.to(m.device), min_new_tokens=6, max_new_tokens=6, do_sample=False) for m in (model, host)
    )
    assert torch.equal(ours.cpu(), theirs)
    assert all(t.is_cuda for t in (*model.parameters(), *model.buffers()))
    half = load_transformers(folder, path, device="cuda")
    assert half.dtype == torch.bfloat16 and np.isfinite(outputs(half, tokens.cuda())).all()


@card
@pytest.mark.parametrize("type_", ["Q4_K", "Q6_K", "Q5_1", "IQ4_XS", "F16"])
def test_types_and_memory_on_a_card(type_, tmp_path):
    folder, path = wide("qwen3", tmp_path)
    path = in_type(path, type_)
    before = torch.cuda.memory_allocated()
    model = load_transformers(folder, path, device="cuda", accuracy="exact", dtype="float32")
    taken = torch.cuda.memory_allocated() - before
    held = sum(t.nbytes for t in {t.data_ptr(): t for t in (*model.parameters(), *model.buffers())}.values())
    assert taken < held + (1 << 20)
    for n in (1, 24, 300):
        found, expected = (
            outputs(m, ids(n).to(m.device)) for m in (model, load_transformers(folder, path, accuracy="exact"))
        )
        assert error(found, expected) < 5e-3


@card
def test_compiled_on_a_card(tmp_path):
    folder, path = make("llama-llama3", tmp_path)
    model = load_transformers(folder, path, device="cuda")
    tokens = ids(9).cuda()
    expected = outputs(model, tokens)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        assert error(compiled(tokens, use_cache=False).logits[0].float().cpu().numpy(), expected) < 0.05
    assert model.generate(tokens, max_new_tokens=8, cache_implementation="static").shape == (1, 17)


def test_devices_that_cannot_be_used(tmp_path, monkeypatch):
    old = Gpu("an old card", 1 << 30, 1 << 30, (7, 5))
    monkeypatch.setattr(loading, "gpus", lambda: [old])
    with pytest.raises(UnsupportedError, match=r"compute capability 7\.5.*device='cpu'"):
        load_transformers(tmp_path, tmp_path, device="cuda")
    monkeypatch.setattr(loading, "gpus", list)
    with pytest.raises(ConfigError, match="no CUDA device"):
        load_transformers(tmp_path, tmp_path, device="cuda:3")
