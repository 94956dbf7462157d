"""The layout of pages and its codecs in NumPy; tests/kernels/test_cpu_attention.py holds the kernels against them, bit by bit."""

import numpy as np
import pytest

from qtransformers.kernels import cpu, kv

CODED = ["q8", "q6", "q4"]
SIDES = [True, False]


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def stored(x, name, is_key):
    """What a page gives back of `[256, D]`, turned as it was."""
    page = kv.encode_page(x, kv.KINDS[name], is_key)
    assert page.dtype == np.uint8
    assert page.size == (kv.key_bytes if is_key else kv.value_bytes)(kv.KINDS[name], x.shape[1])
    y = kv.decode_page(page, kv.KINDS[name], is_key, x.shape[1])
    return kv.rotate(y, kv.group(x.shape[1])) if kv.KINDS[name].planes else y


@pytest.mark.parametrize("n", [1, 2, 8, 16, 32])
def test_rotation_is_hadamard_and_its_own_inverse(n):
    matrix = kv.rotate(np.eye(n), n)
    np.testing.assert_allclose(np.abs(matrix), n**-0.5)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(n), atol=1e-12)
    x = floats(3, 5, 2 * n).astype(np.float64)
    np.testing.assert_allclose(kv.rotate(kv.rotate(x, n), n), x, atol=1e-12)


@pytest.mark.parametrize("d, length", [(64, 32), (80, 16), (40, 8), (96, 32), (112, 16), (192, 32), (13, 1), (256, 32)])
def test_groups_divide_heads(d, length):
    assert kv.group(d) == length


@pytest.mark.parametrize("is_key", SIDES)
@pytest.mark.parametrize("d", [1, 13, 40, 64])
def test_floats_come_back(d, is_key):
    x = floats(256, d)
    np.testing.assert_array_equal(stored(x, "f32", is_key), x)
    np.testing.assert_array_equal(stored(x, "f16", is_key), x.astype(np.float16).astype(np.float32))


# Root of the mean square of the error over that of normal values; found at most: 0.0053, 0.0211, 0.0860
@pytest.mark.parametrize("name, error", [("q8", 0.0055), ("q6", 0.022), ("q4", 0.09)])
@pytest.mark.parametrize("is_key", SIDES)
@pytest.mark.parametrize("d", [40, 64, 80, 128])
def test_round_trip(d, name, error, is_key):
    x = floats(256, d)
    off = stored(x, name, is_key) - x
    assert 0.5 * error < np.sqrt((off**2).mean()) / np.sqrt((x**2).mean()) < error


def test_rotation_tames_outliers():
    """One channel forty times as large: without rotation, its neighbours would drown in 4 bits."""
    x = floats(256, 64)
    x[:, 7] *= 40
    codes, scales = kv.quantise(x, 4)
    plain = (codes.astype(np.float32) - 8) * scales.astype(np.float32).repeat(32, 1) - x
    turned = stored(x, "q4", True) - x
    others = np.arange(64) != 7
    assert (turned[:, others] ** 2).mean() < 0.9 * (plain[:, others] ** 2).mean()


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_extremes(bits):
    """Zeros stay zeros, the farthest value is met within rounding of its scale, what is not finite becomes NaN, its group alone."""
    x = floats(9, 64)
    x[0] = 0
    x[1, :32], x[1, 32] = 0, -3
    x[2] = 1e-9  # below the halves
    x[3, 3], x[4, 4], x[5, 5], x[6, 6] = np.nan, np.inf, -np.inf, 3e38
    x[7, :32] = 5
    codes, scales = kv.quantise(x, bits)
    with np.errstate(invalid="ignore"):
        y = (codes.astype(np.float32) - (1 << bits - 1)) * scales.astype(np.float32).repeat(32, 1)
    assert not y[0].any() and not np.signbit(scales[0]).any()
    assert not y[1, :32].any() and y[1, 32] == pytest.approx(-3, rel=1e-3)
    assert not y[2].any()
    assert np.isnan(y[3:7, :32]).all() and np.isfinite(y[3:7, 32:]).all()
    np.testing.assert_allclose(y[7, :32], 5, rtol=1e-3)


@pytest.mark.parametrize("codec", kv.CODECS)
def test_stores_are_those_of_the_kernels(codec, isa):
    """All sorts of magnitudes, NaN and infinities, over the end of a page: the same bytes as from the kernels."""
    rng = np.random.default_rng(0)
    d, dv, n = 80, 40, 200
    k = (rng.standard_normal((n, 1, d)) * 10.0 ** rng.integers(-12, 8, (n, 1, 1))).astype(np.float32)
    v = (rng.standard_normal((n, 1, dv)) * 10.0 ** rng.integers(-12, 8, (n, 1, 1))).astype(np.float32)
    k[3, 0, 5], v[4, 0, 6], k[5, 0, 79], v[6] = np.nan, np.inf, -np.inf, 0
    k[7], v[8] = 0, -0.0
    positions = np.arange(171, 171 + n, dtype=np.int32)
    keys, values = kv.CODECS[codec]
    cut = kv.key_bytes(keys, d)
    expected = rng.integers(0, 256, (2, 1, kv.head_bytes(codec, d, dv)), np.uint8)
    found = expected.copy()
    for page in range(2):
        here = positions // kv.PAGE_TOKENS == page
        kv.store(expected[page, 0, :cut], keys, True, positions[here] % kv.PAGE_TOKENS, k[here, 0])
        kv.store(expected[page, 0, cut:], values, False, positions[here] % kv.PAGE_TOKENS, v[here, 0])
    with cpu.Pool(2, isa):
        starts, table = np.array([0, n], np.int32), np.arange(2, dtype=np.int32)[None]
        cpu.attention(np.zeros((n, 1, d), np.float32), k, v, found, codec, positions, starts, table, 1.0)
    if codec == "f16":  # a NaN is a NaN
        found, expected = (np.where((x.view(np.uint16) & 0x7FFF) > 0x7C00, 0x7E00, x.view(np.uint16)) for x in (found, expected))  # fmt: skip
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("codec", CODED)
def test_a_query_is_rounded_to_its_groups_largest(codec):
    x = floats(5, 96)
    limit = kv.KINDS[codec].query
    y = kv.quantise_query(x, limit)
    largest = np.abs(x.reshape(5, 3, 32)).max(-1, keepdims=True)
    assert np.abs(y - x).reshape(5, 3, 32).max() <= 0.501 * (largest / limit).max()
    x[0, 0] = np.inf
    assert np.isnan(kv.quantise_query(x, limit)[0, :32]).all()
