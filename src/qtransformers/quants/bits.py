"""What the block formats share: unpacking fields of bits, and the rounding of their scales."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Blocks = NDArray[np.void]  # [n] of a type's structure
F32 = NDArray[np.float32]
Whole = NDArray[Any]  # whole numbers
Fields = tuple[
    Whole, Whole | None, Whole | None
]  # codes `[n, groups, group]`, scales and minima `[n, groups]`, where there are any
Values = NDArray[Any]  # f32, the values of each block in order, in whatever shape they came about


def planes(x: NDArray[np.uint8], bits: int) -> NDArray[Any]:
    """Fields of `bits` bits of bytes `[..., k]`, as `[..., 8 // bits, k]`: first the lowest field of every byte, then the next."""
    shifts = np.arange(0, 8, bits).astype(np.uint8)
    return x[..., None, :] >> shifts[:, None] & np.uint8((1 << bits) - 1)


def pack_planes(fields: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """What `planes` takes apart: fields `[..., 8 // bits, k]` into bytes `[..., k]`."""
    shifts = np.arange(0, 8, bits).astype(np.uint8)
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(fields.astype(np.uint8) << shifts[:, None], axis=-2)
    return packed


def pack_neighbours(fields: NDArray[Any], bits: int, dtype: str) -> NDArray[Any]:
    """What `neighbours` takes apart: fields `[..., k, n]` into words `[..., k]`."""
    word = np.dtype(dtype)
    shifts = np.arange(0, fields.shape[-1] * bits, bits).astype(word)
    packed: NDArray[Any] = np.bitwise_or.reduce(fields.astype(word) << shifts, axis=-1)
    return packed


def neighbours(x: NDArray[Any], bits: int, n: int) -> NDArray[Any]:
    """The `n` lowest fields of `bits` bits of words `[..., k]`, as `[..., k, n]`: field by field, then word by word."""
    shifts = np.arange(0, n * bits, bits).astype(x.dtype)
    return x[..., None] >> shifts & x.dtype.type((1 << bits) - 1)


def column(b: Blocks, field: str) -> NDArray[Any]:
    """A scale of every block, as f32 `[n, 1]`."""
    return b[field].astype(np.float32)[:, None]


def round_away(x: F32) -> F32:
    """To the nearest whole number, halves away from zero."""
    whole = np.trunc(x)
    result: F32 = whole + np.copysign(np.abs(x - whole) >= np.float32(0.5), x)
    return result
