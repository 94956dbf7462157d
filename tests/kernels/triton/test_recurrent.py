"""Recurrent layers against their twins."""

import os

import numpy as np
import pytest
import torch

from qtransformers.errors import ConfigError
from qtransformers.kernels import reference
from qtransformers.kernels.triton import recurrent as gpu
from qtransformers.kernels.triton.recurrent import Remembered

DEVICE = "cuda" if os.environ["TRITON_INTERPRET"] == "0" else "cpu"
TOLERANCE = 2e-5  # of outputs and states about 1
AT = 3  # number of a sequence's memory at which the array tested begins


def random(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def on_device(x):
    return torch.from_numpy(x.copy()).to(DEVICE)


def remembered(states, lengths, shape):
    """States each in a memory of its own, and what finds them; of a sequence without rows no memory is read."""
    memories = [on_device(np.concatenate([np.full(AT, 7, np.float32), s.ravel(), np.full(5, 7, np.float32)])) for s in states]  # fmt: skip
    addresses = [m.data_ptr() if n else 0 for m, n in zip(memories, lengths, strict=True)]
    return memories, Remembered(on_device(np.array(addresses, np.int64).view(np.int32).reshape(-1, 2)), AT, shape)


def check(name, *arguments):
    """Outputs and states of both, where the last argument is the states."""
    *inputs, states = arguments
    theirs = [s.copy() for s in states]
    memories, places = remembered(states, np.diff(inputs[-1]), states[0].shape)
    y = getattr(gpu, name)(*map(on_device, inputs), places)
    expected = getattr(reference, name)(*inputs, theirs)
    assert y.dtype == torch.float32 and tuple(y.shape) == expected.shape
    assert np.abs(y.cpu().numpy() - expected).max(initial=0) < TOLERANCE
    for memory, before, their in zip(memories, states, theirs, strict=True):
        found = memory.cpu().numpy()
        assert (np.delete(found, slice(AT, AT + their.size)) == 7).all()
        assert np.abs(found[AT : AT + their.size] - their.ravel()).max() < TOLERANCE
        assert (their == before).all() or np.abs(their - before).max() > 0.1


@pytest.mark.parametrize("lengths", [[1], [2], [20], [1, 5, 3], [3, 0, 4], [0]])
@pytest.mark.parametrize("size", [2, 4])
def test_causal_conv(lengths, size):
    rng = np.random.default_rng(size)
    starts = np.cumsum([0, *lengths]).astype(np.int32)
    check("causal_conv", random(rng, sum(lengths), 150), random(rng, 150, size), starts, [random(rng, size - 1, 150) for _ in lengths])  # fmt: skip


@pytest.mark.parametrize("lengths", [[1], [12], [1, 5, 7], [3, 0, 4], [0]])
@pytest.mark.parametrize("heads, dims", [((1, 1), (16, 8)), ((2, 4), (24, 40))])
@pytest.mark.parametrize("decay", [1.0, 0.0, 1e4])
def test_gated_delta(lengths, heads, dims, decay):
    rng = np.random.default_rng(0)
    n, starts = sum(lengths), np.cumsum([0, *lengths]).astype(np.int32)
    q, k, v = random(rng, n, heads[0], dims[0]), random(rng, n, heads[0], dims[0]), random(rng, n, heads[1], dims[1])
    fade = (-decay * np.abs(random(rng, n, heads[1]))).astype(np.float32)
    beta = rng.uniform(0.5, 1, (n, heads[1])).astype(np.float32)
    check("gated_delta", q, k, v, fade, beta, starts, [random(rng, heads[1], *dims) for _ in lengths])


def test_what_does_not_fit_is_refused():
    x, starts = torch.zeros(2, 8), torch.zeros(2, dtype=torch.int32)
    found = Remembered(torch.zeros(1, 2, dtype=torch.int32), 0, (3, 8))
    with pytest.raises(ConfigError, match="causal_conv got"):
        gpu.causal_conv(x, torch.zeros(9, 4), starts, found)
    with pytest.raises(ConfigError, match=r"causal_conv got.* pasts of \[2, 8\]"):
        gpu.causal_conv(x, torch.zeros(8, 4), starts, found._replace(shape=(2, 8)))
    heads = torch.zeros(2, 2, 8)
    with pytest.raises(ConfigError, match="gated_delta got"):
        gpu.gated_delta(heads, heads, heads, x, x, starts, found._replace(shape=(2, 8, 9)))
    for addresses, said in ((None, "none"), (torch.zeros(2, 2, dtype=torch.int32), r"\[2, 2\]"), (torch.zeros(1, 2), "torch.float32")):  # fmt: skip
        with pytest.raises(ConfigError, match=f"addresses of states are .*{said}"):
            gpu.causal_conv(x, torch.zeros(8, 4), starts, found._replace(addresses=addresses))
