"""Activations of feed-forward layers."""

from __future__ import annotations

from typing import Any

from qtransformers.kernels import kernels_for
from qtransformers.nn.adapted import StandIn
from qtransformers.nn.linear import linears


def gated(x: Any, w_gate: Any, w_up: Any, act: str = "silu", gate_bias: Any = None, up_bias: Any = None) -> Any:
    """`act(x w_gate^T + gate_bias) * (x w_up^T + up_bias)` of `x [T, n_embd]` and stored weights `[n_ff, n_embd]`: `[T, n_ff]`.

    `act`: `silu`, `gelu` (by tanh), or `gpt_oss`, whose product is of clamped values (arXiv:2002.05202, arXiv:2508.10925).
    """
    if isinstance(w_gate, StandIn) or isinstance(w_up, StandIn):
        gate, up = linears(x, (w_gate, w_up), (gate_bias, up_bias))
        return activate(gate, act, up)
    return kernels_for(x).gated(x, w_gate, w_up, act, gate_bias, up_bias)


def activate(x: Any, act: str, up: Any = None) -> Any:
    """A function of each value, times `up` where there is one, of `x`'s shape.

    `act`: `silu`, `gelu` (with tanh), `gelu_erf` (arXiv:1606.08415), `sigmoid`, `tanh`.
    """
    return kernels_for(x).activate(x, act, up)


def softcap(x: Any, cap: float) -> Any:
    """`cap * tanh(x / cap)`; `x` itself where `cap` is 0 (arXiv:2408.00118)."""
    return activate(x / cap, "tanh") * cap if cap else x
