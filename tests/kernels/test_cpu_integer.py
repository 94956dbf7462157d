"""Products with rounded activations (accuracy="fast" and "high") against the twin in float64."""

import numpy as np
import pytest

from blocks import LIKE_AVX2, edge_blocks, random_blocks
from qtransformers.errors import ConfigError
from qtransformers.kernels import cpu, reference
from qtransformers.kernels.table import why_not
from qtransformers.native import lib
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME, TYPES

WEIGHTS = [t for t in TYPES.values() if why_not("linear", t) is None]
QUANTIZED = [t for t in WEIGHTS if t.is_quantized]
by_name = pytest.mark.parametrize("kind", QUANTIZED, ids=lambda t: t.name)
both = pytest.mark.parametrize("accuracy", ["high", "fast"])
PLANES, ONE_PLANE = 5e-5, 1e-2  # of the product of the norms of x and a row


def weight(kind, rows, cols, data=None):
    n = rows * cols // kind.block_size
    return QTensor(
        "blk.0.ffn_up.weight", kind, (rows, cols), random_blocks(kind, n) if data is None else data, "a.gguf"
    )


def outliers(tokens, cols, seed=0):
    """Activations as trained networks have them: channels of very different size, 1 in 500 twenty times as large."""
    rng = np.random.default_rng(seed)
    channel = np.exp(0.6 * rng.standard_normal(cols)) * np.where(rng.random(cols) < 0.002, 20, 1)
    return (rng.standard_normal((tokens, cols)) * channel).astype(np.float32)


def norms(x, tensor):
    """The product of the norms of each row of x and each of the weight, which errors are measured by."""
    rows = tensor.dequantize().astype(np.float64)
    return np.linalg.norm(x.astype(np.float64), axis=1)[:, None] * np.linalg.norm(rows, axis=1)


BOUND = {"high": PLANES, "fast": ONE_PLANE}


def assert_close(y, x, tensor, bias=None, accuracy="fast"):
    error = np.abs(y - reference.linear(x, tensor, bias).astype(np.float64))
    assert (error <= BOUND[accuracy] * (norms(x, tensor) + 1e-30)).all()


@by_name
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 6, 7, 8, 16, 37])
@pytest.mark.parametrize("rows, blocks", [(1, 1), (55, 3), (130, 5)])
def test_every_type(kind, rows, blocks, tokens, isa):
    cols = kind.block_size * blocks
    tensor, x = weight(kind, rows, cols), outliers(tokens, cols)
    bias = np.random.default_rng(1).standard_normal(rows).astype(np.float32)
    with cpu.Pool(2, isa):
        for accuracy in ("fast", "high"):
            assert_close(cpu.linear(x, cpu.bind(tensor, accuracy), bias), x, tensor, bias, accuracy)
            assert_close(cpu.linear(x, cpu.bind(tensor, accuracy)), x, tensor, None, accuracy)


@by_name
@pytest.mark.parametrize("tokens", [1, 2, 8, 20])
@pytest.mark.parametrize("cols", [2048 + 256, 12288])
def test_long_rows(kind, tokens, cols, isa):
    tensor, x = weight(kind, 19, cols), outliers(tokens, cols)
    with cpu.Pool(1, isa):
        assert_close(cpu.linear(x, cpu.bind(tensor, "fast")), x, tensor)


def gaussian(tokens, cols):
    return np.random.default_rng(2).standard_normal((tokens, cols)).astype(np.float32)


def flat(tokens, cols):
    """All of a sign: the largest sums that there are."""
    return np.where(np.arange(tokens) % 2, -1, 1).astype(np.float32)[:, None] * np.full(cols, 3, np.float32)


def alternating(tokens, cols):
    return flat(tokens, cols) * np.where(np.arange(cols) % 2, -1, 1).astype(np.float32)


