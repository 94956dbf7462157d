"""The vocabulary of models: each word runs where its array lives."""

import numpy as np
import pytest

from blocks import random_blocks
from qtransformers import nn
from qtransformers.cache import Batch, PagedCache
from qtransformers.errors import ConfigError
from qtransformers.kernels import cpu, kernels_for, reference
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_products_and_rows():
    tensor = QTensor("w", BY_NAME["Q4_K"], (6, 256), random_blocks(BY_NAME["Q4_K"], 6))
    w, x, bias, ids = cpu.bind(tensor), floats(3, 256), floats(6), np.array([5, 0], np.int32)
    np.testing.assert_allclose(nn.linear(x, w, bias), reference.linear(x, tensor, bias), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(nn.embedding(ids, w), reference.embedding(ids, tensor))
    np.testing.assert_allclose(nn.rms_norm(x, x[0], 1e-5), reference.rms_norm(x, x[0], 1e-5), rtol=1e-6)
    np.testing.assert_allclose(nn.activate(x, "silu", x), reference.activate(x, "silu", x), rtol=1e-6)


def test_attention_over_a_batch():
    """Prompts in pages taken from the cache, layer by layer, then a token each: what one dense attention gives."""
    cache = PagedCache.allocate(2, 2, 16, 12, 1024, codec="f32")
    n, pages = 300, cache.take(2)
    q, k, v = floats(n, 4, 16), floats(n, 2, 16, seed=1), floats(n, 2, 12, seed=2)
    parts = []
    for first, last in ((0, 255), (255, 256), (256, 300)):
        batch = Batch.single(np.zeros(last - first, np.int32), first, pages)
        rows = slice(first, last)
        parts.append(nn.attention(q[rows], k[rows], v[rows], cache, 1, batch, 0.25))
    scores = np.einsum("thd,shd->hts", q.astype(np.float64), k.repeat(2, 1)) * 0.25
    p = np.exp(np.where(np.tri(n, dtype=bool), scores, -np.inf))
    truth = np.einsum("hts,shd->thd", p / p.sum(-1, keepdims=True), v.repeat(2, 1)).reshape(n, -1)
    np.testing.assert_allclose(np.concatenate(parts), truth, atol=2e-6)
    assert not cache.pages[0].any()


@pytest.mark.parametrize("window", [0, 11])
def test_attention_within_a_batch(window):
    """Encoders: no cache, every token sees its whole sequence, or half a window on either side."""
    parts = [Batch.single(np.zeros(n, np.int32), 0, []) for n in (300, 1, 257)]
    q, k, v = floats(558, 4, 16), floats(558, 2, 16, seed=1), floats(558, 2, 12, seed=2)
    y = nn.attention(q, k, v, None, 0, Batch.join(parts), 0.25, window=window, causal=False)
    for first, last in ((0, 300), (300, 301), (301, 558)):
        rows = slice(first, last)
        n = last - first
        scores = np.einsum("thd,shd->hts", q[rows].astype(np.float64), k[rows].repeat(2, 1)) * 0.25
        far = np.abs(np.arange(n)[:, None] - np.arange(n)) > (window // 2 if window else n)
        p = np.exp(np.where(far, -np.inf, scores))
        truth = np.einsum("hts,shd->thd", p / p.sum(-1, keepdims=True), v[rows].repeat(2, 1)).reshape(n, -1)
        np.testing.assert_allclose(y[rows], truth, atol=2e-6)


def test_arrays_from_elsewhere_are_refused():
    with pytest.raises(TypeError, match=r"no kernels for builtins.list; expected a NumPy array"):
        nn.activate([1.0], "silu")
    assert kernels_for(floats(1)) is cpu


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_rope_frequencies(factor):
    freqs = nn.rope_frequencies(8, 10000.0)
    np.testing.assert_allclose(freqs, [1, 0.1, 0.01, 0.001])
    np.testing.assert_allclose(nn.rope_frequencies(8, 10000.0, scaling="linear", factor=factor), freqs / factor)
    factors = np.array([1, 2, 4, 8], np.float32)
    np.testing.assert_allclose(nn.rope_frequencies(8, 10000.0, factors=factors), freqs / factors)
    assert freqs.dtype == np.float64
    with pytest.raises(ConfigError, match="rope scaling is 'unheard'; expected one of none, linear"):
        nn.rope_frequencies(8, 10000.0, scaling="unheard")


def test_rope_turns_pairs():
    x, positions = floats(3, 2, 10), np.array([0, 7, 70_000], np.int32)
    freqs = nn.rope_frequencies(8, 10000.0)
    for interleaved in (True, False):
        y = nn.rope(x, positions, freqs, interleaved)
        np.testing.assert_allclose(y, reference.rope(x, positions, freqs, interleaved), atol=1e-6)
