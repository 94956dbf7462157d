"""Gate and up in one, against the twin and against the same in steps."""

import numpy as np
import pytest

from blocks import random_blocks
from qtransformers import nn
from qtransformers.errors import ConfigError
from qtransformers.kernels import cpu, reference
from qtransformers.native import lib
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME


def weight(kind, rows, cols, seed=0):
    kind = BY_NAME[kind]
    return QTensor(f"blk.0.{seed}", kind, (rows, cols), random_blocks(kind, rows * cols // kind.block_size, seed))


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("accuracy", ["exact", "high", "fast"])
@pytest.mark.parametrize(
    "gate, up", [("Q4_K", "Q4_K"), ("Q8_0", "Q4_0"), ("F32", "Q6_K"), ("Q6_K", "F16"), ("F32", "F32")]
)
@pytest.mark.parametrize("n_tokens", [1, 3, 6, 50])
def test_it_is_its_steps(accuracy, gate, up, n_tokens, isa):
    """Types of their own, rows that are no multiple of anything, few rows for many threads."""
    for rows in (1, 50, 301):
        w_gate, w_up = (cpu.bind(weight(kind, rows, 512, i), accuracy) for i, kind in enumerate((gate, up)))
        x, biases = floats(n_tokens, 512), (floats(rows, seed=1), floats(rows, seed=2))
        for threads in (1, 3):
            with cpu.Pool(threads, isa):
                for given in (biases, (None, None), (biases[0], None), (None, biases[1])):
                    found = nn.gated(x, w_gate, w_up, "silu", *given)
                    a, b = cpu.linears(x, (w_gate, w_up), given)
                    np.testing.assert_array_equal(found, nn.activate(a, "silu", b))


@pytest.mark.parametrize("act", reference.ACTIVATIONS)
@pytest.mark.parametrize("n_tokens", [0, 1, 5, 40])
def test_every_activation_is_its_twin(act, n_tokens, isa):
    w_gate, w_up, x = weight("Q8_0", 70, 64, 1), weight("Q8_0", 70, 64, 2), floats(n_tokens, 64)
    biases = 3 * floats(70, seed=1), 3 * floats(70, seed=2)
    with cpu.Pool(2, isa):
        found = nn.gated(x, cpu.bind(w_gate), cpu.bind(w_up), act, *biases)
    expected = reference.gated(x, w_gate, w_up, act, *biases)
    assert found.shape == (n_tokens, 70)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max(initial=0))


@pytest.mark.parametrize("act", reference.ACTIVATIONS)
def test_activations_at_the_edges(act, isa):
    """The gate's values by a product with ones."""
    edges = [0, -0.0, 1e-30, -1e-30, 1e-3, 0.5, -0.5, 3, -3, 6.9, 7.1, -7.1, 20, -20, 88, -88, 104, -104, 1e4, -1e4, 3e38, -3e38, np.inf, np.nan]  # fmt: skip
    gate = np.repeat(np.array(edges, np.float32), 3)[:, None]
    up = np.tile(np.array([1, -9, 0.25], np.float32), len(edges))[:, None]
    bound = [cpu.bind(QTensor("w", BY_NAME["F32"], v.shape, v.view(np.uint8).reshape(-1))) for v in (gate, up)]
    with cpu.Pool(1, isa), np.errstate(all="ignore"):
        found = nn.gated(np.ones((1, 1), np.float32), *bound, act)[0]
        expected = reference.ACTIVATIONS[act](gate.astype(np.float64), up.astype(np.float64)).astype(np.float32)[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("rows, cols, tokens", [(4, 256, 0), (0, 256, 3), (4, 0, 3), (0, 0, 0)])
def test_nothing(rows, cols, tokens, isa):
    gate, up, bias = weight("Q4_K", rows, cols, 1), weight("Q4_K", rows, cols, 2), np.full(rows, 3, np.float32)
    x = floats(tokens, cols)
    for biases in ((bias, 2 * bias), (None, bias), (bias, None)):
        with cpu.Pool(2, isa):
            y = nn.gated(x, cpu.bind(gate), cpu.bind(up), "gpt_oss", *biases)
        np.testing.assert_allclose(y, reference.gated(x, gate, up, "gpt_oss", *biases), rtol=1e-5)


def test_the_names_of_activations_are_the_twins(isa):
    w, x = cpu.bind(weight("F32", 2, 2)), floats(1, 2)
    with pytest.raises(ConfigError, match=f"act='relu'; expected one of {', '.join(reference.ACTIVATIONS)}"):
        nn.gated(x, w, w, "relu")
    assert lib.gated(x, w, w, "gelu", None, None).shape == (1, 2)


def test_what_does_not_fit_is_refused():
    w, other, x = cpu.bind(weight("F32", 3, 2)), cpu.bind(weight("F32", 4, 2)), floats(1, 2)
    for case, message in (
        ((floats(1, 3), w, w), r"x is \[1, 3\]"),
        ((x, w, other), r"\[3, 2\] and blk.0.0 is \[4, 2\]"),
        ((x, w, w, "silu", floats(2)), r"gate_bias is \[2\]; expected \[3\]"),
        ((x, w, w, "silu", None, floats(4)), r"up_bias is \[4\]; expected \[3\]"),
        ((x, w, None), "gated expects"),
        ((x, w, w, None), "gated expects"),
    ):
        with pytest.raises(ConfigError, match=message):
            nn.gated(*case)
