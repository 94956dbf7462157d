"""Norm, gate and rotation against the twins in float64."""

import numpy as np
import pytest

from qtransformers.errors import ConfigError
from qtransformers.kernels import cpu, reference
from qtransformers.kernels.table import FUNCTIONS
from qtransformers.nn import rope_frequencies

EPS = np.finfo(np.float32).eps
TINY = np.finfo(np.float32).smallest_subnormal


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def assert_ulps(found, truth, ulps):
    """Within `ulps` of the last place of the truth, float64 or float32; infinite and NaN where the truth is."""
    assert found.dtype == np.float32
    assert found.shape == truth.shape
    finite = np.isfinite(truth)
    np.testing.assert_array_equal(found[~finite], truth[~finite])
    assert (
        np.abs(found[finite] - truth[finite].astype(np.float64)) <= ulps * (EPS * np.abs(truth[finite]) + TINY)
    ).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 15), (3, 16), (5, 17), (2, 3, 64), (2048,), (40, 2051), (0, 8)])
def test_rms_norm(shape, isa):
    x, weight = floats(*shape), floats(shape[-1], seed=1)
    with cpu.Pool(2, isa):
        y = cpu.rms_norm(x, weight, 1e-5)
    assert_ulps(y, reference.rms_norm(x, weight, 1e-5), 1)


@pytest.mark.parametrize("size", [0, 1e-45, 1e-30, 1e19, 3e38])
def test_rms_norm_of_extremes(size, isa):
    x, weight = floats(4, 100).clip(-1, 1) * np.float32(size), floats(100, seed=1)
    x[3] = 0
    with cpu.Pool(1, isa):
        y = cpu.rms_norm(x, weight, 1e-6)
    assert_ulps(y, reference.rms_norm(x, weight, 1e-6), 1)
    assert np.isfinite(y).all()
    assert (y[3] == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 15, 31, 99])
def test_rms_norm_keeps_bad_rows_apart(bad, place, isa):
    x, weight = floats(3, 100), floats(100, seed=1)
    x[1, place] = bad
    with np.errstate(invalid="ignore"):
        truth = reference.rms_norm(x, weight, 1e-6)
    with cpu.Pool(1, isa):
        y = cpu.rms_norm(x, weight, 1e-6)
    assert np.isnan(truth[1, place])
    assert_ulps(y, truth, 1)


def test_rms_norm_does_not_depend_on_threads_or_batch(isa):
    x, weight = floats(100, 1111), floats(1111, seed=1)
    with cpu.Pool(1, isa):
        whole = cpu.rms_norm(x, weight, 1e-5)
        np.testing.assert_array_equal(cpu.rms_norm(x[7], weight, 1e-5), whole[7])
    with cpu.Pool(3, isa):
        np.testing.assert_array_equal(cpu.rms_norm(x, weight, 1e-5), whole)


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 33, 100_003])
def test_silu(n, isa):
    gate, up = 8 * floats(n), floats(n, seed=1)
    with cpu.Pool(2, isa):
        y = cpu.activate(gate, "silu", up)
    assert_ulps(y, reference.activate(gate, "silu", up), 4)


def test_silu_over_the_whole_range(isa):
    sizes = np.geomspace(1e-45, 3e38, 4001)
    gate = np.concatenate([sizes, -sizes, np.linspace(-110, 110, 4001), [0.0, -0.0]]).astype(np.float32)
    with cpu.Pool(1, isa):
        for scale in (1, 1e-30, 1e30):
            up = np.full_like(gate, scale)
            with np.errstate(over="ignore"):
                truth = gate.astype(np.float64) / (1 + np.exp(-gate.astype(np.float64))) * up
                rounded = truth.astype(np.float32)
            y = cpu.activate(gate, "silu", up)
            usual = (gate > -80) & ~((gate != 0) & (np.abs(gate) < 1e-37))  # the smallest numbers have few digits
            assert_ulps(y[usual], np.where(np.isinf(rounded), rounded, truth)[usual], 4)
            assert (np.abs(y - truth)[~usual] <= 1e-5 * np.abs(truth[~usual]) + max(scale, 1e-3) * 1e-42).all()


def test_silu_propagates(isa):
    gate = np.array([np.nan, np.inf, -np.inf, np.inf, 1, 1, -200, 0, -0.0], np.float32)
    up = np.array([1, 2, 1, 0, np.nan, -np.inf, 3, np.inf, 5], np.float32)
    with np.errstate(invalid="ignore"):
        truth = reference.activate(gate, "silu", up)
    with cpu.Pool(1, isa):
        assert_ulps(cpu.activate(gate, "silu", up), truth, 4)


