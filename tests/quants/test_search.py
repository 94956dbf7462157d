"""Encoders that search: never worse than libggml's, the same bits whoever computes, every step open to others."""

import json

import numpy as np
import pytest

from blocks import random_blocks, usable_isas
from qtransformers.errors import ConfigError, UnsupportedError
from qtransformers.quants import fit, pack, quantize, reference_dequantize, reference_quantize, round_to, unpack
from qtransformers.quants.reference import SEARCH
from qtransformers.quants.search import GRIDS
from qtransformers.types import BY_NAME
from weights import errors, importance, samples

each_type = pytest.mark.parametrize("type", [BY_NAME[name] for name in SEARCH], ids=str)
each_grid = pytest.mark.parametrize("type", [BY_NAME[name] for name in GRIDS], ids=str)
SAMPLES = samples()
SAME = 1 + 1e-5  # where there is only one way to do it, as in Q1_0 without importance: the goldens have six digits
MORE_ALLOWED = dict.fromkeys(("Q3_K", "IQ4_NL", "IQ4_XS"), 1.02)  # of errors that were not searched for


@pytest.fixture(scope="module")
def goldens(data):
    return json.loads((data / "goldens" / "errors.json").read_text())


@each_type
@pytest.mark.parametrize("weighted", [False, True])
def test_errors_are_at_most_those_of_libggml(type, weighted, goldens):
    for name, x in SAMPLES.items():
        ours = errors(quantize(x, type, importance=importance(x) if weighted else None), x, type, weighted)
        theirs = goldens[type.name][f"{name}, with importance" if weighted else name]
        assert 0 < ours["searched"] <= theirs["searched"] * SAME, name
        assert ours["columns"] <= theirs["columns"] * MORE_ALLOWED.get(type.name, SAME), name


def hard(type) -> np.ndarray:
    """Rows that a search may stumble over: zeros, constants, one value alone, tiny, huge, mixed magnitudes, already on a grid."""
    rng = np.random.default_rng(0)
    n = 512
    alone = np.zeros(n)
    alone[77] = -3
    mixed = rng.standard_normal(n) * np.exp2(rng.integers(-30, 10, n))
    on_grid = reference_dequantize(random_blocks(type, n // type.block_size), type)
    rows = [np.zeros(n), np.ones(n), -np.ones(n), alone, np.full(n, 1e-30), np.full(n, 1e-7), mixed, on_grid,
            rng.choice([-65504, 65504], n), rng.standard_normal(n) * 1e-6, np.abs(rng.standard_normal(n)), rng.choice([-1, 0, 1], n)]  # fmt: skip
    return np.array(rows, np.float32)


@each_type
def test_c_plus_plus_encodes_as_numpy_on_every_instruction_set(type):
    for x in (*(x[:8] for x in SAMPLES.values()), hard(type)):
        for weights in (None, importance(x)):
            truth = reference_quantize(x, type, weights)
            for isa in usable_isas():
                np.testing.assert_array_equal(quantize(x, type, importance=weights, isa=isa), truth, err_msg=isa)


@each_type
def test_hard_rows_come_back(type):
    x = hard(type)
    back = reference_dequantize(quantize(x, type), type).reshape(x.shape)
    assert np.isfinite(back).all()
    assert not back[0].any()
    assert (np.abs(back) <= 2.5 * np.abs(x).max(1, keepdims=True) + 1e-6).all()


@each_type
def test_columns_that_count_err_less(type):
    x = SAMPLES["gauss"]
    weights = np.full(x.shape[1], 1e-3, np.float32)
    weights[::4] = 10
    plain, weighted = (
        ((reference_dequantize(quantize(x, type, importance=w), type).reshape(x.shape) - x)[:, ::4] ** 2).sum()
        for w in (None, weights)
    )
    assert weighted < plain


@each_type
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 7e4])
def test_what_no_half_holds_is_refused_with_its_place(type, bad):
    x = np.ones((7, 512), np.float32)
    x[5, 300] = bad
    first = 300 // type.block_size * type.block_size
    for threads in (1, 3):
        with pytest.raises(
            ConfigError,
            match=rf"row 5, columns {first}\.\.{first + type.block_size - 1} hold NaN.*{type.name} cannot store",
        ):
            quantize(x, type, threads=threads)