@by_name
@both
@pytest.mark.parametrize("make", [outliers, flat, alternating])
@pytest.mark.parametrize("tokens", [1, 8, 17])
def test_extreme_blocks(kind, make, tokens, accuracy, isa):
    blocks, cols = edge_blocks(kind), 4 * kind.block_size
    rows = blocks.size // kind.row_bytes(cols)
    tensor = weight(kind, rows, cols, blocks[: rows * kind.row_bytes(cols)])
    x = make(tokens, cols)
    with cpu.Pool(2, isa):
        y, exact = cpu.linear(x, cpu.bind(tensor, accuracy)), cpu.linear(x, cpu.bind(tensor))
    scale = norms(x, tensor)
    sane = scale < 1e28  # beyond, a scale times a sum of codes is no float any more
    assert sane.any()
    error = np.abs(y[sane].astype(np.float64) - exact[sane])
    assert (error <= BOUND[accuracy] * scale[sane] + 1e-30).all()


@by_name
@pytest.mark.parametrize("at_once", [8, 40])
@pytest.mark.parametrize("make, most", [(gaussian, 0.008), (outliers, 0.014)])
def test_the_error_of_a_layer(kind, at_once, make, most, isa):
    """Of the norm of what comes out."""
    tensor, x = weight(kind, 96, 2048), make(40, 2048)
    with cpu.Pool(2, isa):
        w = cpu.bind(tensor, "fast")
        y = np.concatenate([cpu.linear(x[t : t + at_once], w) for t in range(0, len(x), at_once)])
    truth = reference.linear(x, tensor).astype(np.float64)
    assert np.linalg.norm(y - truth) <= most * np.linalg.norm(truth)


@by_name
@pytest.mark.parametrize("make", [outliers, flat, alternating])
@pytest.mark.parametrize("vnni", [isa for isa in lib.isas() if isa in LIKE_AVX2])
def test_sums_of_bytes_are_the_same_however_they_are_made(kind, make, vnni):
    blocks, cols = np.concatenate([edge_blocks(kind), random_blocks(kind, 300)]), 4 * kind.block_size
    rows = blocks.size // kind.row_bytes(cols)
    tensor, x = weight(kind, rows, cols, blocks[: rows * kind.row_bytes(cols)]), make(37, cols)
    results = []
    for isa in ("avx2", vnni):
        with cpu.Pool(2, isa):
            results.append(cpu.linear(x, cpu.bind(tensor, "fast")))
            y, exact = (cpu.linear(x[:6].copy(), cpu.bind(tensor, accuracy)) for accuracy in ("high", "exact"))
    assert np.array_equal(*results, equal_nan=True) and np.isfinite(results[0]).any()
    scale = norms(x[:6], tensor)
    sane = scale < 1e28  # beyond, a scale times a sum of codes is no float any more
    error = np.abs(y[sane].astype(np.float64) - exact[sane])
    assert (error <= PLANES * scale[sane] + 1e-30).all()


@both
@pytest.mark.parametrize("tokens", [3, 17, 70])
@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "IQ3_S", "F16"])
def test_rows_do_not_depend_on_how_many_there_are(name, tokens, accuracy, isa):
    """Rows are multiplied several at a time, and the last may be fewer: 47 once wrote past the 48 that a tile holds."""
    kind, most = BY_NAME[name], 97
    tensor, x = weight(kind, most, 256), outliers(tokens, 256)
    with cpu.Pool(1, isa):
        whole = cpu.linear(x, cpu.bind(tensor, accuracy))
        for rows in (*range(1, 20), *range(41, 51), 95, 96):
            part = weight(kind, rows, 256, tensor.data[: rows * kind.row_bytes(256)])
            np.testing.assert_array_equal(cpu.linear(x, cpu.bind(part, accuracy)), whole[:, :rows])


@both
@pytest.mark.parametrize("tokens", [1, 4, 5, 33])
@pytest.mark.parametrize("name", ["Q4_0", "Q4_K", "Q6_K", "IQ3_S"])
def test_results_do_not_depend_on_threads(name, tokens, accuracy, isa):
    tensor, x = weight(BY_NAME[name], 301, 768), outliers(tokens, 768)
    results = []
    for threads in (1, 2, 5):
        with cpu.Pool(threads, isa):
            results.append(cpu.linear(x, cpu.bind(tensor, accuracy)))
    assert all(np.array_equal(results[0], r) for r in results[1:])


