"""The CPU kernels, bound from the C++ extension. (Until they land, the NumPy twins serve.)"""

from __future__ import annotations

from qtransformers.kernels.reference import attention, embedding, linear, rms_norm, rope, swiglu
from qtransformers.tensor import QTensor

__all__ = ["Weight", "attention", "bind", "embedding", "linear", "rms_norm", "rope", "swiglu"]

Weight = QTensor


def bind(tensor: QTensor) -> Weight:
    """A weight the kernels can multiply with: pointer, type and shape, bound once at load."""
    return tensor