@each_type
def test_importance_that_cannot_be(type):
    x = np.ones((2, 512), np.float32)
    for weights, found in (
        (np.ones(511, np.float32), r"\[511\]; expected float32 \[512\]"),
        (np.ones(512), "float64"),
        (np.where(np.arange(512) == 9, np.nan, 1).astype(np.float32), "column 9 is nan"),
        (np.where(np.arange(512) == 8, -1, 1).astype(np.float32), "column 8 is -1"),
    ):
        for encode in (quantize, reference_quantize):
            with pytest.raises(ConfigError, match=found):
                encode(x, type, importance=weights)


@each_type
def test_importance_of_nothing_but_zeros_and_of_any_size(type):
    x = SAMPLES["gauss"][:4]
    nothing = np.zeros(x.shape[1], np.float32)
    np.testing.assert_array_equal(
        quantize(x, type, importance=nothing), quantize(x, type, importance=nothing + np.float32(1))
    )
    w = importance(x)
    for factor in (2.0**-60, 2.0**60):
        np.testing.assert_array_equal(
            quantize(x, type, importance=w), quantize(x, type, importance=w * np.float32(factor))
        )


@each_type
def test_threads_and_slabs_change_nothing(type):
    x = SAMPLES["tails"]
    w = importance(x)
    whole = quantize(x, type, importance=w)
    np.testing.assert_array_equal(whole, quantize(x, type, importance=w, threads=3))
    np.testing.assert_array_equal(
        whole, np.concatenate([quantize(x[i : i + 5], type, importance=w) for i in range(0, len(x), 5)])
    )
    assert quantize(x[:0], type).size == 0


@each_grid
def test_fitting_rounding_and_packing_are_encoding(type):
    x = SAMPLES["tails"]
    scales = fit(x, type, importance=importance(x))
    q = round_to(x, type, scales)
    blocks = pack(q, type, scales)
    if type.name != "Q8_0":  # which rounds by the scale before it becomes a half
        np.testing.assert_array_equal(blocks, quantize(x, type, importance=importance(x)))
    n = x.size // type.block_size
    assert scales.d.shape == scales.dmin.shape == (n,)
    assert scales.sc.shape == scales.m.shape == (n, type.block_size // GRIDS[type.name].group)
    values = scales.steps[..., None] * q.reshape(*scales.sc.shape, -1) - scales.minima[..., None]
    np.testing.assert_array_equal(values.ravel(), reference_dequantize(blocks, type))


@each_grid
def test_any_block_is_unpacked_and_packed_again(type):
    codes_for_all_bits = type.family != "ternary"
    for blocks in (
        random_blocks(type, 300) if codes_for_all_bits else quantize(SAMPLES["gauss"], type),
        quantize(SAMPLES["tails"], type),
    ):
        q, scales = unpack(blocks, type)
        np.testing.assert_array_equal(pack(q, type, scales), blocks)


@each_grid
def test_codes_and_scales_that_do_not_fit_are_refused(type):
    q, scales = unpack(quantize(SAMPLES["gauss"], type), type)
    with pytest.raises(ConfigError, match=r"codes: found .* expected .* from"):
        pack(q[:1], type, scales)
    if type.name != "Q8_0":
        with pytest.raises(ConfigError, match="codes: found"):
            pack(np.full(q.shape, GRIDS[type.name].high + 1), type, scales)


def test_types_without_a_grid():
    for call in (lambda t: fit(SAMPLES["gauss"], t), lambda t: unpack(np.zeros(0, np.uint8), t)):
        with pytest.raises(UnsupportedError, match=r"IQ2_XS has no grid of codes; expected one of Q4_0"):
            call(BY_NAME["IQ2_XS"])
