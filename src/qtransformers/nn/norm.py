"""Normalisation."""

from __future__ import annotations

from typing import Any

from qtransformers.kernels import kernels_for


def layer_norm(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    """`(x - mean) / sqrt(variance + eps) * weight + bias` over the last dimension; None for ones and for none (arXiv:1607.06450)."""
    return kernels_for(x).layer_norm(x, weight, bias, eps)


def rms_norm(x: Any, weight: Any, eps: float) -> Any:
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension, any leading shape (arXiv:1910.07467)."""
    return kernels_for(x).rms_norm(x, weight, eps)


def head_norm(x: Any, weight: Any, eps: float) -> Any:
    """Layer norm of each head of `x [T, H, D]`, by weights `[H, D]` of its own."""
    return layer_norm(x, None, None, eps) * weight
