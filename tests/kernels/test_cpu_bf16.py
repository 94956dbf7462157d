"""Plain floats at accuracy="fast", multiplied as bfloat16 where the processor can, against the twin in float64."""

import numpy as np
import pytest

from blocks import edge_blocks, random_blocks
from qtransformers.kernels import cpu, reference
from qtransformers.native import lib
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME

EPS = np.finfo(np.float32).eps
halves = pytest.mark.parametrize("name", ["F16", "BF16"])


def weight(name, rows, cols, data=None):
    kind = BY_NAME[name]
    return QTensor("w", kind, (rows, cols), random_blocks(kind, rows * cols) if data is None else data, "a.gguf")


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def assert_right(y, x, tensor, isa, bias=None):
    """The twin's values where there are such products, else those of floats to the bit."""
    if isa != "avx512" or not lib.has_bf16():
        np.testing.assert_array_equal(y, cpu.linear(x, cpu.bind(tensor), bias))
        return
    size = np.abs(x.astype(np.float64)) @ np.abs(tensor.dequantize().astype(np.float64)).T
    error = np.abs(y - reference.linear_bf16(x, tensor, bias).astype(np.float64))
    assert (error <= 8 * EPS * (size + (0 if bias is None else np.abs(bias))) + 1e-36).all()


@halves
@pytest.mark.parametrize("tokens", [9, 16, 17, 40, 63, 70])
@pytest.mark.parametrize("rows, cols", [(1, 1), (7, 13), (49, 127), (55, 129), (130, 256), (61, 1055)])
def test_against_the_twin(name, rows, cols, tokens, isa):
    tensor, x, bias = weight(name, rows, cols), floats(tokens, cols), floats(rows, seed=1)
    with cpu.Pool(2, isa):
        w = cpu.bind(tensor, "fast")
        assert_right(cpu.linear(x, w), x, tensor, isa)
        assert_right(cpu.linear(x, w, bias), x, tensor, isa, bias)


@halves
def test_few_tokens_are_exact(name, isa):
    tensor, x = weight(name, 33, 300), floats(8, 300)
    with cpu.Pool(2, isa):
        for n in range(1, 9):
            exact = cpu.linear(x[:n], cpu.bind(tensor))
            np.testing.assert_array_equal(cpu.linear(x[:n], cpu.bind(tensor, "fast")), exact)
            np.testing.assert_array_equal(exact, cpu.linear(x, cpu.bind(tensor))[:n])


@halves
@pytest.mark.parametrize("accuracy", ["exact", "high"])
def test_other_accuracies_are_exact(name, accuracy, isa):
    tensor, x = weight(name, 50, 270), floats(20, 270)
    with cpu.Pool(2, isa):
        y, rows = (
            cpu.linear(x, cpu.bind(tensor, accuracy)),
            [cpu.linear(x[t : t + 1], cpu.bind(tensor)) for t in range(20)],
        )
    np.testing.assert_array_equal(y, np.concatenate(rows))


@halves
def test_all_there_is_to_a_float(name, isa):
    """Infinities, NaN, subnormals and the largest, each alone in its row: what is finite keeps its value within rounding."""
    blocks, cols = edge_blocks(BY_NAME[name]), 16
    values = blocks.view(np.uint16)[: blocks.size // 2 // cols * cols]
    tensor = weight(name, values.size // cols, cols, values.view(np.uint8))
    x = np.zeros((16, cols), np.float32)
    x[np.arange(16), np.arange(cols)] = 1
    truth = tensor.dequantize()
    finite = np.isfinite(truth).all(1) & (np.abs(truth) < 3e38).all(1)
    assert finite.sum() >= len(truth) // 8
    with cpu.Pool(1, isa), np.errstate(invalid="ignore"):
        y = cpu.linear(x, cpu.bind(tensor, "fast")).T
    assert (np.abs(y[finite] - truth[finite]) <= 2**-8 * np.abs(truth[finite]) + 1.2e-38).all()
    broken = np.isnan(truth).any(1)
    assert np.isnan(y[broken]).any(1).all()


@halves
def test_gates_and_threads(name, isa):
    gate, up, x = weight(name, 301, 512), weight(name, 301, 512), floats(37, 512) * np.float32(0.1)
    found = []
    for threads in (1, 2, 5):
        with cpu.Pool(threads, isa):
            found.append(cpu.gated(x, cpu.bind(gate, "fast"), cpu.bind(up, "fast"), "silu"))
            a, b = (
                y.astype(np.float64) for y in cpu.linears(x, [cpu.bind(w, "fast") for w in (gate, up)], [None, None])
            )
            apart = a / (1 + np.exp(-a)) * b
            np.testing.assert_allclose(found[-1], apart, rtol=1e-4, atol=1e-6 * np.abs(apart).max())
    assert all(np.array_equal(found[0], y) for y in found[1:])
