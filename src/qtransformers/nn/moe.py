"""Mixtures of experts: which experts a token goes to, and what they make of it (arXiv:1701.06538)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qtransformers.kernels import kernels_for
from qtransformers.nn.adapted import StandIn


def route(
    logits: Any,
    n_used: int,
    *,
    gate: str = "softmax",
    bias: Any = None,
    n_groups: int = 1,
    n_groups_used: int = 1,
    group_top: int = 1,
    normalize: bool = False,
    scale: float = 1.0,
) -> tuple[Any, Any]:
    """The `n_used` experts of each token by its router's `logits [T, n_experts]`: ids `[T, n_used]` i32, weights `[T, n_used]` f32.

    Weights are the `softmax` or `sigmoid` over all experts, divided by their sum over the chosen if `normalize`, times
    `scale`. `bias [n_experts]` counts in the choice only. With `n_groups` the experts come in so many equal groups, of which
    the `n_groups_used` with the largest sums of their `group_top` best are open. Best first, ties to the smaller id.
    Mixtral, Qwen3 and gpt-oss normalise (which makes it a softmax over the chosen); DeepSeek-V2 has groups by their best,
    DeepSeek-V3 a sigmoid, a bias and groups by their two best (arXiv:2412.19437). ConfigError for what cannot be.
    """
    return kernels_for(logits).route(logits, n_used, gate, bias, n_groups, n_groups_used, group_top, normalize, scale)


def moe(
    x: Any,
    ids: Any,
    weights: Any,
    w_gate: Any,
    w_up: Any,
    w_down: Any,
    act: str = "silu",
    gate_bias: Any = None,
    up_bias: Any = None,
    down_bias: Any = None,
    beside: Callable[[], Any] | None = None,
) -> Any:
    """Each token of `x [T, n_embd]` through its experts `ids [T, k]`, their outputs summed with `weights [T, k]`: `[T, n_embd]`.

    Experts are stored as `[n_experts, n_ff, n_embd]` (down: `[n_experts, n_embd, n_ff]`), their biases `[n_experts, n_ff]`
    (down: `[n_experts, n_embd]`). `act` joins gate and up: `silu`, `gelu` (tanh), or `gpt_oss`. What `beside()` gives, as
    shared experts do, is added; where the experts are on another device than x, it is computed meanwhile. ConfigError where shapes differ.
    """
    if isinstance(w_gate, StandIn):
        y = w_gate.moe(x, ids, weights, w_up, w_down, act, (gate_bias, up_bias, down_bias))
    else:
        run, given = kernels_for(x).moe, (x, ids, weights, w_gate, w_up, w_down, act, gate_bias, up_bias, down_bias)
        if beside is not None and not isinstance(x, np.ndarray):
            return run(*given, beside=beside)
        y = run(*given)
    return y if beside is None else y + beside()
