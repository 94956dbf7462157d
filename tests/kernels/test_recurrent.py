"""Recurrent layers against their twins."""

from itertools import pairwise

import numpy as np
import pytest

from qtransformers.errors import ConfigError
from qtransformers.kernels import cpu, reference

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


@pytest.mark.parametrize("lengths", [[1], [2], [100], [1, 5, 70], [3, 0, 4], [0], []])
@pytest.mark.parametrize("heads", [(1, 1), (2, 4), (3, 3)])
def test_gated_delta(lengths, heads):
    (y, states), (expected, theirs) = both(case(lengths, heads))
    assert y.dtype == np.float32 and y.shape == expected.shape and (not y.size or np.abs(expected).max() > 0.1)
    assert np.abs(y - expected).max(initial=0) < TOLERANCE
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


@pytest.mark.parametrize("dims", [(16, 8), (3, 5), (128, 128), (20, 70), (1, 1)])
def test_every_instruction_set(isa, dims):
    """Whole and partial vectors of columns, few and many tokens."""
    with cpu.Pool(2, isa):
        (y, states), (expected, theirs) = both(case([1, 2, 40], dims=dims))
    assert np.abs(y - expected).max() < TOLERANCE * max(1, np.abs(expected).max())
    for state, their in zip(states, theirs, strict=True):
        assert np.abs(state - their).max() < TOLERANCE * max(1, np.abs(their).max())


@pytest.mark.parametrize("channels, width", [(1, 1), (5, 2), (300, 4), (257, 9)])
def test_convolutions_on_every_instruction_set(isa, channels, width):
    rng = np.random.default_rng(2)
    lengths = [1, 0, 3, 150]
    x, kernel = random(rng, sum(lengths), channels), random(rng, channels, width)
    pasts = [random(rng, width - 1, channels) for _ in lengths]
    theirs = [p.copy() for p in pasts]
    starts = np.cumsum([0, *lengths]).astype(np.int32)
    with cpu.Pool(2, isa):
        y = cpu.causal_conv(x, kernel, starts, pasts)
    assert np.abs(y - reference.causal_conv(x, kernel, starts, theirs)).max() < 1e-5
    assert all(np.array_equal(past, their) for past, their in zip(pasts, theirs, strict=True))


def test_neither_threads_nor_chunks_change_a_bit():
    q, k, v, decay, beta, _, states = case([90], dims=(64, 128))
    found = []
    for threads, cuts in ((1, (0, 90)), (3, (0, 90)), (2, (0, 1, 33, 90))):
        own = [states[0].copy()]
        with cpu.Pool(threads):
            y = [
                cpu.gated_delta(q[a:b], k[a:b], v[a:b], decay[a:b], beta[a:b], np.array([0, b - a], np.int32), own)
                for a, b in pairwise(cuts)
            ]
        found.append((np.concatenate(y), own[0]))
    for y, state in found[1:]:
        assert np.array_equal(y, found[0][0]) and np.array_equal(state, found[0][1])


def test_what_is_no_number_stays_in_its_head():
    q, k, v, decay, beta, starts, states = case([5])
    v[2, 1] = np.nan
    y = cpu.gated_delta(q, k, v, decay, beta, starts, states)
    assert np.isnan(y[2:, 1]).all() and np.isfinite(y[:2]).all() and np.isfinite(y[:, [0, 2, 3]]).all()


@pytest.mark.parametrize("field, change, message", [
    (0, lambda q: q[:, :1], "q is"), (1, lambda k: k[:-1], "v is"), (1, lambda k: k[0], "k is"), (2, lambda v: v[:, :3], "expected a multiple"),
    (3, lambda x: x[:, :1], "fade is"), (4, lambda x: x[:1], "beta is"), (5, lambda s: s[:-1], "starts is"), (5, lambda s: s[::-1].copy(), "starts"),
    (5, lambda s: s.astype(np.int64), "gated_delta expects"), (6, lambda s: [x[:1] for x in s], "a state is"), (6, lambda s: [x.astype(np.float64) for x in s], "gated_delta expects"),
    (0, lambda q: None, "gated_delta expects"), (6, lambda s: [np.broadcast_to(np.float32(0), s[0].shape)], "gated_delta expects"),
])  # fmt: skip
def test_arguments_that_do_not_fit(field, change, message):
    arguments = list(case([4]))
    arguments[field] = change(arguments[field])
    with pytest.raises(ConfigError, match=message):
        cpu.gated_delta(*arguments)


@pytest.mark.parametrize("field, change, message", [
    (0, lambda x: x[0], "x is"), (1, lambda k: k[:2], "kernel is"), (1, lambda k: k[:, :0], "at least one"), (2, lambda s: s + 1, "starts runs"),
    (3, lambda p: [x[:1] for x in p], "a past is"), (3, lambda p: [], "starts is"), (3, lambda p: [None], "causal_conv expects"),
])  # fmt: skip
def test_convolutions_that_do_not_fit(field, change, message):
    rng = np.random.default_rng(1)
    arguments = [random(rng, 5, 6), random(rng, 6, 4), np.array([0, 5], np.int32), [random(rng, 3, 6)]]
    arguments[field] = change(arguments[field])
    with pytest.raises(ConfigError, match=message):
        cpu.causal_conv(*arguments)
