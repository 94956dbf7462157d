"""Weights on their way from a checkpoint to GGUF: which type, which rows, which bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import LoadError
from qtransformers.load.checkpoint import Stored
from qtransformers.quants import dequantize, quantize
from qtransformers.types import BY_NAME, QuantType

SLAB = 16 << 20  # bytes of f32 in flight
KEPT_ROLES = ("norm", "rope", "router", "position", "state")  # small, and the maths hangs on them


def stored_type(wanted: QuantType, role: str, shape: tuple[int, ...]) -> QuantType:
    """The type a weight of this role and shape gets when `wanted` was asked for.

    Vectors and kept roles stay F32; a width that is no multiple of the block becomes F16.
    """
    if len(shape) < 2 or role in KEPT_ROLES:
        return BY_NAME["F32"]
    return BY_NAME["F16"] if shape[-1] % wanted.block_size else wanted


def encoded(
    tensor: Stored,
    order: NDArray[np.intp] | None,
    to: QuantType,
    change: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """The bytes of `tensor` in type `to`, slab by slab of whole rows; `order` permutes the rows.

    With `change`, a function of all its values at once, the tensor is held in memory. LoadError for a value that is not
    finite, or becomes so in F16.
    """
    if change is not None:
        values = dequantize(np.ascontiguousarray(tensor.data), tensor.type).reshape(tensor.shape)
        check_finite(values.reshape(-1), tensor)
        yield _quantized(np.ascontiguousarray(change(values), np.float32).reshape(-1), tensor, to)
        return
    width = tensor.shape[-1] if len(tensor.shape) > 1 else 1  # a bias is a column: its values are the rows
    rows = tensor.data.reshape(-1, width * tensor.type.block_bytes)
    step = max(1, SLAB // (4 * width))
    for start in range(0, len(rows), step):
        slab = rows[start : start + step] if order is None else rows[order[start : start + step]]
        values = dequantize(np.ascontiguousarray(slab).reshape(-1), tensor.type)
        check_finite(values, tensor)
        yield np.ascontiguousarray(slab).reshape(-1) if to is tensor.type else _quantized(values, tensor, to)


def _quantized(values: NDArray[np.float32], tensor: Stored, to: QuantType) -> NDArray[np.uint8]:
    out = quantize(values, to)
    if to.name == "F16":
        check_finite(out.view(np.float16), tensor, " in F16. Convert to BF16 or F32")
    return out


def check_finite(values: NDArray[np.floating], tensor: Stored, remedy: str = ". The checkpoint is damaged") -> None:
    """LoadError when a value is NaN or infinite."""
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise LoadError(f"{tensor.file}: {tensor.name} holds {values[bad[0]]}{remedy}.")
