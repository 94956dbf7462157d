"""Refined weights: less error over their inputs than any rounding of values alone, in blocks that decode to what was computed."""

import numpy as np
import pytest

from qtransformers.errors import ConfigError
from qtransformers.quantize import refine as r
from qtransformers.quants import dequantize, quantize
from qtransformers.quants.search import GRIDS
from qtransformers.types import BY_NAME


def inputs(n_in, n=2000, seed=0):
    """The mean of x x^T of correlated inputs with a few loud columns."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, n_in)) @ (np.eye(n_in) + 0.5 * rng.standard_normal((n_in, n_in)) / n_in**0.5)
    x[:, rng.choice(n_in, 6, replace=False)] *= 8
    return x.T @ x / n


def off(blocks, type, w, h):
    e = dequantize(blocks, type).reshape(w.shape).astype(np.float64) - w
    return np.einsum("oi,ij,oj->", e, h, e)


@pytest.mark.parametrize("name", list(GRIDS))
def test_error_falls_well_below_that_of_weighted_rounding(name):
    type, rng = BY_NAME[name], np.random.default_rng(1)
    w = rng.standard_t(4, (24, 512)).astype(np.float32)
    h = inputs(512)
    weighted = off(quantize(w, type, importance=np.ascontiguousarray(h.diagonal(), np.float32)), type, w, h)
    found = r.refine(w, type, h)
    blocks = found.blocks()
    np.testing.assert_array_equal(dequantize(blocks, type).reshape(w.shape), found.values().T)
    assert off(blocks, type, w, h) < 0.75 * weighted


def test_each_round_lowers_the_error_of_every_row():
    w, h = np.random.default_rng(2).standard_normal((16, 256)).astype(np.float32), inputs(256)
    target = np.ascontiguousarray(w.T)
    h32 = (h + np.eye(256) * (r.DAMP * np.trace(h) / 256 + 1e-12)).astype(np.float32)
    errors = [r.error(r.refine(w, BY_NAME["Q3_K"], h, rounds=n).values(), target, h32) for n in (0, 1, 3)]
    assert (errors[1] <= errors[0] * (1 + 1e-4)).all() and (errors[2] <= errors[1] * (1 + 1e-4)).all()
    assert errors[1].sum() < 0.95 * errors[0].sum()


def test_rows_times_factors_are_the_same_codes():
    w, h = np.random.default_rng(3).standard_normal((8, 256)).astype(np.float32), inputs(256)
    found = r.refine(w, BY_NAME["Q4_K"], h, rounds=1)
    factors = np.exp2(np.arange(-4, 4)).astype(np.float32)
    scaled = dequantize(found.blocks(factors), BY_NAME["Q4_K"]).reshape(8, 256)
    np.testing.assert_allclose(scaled, found.values().T * factors[:, None], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("values", [np.zeros((2, 256)), np.full((2, 256), 3.0), np.eye(2, 256) * 1e4])
def test_odd_weights(values):
    h = inputs(256)
    for name in GRIDS:
        found = dequantize(r.refine(values.astype(np.float32), BY_NAME[name], h).blocks(), BY_NAME[name]).reshape(
            2, 256
        )
        assert np.isfinite(found).all()
        assert np.abs(found - values).max() <= 0.2 * np.abs(values).max()


def test_inputs_that_never_come_are_no_trouble():
    w = np.random.default_rng(4).standard_normal((4, 256)).astype(np.float32)
    h = np.zeros((256, 256))
    h[0, 0] = 1
    found = r.refine(w, BY_NAME["Q4_K"], h).values()
    assert np.abs(found - w.T).max() < 0.5 and np.abs(found[0] - w[:, 0]).max() < 0.1


@pytest.mark.parametrize("h", [np.zeros((2, 2)), np.full((256, 256), np.nan)])
def test_wrong_inputs(h):
    with pytest.raises(ConfigError, match=r"256, 256"):
        r.refine(np.zeros((1, 256), np.float32), BY_NAME["Q4_K"], h)
