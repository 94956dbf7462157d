"""Layers that remember a sequence in a state of fixed size."""

from __future__ import annotations

from typing import Any

from qtransformers.kernels import kernels_for


def causal_conv(x: Any, kernel: Any, starts: Any, pasts: Any) -> Any:
    """Each channel of `x [T, C]` with `kernel [C, K]` over the K last tokens of its sequence, of `starts [S + 1]`: `[T, C]`.

    `pasts[s] [K - 1, C]` are the tokens before, and are moved on in place; like all states, as `cache.States` gives them.
    """
    return kernels_for(x).causal_conv(x, kernel, starts, pasts)


def gated_delta(q: Any, k: Any, v: Any, decay: Any, beta: Any, starts: Any, states: Any) -> Any:
    """The gated delta rule (arXiv:2412.06464) over sequences of `starts [S + 1]`: `[T, H, D_v]`.

    A head remembers a matrix `states[s][h] [D_k, D_v]`, updated in place: it fades by `exp(decay [T, H])`, what it has at
    `k [T, H_k, D_k]` moves towards `v [T, H, D_v]` by `beta [T, H]`, and `q [T, H_k, D_k]` reads it, times `D_k ** -0.5`.
    q and k are brought to length 1 here; each serves `H / H_k` neighbouring heads.
    """
    return kernels_for(q).gated_delta(q, k, v, decay, beta, starts, states)
