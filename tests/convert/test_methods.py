"""Layers of checkpoints that were quantised: read, repacked, refused."""

import numpy as np
import pytest

from convert import layouts
from convert.published import ADDED, AWQ, CASES, CT, GPTQ, source, stored
from qtransformers.convert.methods import sources_of
from qtransformers.errors import LoadError, UnsupportedError
from qtransformers.load.checkpoint import interleave
from qtransformers.types import BY_NAME


def made(case):
    layout, said, how, type_ = CASES[case]
    codes, zeros, scales, values, noise = layouts.grid(**{"shape": (16, 512), "group": 128, **how})
    return source(layout(codes, zeros, scales), said), values, noise, type_


@pytest.mark.parametrize("case", CASES)
def test_every_value_is_read(case):
    found, values, _, type_ = made(case)
    assert found.shape == values.shape and str(found.type) == str(type_)
    for rows in (slice(None), slice(3, 11), np.array([15, 0, 7, 8]), interleave(16, 4)):
        np.testing.assert_allclose(found.rows(rows), values[rows], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("case", [c for c in CASES if CASES[c][3]])
def test_its_type_holds_it_without_rounding_anew(case):
    found, values, noise, type_ = made(case)
    type_ = BY_NAME[type_]
    from qtransformers.quants import reference_dequantize

    n = len(values)
    for rows in (slice(0, n), interleave(n, 4)):
        back = reference_dequantize(found.blocks(rows, type_), type_).reshape(n, -1)
        added = float(((back - values[rows]) ** 2).sum()) / noise
        bound = 6e-3 if "groups of 64" in case else ADDED[type_.name]
        assert added <= bound and (bound == 0 or added < 0.1 * noise_of_rounding_anew(values, type_) / noise)


def noise_of_rounding_anew(values, type_):
    from qtransformers.quants import dequantize, quantize

    x = np.ascontiguousarray(values, np.float32)
    return float(((dequantize(quantize(x, type_), type_).reshape(x.shape) - values) ** 2).sum())


@pytest.mark.parametrize("case, type_", [("awq gemm", "Q8_0"), ("gptq", "Q8_0"), ("awq gemm", "Q4_1"), ("gptq", "Q4_1"), ("gptq", "Q4_K")])  # fmt: skip
def test_other_types_that_hold_it(case, type_):
    from qtransformers.quants import reference_dequantize

    found, values, noise, _ = made(case)
    back = reference_dequantize(found.blocks(slice(0, 16), BY_NAME[type_]), BY_NAME[type_]).reshape(16, -1)
    assert ((back - values) ** 2).sum() / noise <= ADDED[type_]
    assert found.blocks(slice(0, 16), BY_NAME["Q6_K"]) is None


def test_negative_scales():
    codes, zeros, scales, values, noise = layouts.grid((128, 512), 128)
    scales[:, 1::2] *= -1
    values.reshape(128, 4, 128)[:, 1::2] *= -1
    found = source(layouts.awq_gemm(codes, zeros, scales), AWQ)
    from qtransformers.quants import reference_dequantize

    back = reference_dequantize(found.blocks(slice(0, 128), BY_NAME["Q4_K"]), BY_NAME["Q4_K"]).reshape(128, -1)
    assert ((back - values) ** 2).sum() / noise < ADDED["Q4_K"]


def a_grid(**how):
    return layouts.grid(**{"shape": (16, 512), "group": 128, **how})[:3]


@pytest.mark.parametrize(
    "parts, said, error, message",
    [
        (lambda: layouts.gptq(*a_grid(), order=np.random.default_rng(0).permutation(512) // 128), GPTQ, UnsupportedError, r"x\.g_idx orders columns by activation \(act-order, desc_act\)"),
        (lambda: layouts.compressed_words(*a_grid(symmetric=True)) | {"weight_g_idx": np.arange(512)[::-1] // 128}, CT, UnsupportedError, "act-order"),
        (lambda: layouts.gptq(*a_grid()), {**GPTQ, "bits": 5}, UnsupportedError, "has bits 5; expected 2 or 3 or 4 or 8"),
        (lambda: layouts.awq_gemm(*a_grid()), {**AWQ, "version": "marlin"}, UnsupportedError, "has version 'marlin'; expected gemm or gemv"),
        (lambda: layouts.awq_gemm(*a_grid()), {**AWQ, "group_size": 100}, UnsupportedError, "group_size 100 does not divide its 512"),
        (lambda: layouts.awq_gemm(*a_grid()), {**AWQ, "group_size": 64}, LoadError, r"x\.qzeros is \[4, 2\]; x needs \[8, 2\]"),
        (lambda: {"qweight": layouts.awq_gemm(*a_grid())["qweight"]}, AWQ, LoadError, r"x\.qzeros is missing beside qweight"),
        (lambda: layouts.awq_gemv(*a_grid()) | {"scales": np.ones((16, 4), np.float16)}, {**AWQ, "version": "gemv"}, LoadError, "does not fit"),
        (lambda: layouts.compressed_words(*a_grid()) | {"weight_scale": np.ones((16, 3), np.float16)}, CT, LoadError, "does not fit"),
        (lambda: layouts.compressed_words(*a_grid()) | {"weight_shape": np.array([16, 100])}, CT, UnsupportedError, "expected 4 or 8 bits"),
        (lambda: layouts.compressed_words(*a_grid()) | {"weight_global_scale": np.ones(1, np.float32)}, CT, LoadError, "I32 codes .* NVFP4 has U8 codes"),
        (lambda: layouts.gptq(*a_grid()), {"quant_method": "hqq"}, UnsupportedError, r"config\.json: its weights are quantised by hqq; convert reads awq, "),
        (lambda: {"weight": np.ones((4, 4), np.float32)}, {"quant_method": ["gptq"]}, UnsupportedError, "quantised by"),
    ],
)  # fmt: skip
def test_what_is_refused(parts, said, error, message):
    with pytest.raises(error, match=message):
        source(parts(), said)


def test_scales_that_are_not_finite():
    codes, zeros, scales = a_grid()
    scales[3, 1] = np.nan
    found = source(layouts.awq_gemm(codes, zeros, scales), AWQ)
    with pytest.raises(LoadError, match=r"m\.safetensors: scales of x\.weight are not finite"):
        found.blocks(slice(0, 16), BY_NAME["Q4_K"])


STRANGE = (0, -1, 3, 8, 64, 100, 2**40, "4", "x", None, True, 1.5, [128, 128], [0, 0], [1], {}, "gemv", "gptq_v2")
SETTINGS = ("bits", "group_size", "version", "checkpoint_format", "weight_block_size", "quant_method")


def test_damaged_layers_are_read_or_refused():
    """Parts left out, of other shapes and types, with values that cannot be, under settings that are none."""
    rng = np.random.default_rng(0)
    seen = {"read": 0, "refused": 0}
    for case in [c for c in CASES for _ in range(20)]:
        layout, said, how, _ = CASES[case]
        parts, said = dict(layout(*a_grid(**how))), dict(said)
        name = list(parts)[rng.integers(len(parts))]
        part = parts[name].reshape(-1)
        shapes = [part.shape, (1, part.size), (part.size, 1), (), (0,), (0, 5), parts[name].shape[::-1]]
        shape = shapes[rng.integers(len(shapes))]
        other = part.reshape(shape) if np.prod(shape) == part.size else np.zeros(shape, part.dtype)
        damage = rng.integers(5)
        if damage == 0:
            said[SETTINGS[rng.integers(len(SETTINGS))]] = STRANGE[rng.integers(len(STRANGE))]
        elif damage == 1:
            del parts[name]
        elif damage == 2:
            parts[name] = other
        elif damage == 3:
            with np.errstate(over="ignore", invalid="ignore"):
                parts[name] = parts[name].astype(("i1", "u1", "i4", "i8", "f2", "f4")[rng.integers(6)])
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                parts[name] = np.where(rng.random(parts[name].shape) < 0.1, -1, parts[name]).astype(part.dtype)
        try:
            tensors = {f"x.{n}": stored(f"x.{n}", array) for n, array in parts.items()}
            for found in sources_of(tensors, said, "config.json").values():
                type_ = found.type
                found.rows(slice(0, 4))
                if type_ is not None:
                    found.blocks(slice(0, 4), type_)
            seen["read"] += 1
        except (LoadError, UnsupportedError):
            seen["refused"] += 1
    assert min(seen.values()) > 50, seen
