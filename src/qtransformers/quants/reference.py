"""The truth about every type in plain NumPy; the C++ path must give the same bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from qtransformers.quants import encode as search
from qtransformers.quants import iq, k, legacy, microscaling, plain, ternary
from qtransformers.quants.bits import F32, Blocks, Values
from qtransformers.quants.weights import row_power
from qtransformers.types import QuantType

DECODE: dict[str, Callable[[Blocks], Values]] = {
    **plain.DECODE, **legacy.DECODE, **k.DECODE, **iq.DECODE, **ternary.DECODE, **microscaling.DECODE,
}  # fmt: skip
ENCODE: dict[str, Callable[[F32], Blocks]] = {**plain.ENCODE, **legacy.ENCODE}  # by rounding alone
SEARCH: Mapping[str, Callable[[F32, str, F32 | None, F32 | None], Blocks]] = search.ENCODE

_CHUNK = 1 << 20  # values decoded at a time, which bounds the temporaries


def decode(data: NDArray[np.uint8], type: QuantType) -> F32:
    """Decode whole blocks `[nbytes]` to f32 `[n_blocks * block_size]`."""
    blocks = data.view(type.block)
    out = np.empty((len(blocks), type.block_size), np.float32)
    step = _CHUNK // type.block_size
    with np.errstate(all="ignore"):
        for i in range(0, len(blocks), step):
            part = out[i : i + step]
            part[:] = DECODE[type.name](blocks[i : i + step]).reshape(part.shape)
    return out.reshape(-1)


def encode(x: F32, type: QuantType, importance: F32 | None = None) -> NDArray[np.uint8]:
    """Encode rows that fill whole blocks, f32 `[rows, in]`, to `[nbytes]`; `importance [in]` is positive."""
    blocks = x.reshape(-1, type.block_size)
    if type.name in ENCODE:
        with np.errstate(all="ignore"):
            return ENCODE[type.name](blocks).view(np.uint8).reshape(-1)
    out, step = np.empty((len(blocks), type.block_bytes), np.uint8), _CHUNK // type.block_size
    weights, means = spread(x, type, importance)
    for i in range(0, len(blocks), step):
        part = slice(i, i + step)
        with np.errstate(all="ignore"):
            found = SEARCH[type.name](
                blocks[part],
                type.name,
                None if weights is None else weights[part],
                None if means is None else means[part],
            )
        out[part] = found.view(np.uint8).reshape(-1, type.block_bytes)
    return out.reshape(-1)


def spread(x: F32, type: QuantType, importance: F32 | None) -> tuple[F32 | None, F32 | None]:
    """Importance of the values of each block `[n, block]`, and the mean square of its row `[n]`."""
    if importance is None:
        return None, None
    per_row = x.shape[-1] // type.block_size
    each = np.broadcast_to(importance.reshape(per_row, type.block_size), (len(x), per_row, type.block_size))
    return each.reshape(-1, type.block_size), np.repeat(row_power(x), per_row)
