"""Recurrent layers by chunks against their twins token by token."""

import numpy as np
import pytest

from qtransformers.kernels import cpu, reference
from qtransformers.kernels.recurrent import CHUNK

TOLERANCE = 2e-5  # of outputs and states about 1


def random(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def case(lengths, heads=(2, 4), dims=(16, 8), seed=0, decay=1.0):
    """q, k, v, decay, beta, starts and states of sequences of these lengths."""
    rng = np.random.default_rng(seed)
    n, starts = sum(lengths), np.cumsum([0, *lengths]).astype(np.int32)
    q, k = random(rng, n, heads[0], dims[0]), random(rng, n, heads[0], dims[0])
    fade = (-decay * np.abs(random(rng, n, heads[1]))).astype(np.float32)
    beta = rng.uniform(0, 1, (n, heads[1])).astype(np.float32)
    return q, k, random(rng, n, heads[1], dims[1]), fade, beta, starts, [random(rng, heads[1], *dims) for _ in lengths]


def both(arguments):
    """Outputs and states of the fast form and of the twin."""
    *inputs, states = arguments
    results = []
    for module in (cpu, reference):
        own = [s.copy() for s in states]
        results.append((module.gated_delta(*inputs, own), own))
    return results


@pytest.mark.parametrize("lengths", [[1], [CHUNK], [CHUNK + 1], [100], [1, 5, 70], [3, 0, 4]])
@pytest.mark.parametrize("heads", [(1, 1), (2, 4), (3, 3)])
def test_gated_delta(lengths, heads):
    (y, states), (expected, theirs) = both(case(lengths, heads))
    assert y.dtype == np.float32 and np.abs(expected).max() > 0.1
    assert np.abs(y - expected).max() < TOLERANCE
    for state, their in zip(states, theirs, strict=True):
        assert np.abs(state - their).max() < TOLERANCE


@pytest.mark.parametrize("decay", [0.0, 1e-3, 50.0, 1e4])
def test_states_that_fade_never_or_at_once(decay):
    (y, states), (expected, theirs) = both(case([80], decay=decay))
    assert np.isfinite(y).all()
    assert np.abs(y - expected).max() < TOLERANCE * max(1, np.abs(expected).max())
    assert np.abs(states[0] - theirs[0]).max() < TOLERANCE * max(1, np.abs(theirs[0]).max())


def test_keys_of_zeros_write_nothing():
    arguments = list(case([40], decay=0.0))
    arguments[1] = np.zeros_like(arguments[1])
    (y, states), (expected, _) = both(arguments)
    assert np.array_equal(states[0], arguments[-1][0]) and np.abs(y - expected).max() < TOLERANCE


def test_repeated_keys_are_overwritten():
    """With full strength and no fading, what is read at a key is what was written there last."""
    _, k, v, decay, beta, starts, states = case([50], heads=(1, 1), decay=0.0)
    k[:] = k[0]
    y = cpu.gated_delta(k, k, v, decay, beta * 0 + 1, starts, states)
    assert np.abs(y * 16**0.5 - v).max() < 1e-4


def test_in_parts_as_at_once():
    q, k, v, decay, beta, starts, states = case([90])
    whole = [states[0].copy()]
    expected = cpu.gated_delta(q, k, v, decay, beta, starts, whole)
    parts = [
        cpu.gated_delta(q[t], k[t], v[t], decay[t], beta[t], np.array([0, t.stop - t.start], np.int32), states)
        for t in (slice(0, 1), slice(1, 50), slice(50, 90))
    ]
    assert np.abs(np.concatenate(parts) - expected).max() < TOLERANCE
    assert np.abs(states[0] - whole[0]).max() < TOLERANCE


@pytest.mark.parametrize("lengths", [[1], [2], [10], [1, 0, 30, 2]])
@pytest.mark.parametrize("width", [2, 4])
def test_causal_conv(lengths, width):
    rng = np.random.default_rng(1)
    x, kernel = random(rng, sum(lengths), 6), random(rng, 6, width)
    pasts = [random(rng, width - 1, 6) for _ in lengths]
    starts = np.cumsum([0, *lengths]).astype(np.int32)
    theirs = [p.copy() for p in pasts]
    y, expected = cpu.causal_conv(x, kernel, starts, pasts), reference.causal_conv(x, kernel, starts, theirs)
    assert np.abs(y - expected).max() < 1e-5
    for past, their in zip(pasts, theirs, strict=True):
        assert np.array_equal(past, their)
