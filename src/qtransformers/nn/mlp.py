"""Gated feed-forward activations."""

from __future__ import annotations

from typing import Any

from qtransformers.kernels import kernels_for


def swiglu(gate: Any, up: Any) -> Any:
    """`silu(gate) * up`, both `[T, n_ff]` (arXiv:2002.05202)."""
    return kernels_for(gate).swiglu(gate, up)
