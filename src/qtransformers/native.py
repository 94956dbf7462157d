"""The C++ extension, bound once; everything native is reached through this module."""

from __future__ import annotations

from typing import Any

from qtransformers.errors import QTransformersError

try:
    from qtransformers import _native
except ImportError as e:  # a broken install should say what to do, not where Python looked
    raise QTransformersError(
        f"the C++ extension of qtransformers cannot be loaded ({e}). Install the package again: pip install --force-reinstall qtransformers"
    ) from e

lib: Any = _native

__all__ = ["lib"]
