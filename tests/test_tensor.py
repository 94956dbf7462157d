"""QTensor: shapes, rows, plain views, and what it refuses."""

import numpy as np
import pytest

from blocks import random_blocks, same_bits
from qtransformers.errors import ConfigError, GGUFError, UnsupportedError
from qtransformers.quants import reference_dequantize
from qtransformers.tensor import QTensor, swap_bytes
from qtransformers.types import BY_NAME, TYPES

QUANTIZED = [row for row in TYPES.values() if row.is_quantized]


def tensor(type, *shape, seed=0):
    n = int(np.prod(shape)) // type.block_size
    return QTensor("blk.0.w", type, shape, random_blocks(type, n, seed), "m.gguf")


@pytest.mark.parametrize("type", QUANTIZED, ids=str)
def test_a_quantized_tensor(type):
    w = tensor(type, 3, 5, 2 * type.block_size)
    assert (w.n_rows, w.n_values, w.nbytes, w.row_bytes) == (
        15,
        30 * type.block_size,
        30 * type.block_bytes,
        2 * type.block_bytes,
    )
    whole = w.dequantize()
    assert whole.shape == w.shape
    assert same_bits(whole.reshape(-1), reference_dequantize(w.data, type))
    flat = whole.reshape(15, -1)
    for start, stop in ((0, 15), (4, 5), (14, 15), (7, 7), (0, 0), (15, 15)):
        assert same_bits(w.rows(start, stop), flat[start:stop])
    with pytest.raises(UnsupportedError, match=rf"^m\.gguf: blk\.0\.w is {type}, .* use dequantize\(\)"):
        w.numpy()


@pytest.mark.parametrize("name", ["F32", "F16", "F64"])
def test_plain_floats_are_views_and_decode(name):
    w = tensor(BY_NAME[name], 4, 7)
    assert np.shares_memory(w.numpy(), w.data)
    assert w.numpy().shape == w.shape
    assert same_bits(w.dequantize(), w.numpy().astype(np.float32))
    assert same_bits(w.rows(1, 3), w.dequantize()[1:3])


def test_bf16_decodes_but_is_no_view():
    w = tensor(BY_NAME["BF16"], 4, 7)
    np.testing.assert_array_equal(
        w.dequantize(), (w.data.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(4, 7)
    )
    with pytest.raises(UnsupportedError, match="BF16, which NumPy has no type for"):
        w.numpy()


@pytest.mark.parametrize("name", ["I8", "I16", "I32", "I64"])
def test_whole_numbers_are_views_and_do_not_decode(name):
    x = np.array([[1, -2, 3], [4, 5, -128]], BY_NAME[name].block[0])
    w = QTensor("ids", BY_NAME[name], x.shape, x.reshape(-1).view(np.uint8), "m.gguf")
    np.testing.assert_array_equal(w.numpy(), x)
    for decode in (w.dequantize, lambda: w.rows(0, 1)):
        with pytest.raises(UnsupportedError, match=rf"^m\.gguf: ids is {name}, whole numbers .* use numpy\(\)"):
            decode()


def test_scalars_and_empty_tensors():
    one = np.array([2.5], np.float32)
    scalar = QTensor("scale", BY_NAME["F32"], (), one.view(np.uint8))
    assert (scalar.n_rows, scalar.n_values) == (1, 1)
    assert scalar.dequantize() == scalar.numpy() == np.float32(2.5)
    empty = QTensor("none", BY_NAME["Q8_0"], (0, 32), np.empty(0, np.uint8))
    assert empty.dequantize().shape == empty.rows(0, 0).shape == (0, 32)


@pytest.mark.parametrize("start, stop", [(-1, 1), (0, 4), (2, 1), (4, 4)])
def test_rows_that_are_not_there(start, stop):
    with pytest.raises(
        ConfigError, match=rf"^m\.gguf: blk\.0\.w: rows {start}\.\.{stop} asked for; expected a range within 0\.\.3\."
    ):
        tensor(BY_NAME["Q4_0"], 3, 32).rows(start, stop)


def test_bytes_that_do_not_fit_the_shape():
    good = tensor(BY_NAME["Q8_0"], 2, 64)
    cut = QTensor("w", good.type, good.shape, good.data[:-34], "m.gguf")
    ragged = QTensor("w", good.type, (2, 48), good.data[: 2 * 34], "m.gguf")
    for broken, found in (
        (cut, r"\[2, 64\] of Q8_0 in 102 bytes; expected 136"),
        (ragged, r"\[2, 48\] .* multiple of 32 values"),
    ):
        for read in (broken.dequantize, lambda w=broken: w.rows(0, 1)):
            with pytest.raises(GGUFError, match=rf"^m\.gguf: w is {found}"):
                read()
    with pytest.raises(GGUFError, match="in 4 bytes; expected 8 bytes"):
        QTensor("w", BY_NAME["F32"], (2,), np.zeros(4, np.uint8)).numpy()


def test_a_tensor_is_frozen_and_prints_without_its_bytes():
    w = tensor(BY_NAME["Q4_K"], 1, 256)
    assert repr(w) == "QTensor(name='blk.0.w', type=Q4_K, shape=(1, 256), file='m.gguf', device='cpu')"
    with pytest.raises(AttributeError):
        w.name = "other"


@pytest.mark.parametrize("type", TYPES.values(), ids=str)
def test_swapping_bytes_twice_is_nothing(type):
    data = random_blocks(type, 3)
    swapped = swap_bytes(data, type)
    np.testing.assert_array_equal(swap_bytes(swapped, type), data)
    assert (swapped == data).all() == all(type.block[f].base.itemsize == 1 for f in type.block.names)
