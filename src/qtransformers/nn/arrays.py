"""Arrays cut, joined and mapped where they live: what NumPy and torch call by different names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qtransformers.kernels import kernels_for


def split(x: Any, at: int | Sequence[int], axis: int = -1) -> list[Any]:
    """Contiguous parts of an array, cut before each of the places `at`."""
    return kernels_for(x).split(x, (at,) if isinstance(at, int) else tuple(at), axis)


def join(*parts: Any) -> Any:
    """Arrays one after the other along the last axis."""
    return kernels_for(parts[0]).join(parts)


def repeat(x: Any, n: int, axis: int) -> Any:
    """Each part along an axis `n` times in a row."""
    return kernels_for(x).repeat(x, n, axis)


def log1p(x: Any) -> Any:
    """`log(1 + x)` of whole numbers, as f32."""
    return kernels_for(x).log1p(x)


def softplus(x: Any) -> Any:
    """`log(1 + exp(x))`, without overflow."""
    return kernels_for(x).softplus(x)
