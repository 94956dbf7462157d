"""Encoding: C++ on every instruction set, NumPy, the gguf package and libggml give the same bytes."""

import hashlib
import json

import numpy as np
import pytest

import gguf
from blocks import same_bits, stable_values, usable_isas
from qtransformers.errors import ConfigError, UnsupportedError
from qtransformers.quants import dequantize, quantize, reference_quantize
from qtransformers.types import BY_NAME, TYPES

ENCODED = [BY_NAME[name] for name in ("F32", "F16", "BF16", "Q8_0")]
each_type = pytest.mark.parametrize("type", ENCODED, ids=str)


ISAS = usable_isas()


def samples():
    """Values of all magnitudes, ties and subnormals; blocks of zeros, of the tiniest and of the largest that fit."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(32 * 3000).astype(np.float32) * np.exp2(rng.uniform(-40, 14, 32 * 3000)).astype(np.float32)
    steps = np.arange(-63.5, 64, 0.5, dtype=np.float32)  # with 127 among them, ties of Q8_0
    ties = np.concatenate([np.insert(steps[i : i + 31], 7, 127) for i in range(0, 248, 31)])
    halves = (np.arange(0, 1 << 16, 7, dtype=np.uint32) << 13)[: 32 * 290].view(np.float32)
    tiny = np.float32(2.0**-26) * np.arange(-64, 64, dtype=np.float32)
    edges = np.array(
        [0, -0.0, 1e-45, -1e-38, 127 * 2.0**-128, 127 * 65504, -127 * 65504, 65519, 65520], np.float32
    ).repeat(32)
    return np.concatenate([x, ties, halves, tiny, edges, stable_values(6400)])


@each_type
@pytest.mark.parametrize("isa", ISAS)
def test_c_plus_plus_encodes_as_numpy(type, isa):
    x = samples()
    np.testing.assert_array_equal(quantize(x, type, isa=isa), reference_quantize(x, type))


@each_type
def test_numpy_encodes_as_the_gguf_package(type):
    x = samples().reshape(-1, 32)
    largest = np.abs(x).max(1)
    x = x[(largest == 0) | (largest > 1e-35)]  # between them 1 / d is infinite, and the package's bytes are accidents
    with np.errstate(all="ignore"):
        theirs = gguf.quants.quantize(x, gguf.GGMLQuantizationType(type.id))
    np.testing.assert_array_equal(reference_quantize(x.reshape(-1), type), theirs.reshape(-1).view(np.uint8))


@pytest.mark.parametrize("name", ["F16", "BF16", "Q8_0"])
def test_encoding_has_the_bytes_of_libggml(name, data):
    goldens = json.loads((data / "goldens" / "quants.json").read_text())
    x = stable_values(goldens["blocks"] * 32)
    for encode in (quantize, reference_quantize):
        assert hashlib.sha256(encode(x, BY_NAME[name]).tobytes()).hexdigest() == goldens["encode"][name]


@pytest.mark.parametrize("isa", ISAS)
def test_floats_round_to_nearest_even(isa):
    def stored(x, name):
        return dequantize(quantize(np.array(x, np.float32), BY_NAME[name], isa=isa), BY_NAME[name])

    ulp = 2.0**-10
    halves = [1 + ulp / 2, 1 + 3 * ulp / 2, 1 + ulp / 2 + 2**-20, 65519.996, 65520, 2**-25, 3 * 2**-25]
    assert stored(halves, "F16").tolist() == [1, 1 + 2 * ulp, 1 + ulp, 65504, np.inf, 0, 2**-23]
    brains = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 3.4e38, -3.4e38]
    assert stored(brains, "BF16").tolist() == [1, 1 + 2**-6, 1 + 2**-7, np.inf, -np.inf]


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("isa", ISAS)
def test_infinity_and_nan_survive_in_floats(name, isa):
    signalling = np.array([0x7F800001], np.uint32).view(np.float32)
    x = np.concatenate([np.array([np.inf, -np.inf, np.nan, -np.nan], np.float32), signalling] * 9)
    assert same_bits(dequantize(quantize(x, BY_NAME[name], isa=isa), BY_NAME[name]), x)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 127 * 65520.0, 3e38])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("isa", ISAS)
def test_q8_0_refuses_what_it_cannot_hold_and_says_where(bad, threads, isa):
    x = np.ones(32 * 10, np.float32)
    x[32 * 7 + 5] = x[32 * 9] = bad
    with pytest.raises(ConfigError, match=r"values 224\.\.255 .*Q8_0 cannot store"):
        quantize(x, BY_NAME["Q8_0"], threads=threads, isa=isa)


def test_q8_0_errs_by_half_a_step():
    x = np.random.default_rng(1).standard_normal((100, 32)).astype(np.float32)
    back = dequantize(quantize(x.reshape(-1), BY_NAME["Q8_0"]), BY_NAME["Q8_0"]).reshape(x.shape)
    largest = np.abs(x).max(1, keepdims=True)
    assert (np.abs(back - x) <= largest / 127 / 2 + largest * 2**-11).all()  # the step itself is rounded to a half


def test_blocks_too_small_for_a_half_become_zero():
    for magnitude in (1e-45, 3e-39, 1e-37, 1e-9):
        x = np.full(32, magnitude, np.float32)
        assert not dequantize(quantize(x, BY_NAME["Q8_0"]), BY_NAME["Q8_0"]).any()


def test_wrong_arguments():
    q8 = BY_NAME["Q8_0"]
    with pytest.raises(ConfigError, match=r"33 values .* multiple of 32"):
        quantize(np.zeros(33, np.float32), q8)
    with pytest.raises(ConfigError, match=r"float64 \[32\]; expected contiguous float32"):
        quantize(np.zeros(32), q8)
    with pytest.raises(ConfigError, match=r"out is \[33\]; expected a writable array \[34\]"):
        quantize(np.zeros(32, np.float32), q8, np.empty(33, np.uint8))


def test_activations_and_whole_numbers_are_not_encoded():
    for row in TYPES.values():
        for encode in (quantize, reference_quantize):
            if row.activation or row.family == "int" or row.name == "F64":
                with pytest.raises(
                    UnsupportedError, match=f"nothing here encodes {row.name}; expected one of F32, F16, BF16, Q8_0"
                ):
                    encode(np.zeros(256, np.float32), row)


def test_out_is_filled_in_place():
    out = np.empty(34, np.uint8)
    assert quantize(np.ones(32, np.float32), BY_NAME["Q8_0"], out) is out
    assert dequantize(out, BY_NAME["Q8_0"]).tolist() == [pytest.approx(1, rel=1e-3)] * 32
