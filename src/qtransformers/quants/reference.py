"""The truth about every type in plain NumPy; the C++ path must give the same bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qtransformers.quants import iq, k, legacy, microscaling, plain, ternary
from qtransformers.quants.bits import F32, Blocks, Values
from qtransformers.types import QuantType

DECODE: dict[str, Callable[[Blocks], Values]] = {
    **plain.DECODE, **legacy.DECODE, **k.DECODE, **iq.DECODE, **ternary.DECODE, **microscaling.DECODE,
}  # fmt: skip
ENCODE: dict[str, Callable[[F32], Blocks]] = {**plain.ENCODE, **legacy.ENCODE}

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


def encode(x: F32, type: QuantType) -> NDArray[np.uint8]:
    """Encode values that fill whole blocks, f32 `[n]`, to `[nbytes]`."""
    with np.errstate(all="ignore"):
        return ENCODE[type.name](x.reshape(-1, type.block_size)).view(np.uint8).reshape(-1)
