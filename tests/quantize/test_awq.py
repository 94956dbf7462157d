"""The search for scales: it finds the loud columns, never does harm, and respects what is shared."""

import numpy as np
import pytest

from qtransformers.quantize import awq
from qtransformers.types import BY_NAME


def case(seed=0, n_in=256, loud=4):
    """A weight and inputs of which some columns are loud."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((1000, n_in))
    columns = rng.choice(n_in, loud, replace=False)
    x[:, columns] *= 30
    return rng.standard_normal((48, n_in)).astype(np.float32), x, columns


@pytest.mark.parametrize("name", ["Q4_K", "Q3_K", "Q2_K", "Q4_0"])
def test_loud_columns_are_enlarged_and_the_error_falls(name):
    w, x, columns = case()
    h, reader = x.T @ x / len(x), awq.Candidate(w, BY_NAME[name])
    s = awq.search([reader], 256, h, np.abs(x).mean(0))
    others = np.delete(s, columns)
    assert s[columns].mean() > 1.2 * others.mean()
    assert s.max() * s.min() == pytest.approx(1, rel=1e-4)
    plain = awq._error(reader, np.ones(256, np.float32), h.astype(np.float32))
    assert awq._error(reader, s, h.astype(np.float32)) < 0.99 * plain


def test_shared_scales_are_one_for_all_their_columns():
    w, x, _ = case(1)
    index = np.repeat(np.arange(2), 128) * 64 + np.tile(np.arange(64), 4)
    s = awq.search([awq.Candidate(w, BY_NAME["Q3_K"], index)], 128, x.T @ x / len(x), np.abs(x).mean(0))
    assert s.shape == (128,) and (s > 0).all()


def test_plain_types_and_even_inputs_need_none():
    w, x, _ = case(2)
    h = x.T @ x / len(x)
    assert (awq.search([awq.Candidate(w, BY_NAME["F16"])], 256, h, np.abs(x).mean(0)) == 1).all()
    zero = awq.Candidate(np.zeros_like(w), BY_NAME["Q4_K"])
    assert (awq.search([zero], 256, h, np.abs(x).mean(0)) == 1).all()


def test_columns_nothing_comes_to_get_finite_scales():
    w, x, _ = case(3)
    x[:, :16] = 0
    s = awq.search([awq.Candidate(w, BY_NAME["Q2_K"])], 256, x.T @ x / len(x), np.abs(x).mean(0))
    assert np.isfinite(s).all() and (s > 0).all()