@pytest.mark.parametrize("accuracy, few, many", [("fast", 1, 8), ("fast", 9, 40), ("high", 1, 4), ("high", 5, 40)])
@pytest.mark.parametrize("name", ["Q8_0", "Q5_K", "Q2_K", "IQ2_XS"])
def test_a_token_does_not_depend_on_the_others_of_its_regime(name, few, many, accuracy, isa):
    tensor, x = weight(BY_NAME[name], 77, 512), outliers(many, 512)
    with cpu.Pool(2, isa):
        w = cpu.bind(tensor, accuracy)
        assert np.array_equal(cpu.linear(x[:few].copy(), w), cpu.linear(x, w)[:few])


@by_name
@pytest.mark.parametrize("columns", [256, 1280])
def test_a_token_is_rounded_alike_for_few_and_for_many(kind, columns):
    """Sums differ in their order, and minima meet sums of x that are rounded where tokens are many."""
    tensor, x = weight(kind, 33, columns), outliers(40, columns)
    with cpu.Pool(2):
        w = cpu.bind(tensor, "fast")
        error = np.abs(cpu.linear(x[:3].copy(), w) - cpu.linear(x, w)[:3])
    assert (error <= 2e-4 * norms(x[:3], tensor)).all()


@both
@pytest.mark.parametrize("tokens", [1, 4, 40])
@pytest.mark.parametrize("name, field, large, small", [("MXFP4", "e", 254, 110), ("NVFP4", "d", 0x7E, 1)])
def test_zeros_with_a_large_scale_stay_zeros(name, field, large, small, tokens, accuracy, isa):
    """Beside blocks whose scale is the smallest."""
    kind, rows, columns = BY_NAME[name], 16, 1024
    data = random_blocks(kind, rows * columns // kind.block_size)
    blocks = data.view(kind.block).reshape(rows, -1)
    blocks[field] = small
    blocks[field][:, 0], blocks["qs"][:, 0] = large, 0
    tensor, x = weight(kind, rows, columns, data), gaussian(tokens, columns)
    assert not tensor.dequantize()[:, : kind.block_size].any()
    with cpu.Pool(1, isa):
        assert_close(cpu.linear(x, cpu.bind(tensor, accuracy)), x, tensor, None, accuracy)


@both
@pytest.mark.parametrize("tokens", [2, 9])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "IQ4_XS", "TQ2_0"])
def test_what_is_not_finite_stays_with_its_token(name, bad, tokens, accuracy, isa):
    tensor, x = weight(BY_NAME[name], 21, 512), outliers(tokens, 512)
    clean = x.copy()
    x[1, 300] = bad
    with cpu.Pool(2, isa):
        w = cpu.bind(tensor, accuracy)
        y, expected = cpu.linear(x, w), cpu.linear(clean, w)
    assert not np.isfinite(y[1]).any()
    others = [t for t in range(tokens) if t != 1]
    assert np.array_equal(y[others], expected[others])


@both
@pytest.mark.parametrize("tokens", [1, 16])
@pytest.mark.parametrize("scale", [0.0, 1e-44, 1e-30, 1e-8, 1e8, 1e25])
@pytest.mark.parametrize("name", ["Q4_K", "Q4_0", "IQ2_XXS"])
def test_activations_of_any_size(name, scale, tokens, accuracy, isa):
    tensor = weight(BY_NAME[name], 13, 512)
    x = (outliers(tokens, 512).astype(np.float64) * scale).astype(np.float32)
    with cpu.Pool(2, isa):
        assert_close(cpu.linear(x, cpu.bind(tensor, accuracy)), x, tensor, None, accuracy)


def test_plain_types_are_never_rounded(isa):
    for kind in (t for t in WEIGHTS if not t.is_quantized):
        tensor, x = weight(kind, 11, 96), outliers(7, 96)
        with cpu.Pool(2, isa):
            assert np.array_equal(cpu.linear(x, cpu.bind(tensor, "fast")), cpu.linear(x, cpu.bind(tensor)))


def test_an_unknown_accuracy_is_refused():
    with pytest.raises(ConfigError, match="accuracy='best'; expected one of exact, high, fast"):
        cpu.bind(weight(BY_NAME["Q4_0"], 1, 32), "best")
