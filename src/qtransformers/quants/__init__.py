"""Block formats in NumPy, the truth, and in C++, the same bits faster."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import UnsupportedError
from qtransformers.types import QuantType


def dequantize(data: NDArray[np.uint8], type: QuantType) -> NDArray[np.float32]:
    """Decode whole blocks `[nbytes]` to f32 `[n_blocks * block_size]`; UnsupportedError for a type that holds no floats."""
    if type.name == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if type.family == "float":
        return data.view(type.block[0]).astype(np.float32)
    if type.name == "Q8_0":
        blocks = data.view(type.block)
        return (blocks["d"].astype(np.float32)[:, None] * blocks["qs"]).reshape(-1)
    raise UnsupportedError(f"{type.name} cannot be decoded to floats.")
