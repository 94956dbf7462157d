"""Kernels by device: `kernels_for(array)` is the module that computes where the array lives."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np


def kernels_for(x: Any) -> ModuleType:
    """The kernels of an array's device."""
    if isinstance(x, np.ndarray):
        from qtransformers.kernels import cpu

        return cpu
    raise TypeError(f"no kernels for {type(x).__module__}.{type(x).__name__}; expected a NumPy array.")
