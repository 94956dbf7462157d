"""Mixtures of experts on the GPU, in the interpreter, against the twin in float64."""

import numpy as np
import pytest

from blocks import random_blocks
from qtransformers.errors import ConfigError
from qtransformers.kernels import reference
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME

torch = pytest.importorskip("torch")
experts = pytest.importorskip("qtransformers.kernels.triton.experts")
from qtransformers.kernels.triton.weights import Experts, bind  # noqa: E402

N, FF, EMBD = 5, 32, 64


def tensor(name, *shape, seed=0):
    kind = BY_NAME[name]
    return QTensor(
        f"exps.{seed}", kind, shape, random_blocks(kind, int(np.prod(shape)) // kind.block_size, seed), "a.gguf"
    )


def stacks(*names):
    shapes = ((N, FF, EMBD), (N, FF, EMBD), (N, EMBD, FF))
    return [tensor(name, *shape, seed=i) for i, (name, shape) in enumerate(zip(names, shapes, strict=True))]


def case(tokens, k, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.array([rng.permutation(N)[:k] for _ in range(tokens)], np.int32).reshape(tokens, k)
    x = rng.standard_normal((tokens, EMBD)).astype(np.float32)
    return x, ids, rng.random((tokens, k)).astype(np.float32)


def mixed(x, ids, weights, tensors, accuracy, act="silu", biases=()):
    ws = [bind(t, accuracy, "cpu") for t in tensors]
    return experts.moe(*map(torch.from_numpy, (x, ids, weights)), *ws, act, *map(torch.from_numpy, biases)).numpy()


@pytest.mark.parametrize("act", reference.ACTIVATIONS)
@pytest.mark.parametrize("names", [("Q4_0", "Q4_0", "Q8_0"), ("Q4_0", "Q5_0", "Q4_1"), ("F16", "F32", "Q8_0")])
@pytest.mark.parametrize("tokens, k", [(1, 2), (3, 1), (20, 3)])
def test_against_the_twin(tokens, k, names, act):
    tensors, given = stacks(*names), case(tokens, k)
    biases = [np.random.default_rng(i).standard_normal((N, n)).astype(np.float32) for i, n in enumerate((FF, FF, EMBD))]
    truth = reference.moe(*given, *tensors, act, *biases)
    rough = 1e-2 if "F16" in names else 1e-5
    np.testing.assert_allclose(
        mixed(*given, tensors, "exact", act, biases), truth, rtol=0, atol=rough * np.abs(truth).max()
    )


@pytest.mark.parametrize("accuracy, bound", [("fast", 0.05), ("high", 3e-4)])
@pytest.mark.parametrize("tokens", [2, 20])
def test_accuracies(accuracy, bound, tokens):
    tensors, given = stacks("Q4_0", "Q4_0", "Q4_0"), case(tokens, 2)
    truth = reference.moe(*given, *tensors)
    np.testing.assert_allclose(mixed(*given, tensors, accuracy), truth, rtol=0, atol=bound * np.abs(truth).max())


def test_no_tokens():
    assert mixed(*case(0, 2), stacks("Q4_0", "Q4_0", "Q8_0"), "fast").shape == (0, EMBD)


@pytest.mark.parametrize("ids", [[[0, 1], [1, 2]], [[4, 4], [4, 4]], [[0, 1]] * 40, [[3, 0]] * 17 + [[1, 4]] * 33])
def test_every_row_is_in_one_tile_of_its_expert(ids):
    ids = torch.tensor(ids, dtype=torch.int32)
    found = experts.sort(ids, [bind(w, "fast", "cpu") for w in stacks("Q4_0", "Q4_0", "Q4_0")])
    seen = []
    for e, begin, end in zip(found.experts.tolist(), found.begins.tolist(), found.ends.tolist(), strict=True):
        rows = found.order[begin:end].tolist() if begin < end else []
        assert all(ids.reshape(-1)[r] == e for r in rows)
        seen += rows
    assert sorted(seen) == list(range(ids.numel()))


def test_tiles_are_as_small_as_one_of_the_weights_needs_them():
    ids = torch.zeros(100 * N, 1, dtype=torch.int32)
    small, large = (Experts(torch.empty(0), (N, 64, 256), BY_NAME[name], name, "fast") for name in ("Q2_K", "Q4_0"))
    for ws, size in (((large, large), 64), ((large, small), 32)):
        found = experts.sort(ids, ws)
        assert (found.tokens, int((found.ends - found.begins).max())) == (size, size)


def test_what_does_not_fit_is_refused():
    x, ids, weights = case(2, 2)
    tensors = stacks("Q4_0", "Q4_0", "Q4_0")
    for args, message in (
        ((x[:, :32], ids, weights, tensors), r"x is \[2, 32\]; exps.0 expects \[any, 64\]"),
        ((x, ids.astype(np.int64), weights, tensors), "ids are torch.int64"),
        ((x, ids[:1], weights, tensors), r"expected int32 \[2, k\]"),
        ((x, ids, weights, [tensors[0], tensors[2], tensors[2]]), "expected .n, n_ff, n_embd. twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            mixed(*args, "fast")
    with pytest.raises(ConfigError, match="act='relu'"):
        mixed(x, ids, weights, tensors, "fast", "relu")
