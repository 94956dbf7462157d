"""Recurrent layers on the CPU, in NumPy: many tokens at a time, as matrix products. Twins in `reference.py`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qtransformers.kernels.reference import F32, Ints

CHUNK = 32  # tokens whose mutual influence is one triangular system


def causal_conv(x: F32, kernel: F32, starts: Ints, pasts: Sequence[F32]) -> F32:
    """Each channel of `x [T, C]` with `kernel [C, K]` over the K last tokens of its sequence, whose last K - 1 of before are `pasts[s] [K - 1, C]`."""
    y = np.empty_like(x)
    width = kernel.shape[1]
    for s, past in enumerate(pasts):
        rows = np.concatenate([past, x[starts[s] : starts[s + 1]]])
        n = len(rows) - width + 1
        y[starts[s] : starts[s + 1]] = sum(rows[j : j + n] * kernel[:, j] for j in range(width))
        past[:] = rows[n:]
    return y


def gated_delta(q: F32, k: F32, v: F32, decay: F32, beta: F32, starts: Ints, states: Sequence[F32]) -> F32:
    """See `nn.gated_delta`; chunks in the form of arXiv:2406.06484, section 3."""
    group = v.shape[1] // k.shape[1]
    q, k = (np.repeat(unit(x), group, 1).swapaxes(0, 1) for x in (q, k))  # [H, T, D]
    q = q * np.float32(q.shape[-1] ** -0.5)
    y = np.empty(v.shape, np.float32)
    v, decay, beta = (np.ascontiguousarray(x.swapaxes(0, 1)) for x in (v, decay, beta))
    for s, state in enumerate(states):
        for first in range(starts[s], starts[s + 1], CHUNK):
            t = slice(first, min(first + CHUNK, starts[s + 1]))
            y[t] = _chunk(q[:, t], k[:, t], v[:, t], decay[:, t], beta[:, t], state).swapaxes(0, 1)
    return y


def unit(x: F32) -> F32:
    """Each head of length 1."""
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + np.float32(1e-6))


def _chunk(q: F32, k: F32, v: F32, decay: F32, beta: F32, state: F32) -> F32:
    """Tokens of one chunk `[H, n, D]`; `state [H, D_k, D_v]` goes from before to after it."""
    n = q.shape[1]
    past = np.cumsum(decay, 1, dtype=np.float64)  # decay since the chunk began
    lower = np.tril(np.ones((n, n), bool))
    between = np.exp(np.where(lower, past[:, :, None] - past[:, None], -np.inf)).astype(np.float32)  # [H, n, n]
    since = np.exp(past).astype(np.float32)[..., None]
    kt = k.swapaxes(1, 2)
    # what each token writes depends on what those before it wrote: (1 + strictly lower) written = beta (v - k state)
    mutual = np.tril(beta[..., None] * (k @ kt) * between, -1) + np.eye(n, dtype=np.float32)
    written = np.linalg.solve(mutual, beta[..., None] * (v - since * (k @ state)))
    y = since * (q @ state) + ((q @ kt) * between) @ written
    state *= since[:, -1:]
    state += (kt * between[:, None, -1]) @ written
    return y
