"""Recurrent layers against their twins."""

import os

import numpy as np
import pytest
import torch

from qtransformers.errors import ConfigError
from qtransformers.kernels import reference
from qtransformers.kernels.triton import recurrent as gpu

DEVICE = "cuda" if os.environ["TRITON_INTERPRET"] == "0" else "cpu"
TOLERANCE = 2e-5  # of outputs and states about 1


def random(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def on_device(x):
    return [on_device(part) for part in x] if isinstance(x, list) else torch.from_numpy(x.copy()).to(DEVICE)


def check(name, *arguments):
    """Outputs and states of both, where the last argument is the states."""
    states, theirs = on_device(arguments[-1]), [s.copy() for s in arguments[-1]]
    y = getattr(gpu, name)(*map(on_device, arguments[:-1]), states)
    expected = getattr(reference, name)(*arguments[:-1], theirs)
    assert y.dtype == torch.float32 and tuple(y.shape) == expected.shape
    assert np.abs(y.cpu().numpy() - expected).max(initial=0) < TOLERANCE
    for state, before, their in zip(states, arguments[-1], theirs, strict=True):
        assert np.abs(state.cpu().numpy() - their).max() < TOLERANCE
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
    x = torch.zeros(2, 8)
    with pytest.raises(ConfigError, match="causal_conv got"):
        gpu.causal_conv(x, torch.zeros(9, 4), torch.zeros(2, dtype=torch.int32), [])
    heads = torch.zeros(2, 2, 8)
    with pytest.raises(ConfigError, match="gated_delta got"):
        gpu.gated_delta(heads, heads, heads, x, x, torch.zeros(2, dtype=torch.int32), [torch.zeros(2, 8, 9)])
    with pytest.raises(ConfigError, match="a state is"):
        gpu.causal_conv(x, torch.zeros(8, 4), torch.zeros(2, dtype=torch.int32), [torch.zeros(3, 8).half()])
