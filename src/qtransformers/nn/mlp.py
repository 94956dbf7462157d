"""Gated feed-forward activations."""

from __future__ import annotations

from typing import Any

from qtransformers.kernels import kernels_for


def gated(x: Any, w_gate: Any, w_up: Any, act: str = "silu", gate_bias: Any = None, up_bias: Any = None) -> Any:
    """`act(x w_gate^T + gate_bias) * (x w_up^T + up_bias)` of `x [T, n_embd]` and stored weights `[n_ff, n_embd]`: `[T, n_ff]`.

    `act`: `silu`, `gelu` (by tanh), or `gpt_oss`, whose product is of clamped values (arXiv:2002.05202, arXiv:2508.10925).
    """
    return kernels_for(x).gated(x, w_gate, w_up, act, gate_bias, up_bias)


def swiglu(gate: Any, up: Any) -> Any:
    """`silu(gate) * up`, both `[T, n_ff]` (arXiv:2002.05202)."""
    return kernels_for(gate).swiglu(gate, up)
