"""Kernels by device: `kernels_for(array)` is the module that computes where the array lives."""

from __future__ import annotations

from functools import cache
from types import ModuleType

import numpy as np


def kernels_for(x: object) -> ModuleType:
    """The kernels of an array's device: C++ for NumPy arrays, Triton for torch tensors."""
    return _kernels(type(x))  # type: ignore[arg-type]  # classes are hashable, which mypy doubts


@cache  # an import statement in each of a token's 150 calls would take one percent of a small model's time
def _kernels(kind: type) -> ModuleType:
    if issubclass(kind, np.ndarray):
        from qtransformers.kernels import cpu

        return cpu
    if kind.__module__.partition(".")[0] == "torch":
        from qtransformers.kernels import triton

        return triton
    raise TypeError(f"no kernels for {kind.__module__}.{kind.__name__}; expected a NumPy array or a torch tensor.")