def test_activations_keep_the_shape():
    x = floats(2, 3, 5)
    flat = cpu.activate(x.reshape(-1), "silu", x.reshape(-1))
    np.testing.assert_array_equal(cpu.activate(x, "silu", x), flat.reshape(x.shape))


@pytest.mark.parametrize("shape", [(1, 1), (1, 15), (3, 16), (5, 17), (2, 3, 64), (2048,), (40, 2051), (0, 8)])
@pytest.mark.parametrize("biased", [True, False])
def test_layer_norm(shape, biased, isa):
    x, weight, bias = floats(*shape) + 3, floats(shape[-1], seed=1), floats(shape[-1], seed=2) if biased else None
    with cpu.Pool(2, isa):
        y = cpu.layer_norm(x, weight, bias, 1e-5)
    truth = reference.layer_norm(x, weight, bias, 1e-5)
    assert y.dtype == np.float32 and y.shape == truth.shape
    np.testing.assert_allclose(y, truth, rtol=2 * EPS, atol=2 * EPS)


@pytest.mark.parametrize("size", [0, 1e-45, 1e-30, 1e19, 3e38])
def test_layer_norm_of_extremes(size, isa):
    """A large mean takes no digits from what stands out of it."""
    x, weight, bias = floats(4, 100).clip(-1, 1) * np.float32(size), floats(100, seed=1), floats(100, seed=2)
    x[2] = 1e4 + floats(100) * np.float32(0.01)
    x[3] = 7
    with cpu.Pool(1, isa):
        y = cpu.layer_norm(x, weight, bias, 1e-6)
    np.testing.assert_allclose(y, reference.layer_norm(x, weight, bias, 1e-6), rtol=4 * EPS, atol=4 * EPS)
    np.testing.assert_array_equal(y[3], bias)


def test_layer_norm_keeps_bad_rows_apart(isa):
    x, weight = floats(3, 100), floats(100, seed=1)
    x[1, 7] = np.inf
    with cpu.Pool(1, isa):
        y = cpu.layer_norm(x, weight, None, 1e-6)
    assert np.isnan(y[1]).all() and np.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize("act", FUNCTIONS)
@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 100_003])
def test_activations(act, n, isa):
    """Relative to the truth, but for the exponent's own rounding far out."""
    x, up = 4 * floats(n), floats(n, seed=1)
    with cpu.Pool(2, isa):
        alone, gated = cpu.activate(x, act), cpu.activate(x, act, up)
    for found, truth in ((alone, reference.activate(x, act)), (gated, reference.activate(x, act, up))):
        assert found.dtype == np.float32 and found.shape == truth.shape
        np.testing.assert_allclose(found, truth, rtol=4e-5, atol=2e-7)
    assert n < 1000 or np.ptp(alone) > 0.9


@pytest.mark.parametrize("act", FUNCTIONS)
def test_activations_over_the_whole_range(act, isa):
    sizes = np.geomspace(1e-45, 3e38, 4001)
    x = np.concatenate([sizes, -sizes, np.linspace(-110, 110, 4001), [0.0, -0.0, np.nan, np.inf]]).astype(np.float32)
    truth = reference.activate(x, act)
    with cpu.Pool(1, isa):
        found = cpu.activate(x, act)
    np.testing.assert_allclose(found, truth, rtol=2e-6, atol=2e-7)


