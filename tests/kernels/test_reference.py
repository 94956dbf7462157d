"""The twins themselves, against torch and against hand-made values."""

import numpy as np
import pytest

from blocks import random_blocks
from qtransformers.kernels import reference
from qtransformers.kernels.kv import head_bytes
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME

torch = pytest.importorskip("torch")


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_layer_norm_and_activations_as_torch():
    x, weight, bias = floats(5, 33), floats(33, seed=1), floats(33, seed=2)
    t = torch.tensor(x)
    functional = torch.nn.functional
    found = reference.layer_norm(x, weight, bias, 1e-5)
    np.testing.assert_allclose(
        found, functional.layer_norm(t, (33,), torch.tensor(weight), torch.tensor(bias), 1e-5), rtol=1e-5, atol=1e-5
    )
    for act, truth in {
        "silu": functional.silu(t), "gelu_erf": functional.gelu(t), "gelu": functional.gelu(t, approximate="tanh"),
        "sigmoid": t.sigmoid(), "tanh": t.tanh(),
    }.items():  # fmt: skip
        np.testing.assert_allclose(reference.activate(x, act), truth, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(reference.activate(x, act, x), truth * t, rtol=1e-5, atol=1e-6)


def test_linear_and_embedding():
    tensor = QTensor("w", BY_NAME["Q8_0"], (5, 64), random_blocks(BY_NAME["Q8_0"], 10))
    x, bias = floats(3, 64), floats(5)
    w = torch.tensor(tensor.dequantize())
    truth = torch.nn.functional.linear(torch.tensor(x), w, torch.tensor(bias))
    np.testing.assert_allclose(reference.linear(x, tensor, bias), truth, atol=1e-5)
    np.testing.assert_array_equal(reference.embedding(np.array([4, 0], np.int32), tensor), w[[4, 0]])


def test_rows():
    x, up = floats(4, 33), floats(4, 33, seed=1)
    norm = torch.nn.functional.rms_norm(torch.tensor(x), (33,), torch.tensor(up[0]), 1e-5)
    np.testing.assert_allclose(reference.rms_norm(x, up[0], 1e-5), norm, rtol=1e-6)
    silu = torch.nn.functional.silu(torch.tensor(x)) * torch.tensor(up)
    np.testing.assert_allclose(reference.activate(x, "silu", up), silu, rtol=1e-6)


@pytest.mark.parametrize("interleaved, pairs", [(True, [(0, 1), (2, 3)]), (False, [(0, 2), (1, 3)])])
def test_rope(interleaved, pairs):
    x, freqs = floats(2, 1, 5), np.array([1.0, 0.25])
    y = reference.rope(x, np.array([0, 3], np.int32), freqs, interleaved)
    np.testing.assert_array_equal(y[0], x[0])
    for (i, j), f in zip(pairs, freqs, strict=True):
        c, s = np.cos(3 * f), np.sin(3 * f)
        np.testing.assert_allclose(y[1, 0, [i, j]], [c * x[1, 0, i] - s * x[1, 0, j], s * x[1, 0, i] + c * x[1, 0, j]], rtol=1e-6)  # fmt: skip
    assert y[1, 0, 4] == x[1, 0, 4]


@pytest.mark.parametrize("window", [0, 3])
def test_attention(window):
    T, past, heads, kv, d, dv = 6, 300, 4, 2, 8, 7
    q, k, v = floats(T + past, heads, d), floats(T + past, kv, d, seed=1), floats(T + past, kv, dv, seed=2)
    pages = np.zeros((5, kv, head_bytes("f32", d, dv)), np.uint8)
    tables = np.array([[2, 0, 4, -1]], np.int32)
    for rows in (slice(0, past), slice(past, None)):
        positions = np.arange(T + past, dtype=np.int32)[rows]
        y = reference.attention(q[rows], k[rows], v[rows], pages, "f32", positions, np.array([0, len(positions)]), tables, 0.3, window)  # fmt: skip
    ahead = np.arange(past, T + past)[:, None] - np.arange(T + past)
    mask = torch.tensor((ahead >= 0) & ((ahead < window) | (window == 0)))
    q, k, v = (torch.tensor(x).transpose(0, 1) for x in (q[past:], k, v))
    truth = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=0.3, enable_gqa=True)
    np.testing.assert_allclose(y, truth.transpose(0, 1).reshape(T, -1), atol=1e-6)
