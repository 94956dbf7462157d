"""Weights bound to a device: the bytes of the file, and what cannot be bound."""

import numpy as np
import pytest

from blocks import random_blocks
from qtransformers.errors import ConfigError, UnsupportedError
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME

torch = pytest.importorskip("torch")
weights = pytest.importorskip("qtransformers.kernels.triton.weights")


def stored(name, *shape, data=None):
    kind = BY_NAME[name]
    n = int(np.prod(shape)) // kind.block_size
    return QTensor("blk.0.w", kind, shape, random_blocks(kind, n) if data is None else data, "a.gguf")


@pytest.mark.parametrize("shape, kind", [((3, 64), "Weight"), ((2, 3, 64), "Experts")])
def test_the_bytes_are_those_of_the_file(shape, kind):
    tensor = stored("Q8_0", *shape)
    w = weights.bind(tensor, "high", "cpu")
    assert (type(w).__name__, w.shape, w.type.name, w.name, w.accuracy) == (kind, shape, "Q8_0", "blk.0.w", "high")
    assert w.row_bytes == 68
    assert w.floats is None
    np.testing.assert_array_equal(w.data.numpy(), tensor.data)
    there = w.data.clone()
    assert weights.bind(tensor, "fast", "cpu", there).data is there


@pytest.mark.parametrize("name", weights.FLOATS)
def test_plain_floats_are_a_view(name):
    tensor = stored(name, 4, 6)
    w = weights.bind(tensor, device="cpu")
    assert w.floats.data_ptr() == w.data.data_ptr()
    np.testing.assert_array_equal(w.floats.float().numpy(), tensor.dequantize())


def test_what_cannot_be_bound():
    with pytest.raises(UnsupportedError, match=r"a.gguf: blk.0.w: no GPU kernel decodes I32; expected one of .*Q8_0"):
        weights.bind(stored("I32", 2, 4), device="cpu")
    for shape in ((64,), (1, 1, 1, 64)):
        with pytest.raises(ConfigError, match=r"blk.0.w is \[.*64\]; expected a matrix"):
            weights.bind(stored("Q8_0", *shape), device="cpu")
    short = np.zeros(68, np.uint8)
    with pytest.raises(ConfigError, match="in 68 bytes; expected 136 bytes"):
        weights.bind(stored("Q8_0", 2, 64, data=short), device="cpu")
    with pytest.raises(ConfigError, match="in 136 bytes; expected 68 bytes"):
        weights.bind(stored("Q8_0", 1, 64), device="cpu", data=torch.zeros(136, dtype=torch.uint8))
    with pytest.raises(ConfigError, match="a multiple of 32 values"):
        weights.bind(stored("Q8_0", 2, 33, data=short), device="cpu")
    with pytest.raises(ConfigError, match="accuracy='best'"):
        weights.bind(stored("Q8_0", 2, 64), "best", "cpu")