def test_unknown_activations_and_other_shapes():
    for call, message in (
        (lambda: cpu.activate(floats(3), "relu6"), r"act='relu6'; expected one of silu, gelu,"),
        (lambda: cpu.activate(floats(2, 3), "silu", floats(3, 2)), r"x is \[2, 3\] and up is \[3, 2\]"),
        (lambda: cpu.layer_norm(floats(2, 3), floats(2), None, 1e-6), r"weight is \[2\]"),
        (lambda: cpu.layer_norm(floats(2, 3), floats(3), floats(4), 1e-6), r"bias is \[4\]"),
        (lambda: cpu.layer_norm(floats(2, 3).tolist(), floats(3), None, 1e-6), "found list"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()


def test_rope_with_a_magnitude(isa):
    x, freqs = floats(5, 3, 40), rope_frequencies(32, 10_000.0)
    positions = np.arange(5, dtype=np.int32)
    with cpu.Pool(1, isa):
        for interleaved in (True, False):
            found = cpu.rope(x, positions, freqs, interleaved, 1.25)
            np.testing.assert_allclose(
                found[..., :32], 1.25 * cpu.rope(x, positions, freqs, interleaved)[..., :32], rtol=1e-5, atol=1e-6
            )
            np.testing.assert_array_equal(found[..., 32:], x[..., 32:])
            np.testing.assert_allclose(
                found[..., :32], reference.rope(x, positions, freqs, interleaved, 1.25)[..., :32], rtol=1e-5, atol=1e-6
            )


POSITIONS = np.array([0, 1, 2, 3, 100, 4095, 131_071, 999_999, 1_000_000, 2**31 - 1], np.int32)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("heads, dim, rotated", [(1, 2, 2), (3, 64, 64), (2, 128, 128), (5, 80, 32), (2, 77, 70), (1, 13, 0), (4, 6, 6), (2, 96, 94)])  # fmt: skip
def test_rope(heads, dim, rotated, interleaved, isa):
    x = floats(len(POSITIONS), heads, dim)
    freqs = rope_frequencies(max(rotated, 1), 10000.0)[: rotated // 2]
    with cpu.Pool(2, isa):
        y = cpu.rope(x, POSITIONS, freqs, interleaved)
    truth = reference.rope(x, POSITIONS, freqs, interleaved)
    assert y.dtype == np.float32
    assert np.abs(y - truth).max() <= 2 * EPS * np.abs(x).max()
    np.testing.assert_array_equal(y[..., rotated:], x[..., rotated:])
    np.testing.assert_array_equal(y[0], x[0])


def test_turns_are_exact_to_the_last_place(isa):
    """Cosine and sine themselves: pairs (1, 0), angles small and large, on and off multiples of pi / 2."""
    rng = np.random.default_rng(0)
    freqs = np.concatenate([rng.uniform(0, 1, 500), np.arange(1, 500) * np.pi / 2, [0.0, 1e-12, 1e-300, 7.5, 1e4, 1e9]])
    positions = np.concatenate([np.arange(50), rng.integers(0, 2**31 - 1, 50), [-1, -1000]]).astype(np.int32)
    x = np.zeros((len(positions), 1, 2 * len(freqs)), np.float32)
    x[..., : len(freqs)] = 1
    with cpu.Pool(1, isa):
        y = cpu.rope(x, positions, freqs, False)[:, 0]
    angle = positions[:, None] * freqs
    truth = np.concatenate([np.cos(angle), np.sin(angle)], 1)
    assert np.abs(y - truth).max() <= 0.51 * EPS


def test_rope_of_nan_and_infinity(isa):
    x = floats(2, 1, 8)
    x[0, 0, 1], x[1, 0, 2] = np.nan, np.inf
    freqs = rope_frequencies(8, 10000.0)
    positions = np.array([5, 6], np.int32)
    with cpu.Pool(1, isa):
        for interleaved in (True, False):
            y = cpu.rope(x, positions, freqs, interleaved)
            with np.errstate(invalid="ignore"):
                truth = reference.rope(x, positions, freqs, interleaved)
            np.testing.assert_array_equal(np.isfinite(y), np.isfinite(truth))


def test_rope_does_not_depend_on_threads(isa):
    x, positions = floats(300, 3, 66), np.arange(300, dtype=np.int32)
    freqs = rope_frequencies(64, 500000.0)
    with cpu.Pool(1, isa):
        whole = cpu.rope(x, positions, freqs, True)
        np.testing.assert_array_equal(cpu.rope(x[9:10], positions[9:10], freqs, True), whole[9:10])
    with cpu.Pool(3, isa):
        np.testing.assert_array_equal(cpu.rope(x, positions, freqs, True), whole)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: cpu.rms_norm(floats(2, 3), floats(4), 1e-5), r"weight is \[4\]; expected \[3\]"),
        (lambda: cpu.rms_norm(np.zeros((), np.float32), floats(1), 1e-5), "single number"),
        (lambda: cpu.rms_norm(floats(2, 3), None, 1e-5), "found float32 .2, 3., None, 1e-05"),
        (lambda: cpu.activate(floats(2, 3), "silu", floats(2, 3).tolist()), "found float32 .2, 3., list"),
        (lambda: cpu.rope(floats(2, 3), POSITIONS[:2], np.ones(1), True), r"x is \[2, 3\]; expected \[any, any, any\]"),
        (lambda: cpu.rope(floats(2, 3, 4), POSITIONS[:3], np.ones(1), True), r"positions is \[3\]; expected \[2\]"),
        (lambda: cpu.rope(floats(2, 3, 4), POSITIONS[:2], np.ones(3), True), "rotates 6 values of heads of 4"),
        (lambda: cpu.rope(floats(2, 3, 4), np.arange(2.0), np.ones(2), True), r"positions \[T\] int32.*found.*float64 \[2\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()
