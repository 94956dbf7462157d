"""Block formats in NumPy, the truth, and in C++, the same bits faster."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import ConfigError, GGUFError, UnsupportedError
from qtransformers.settings import Settings, usable_cores
from qtransformers.types import QuantType

_PARALLEL = 1 << 20  # values from which threads pay


def dequantize(
    data: NDArray[np.uint8],
    type: QuantType,
    out: NDArray[np.float32] | None = None,
    *,
    threads: int | None = None,
    isa: str | None = None,
) -> NDArray[np.float32]:
    """Decode whole blocks `[nbytes]` to f32 `[n_blocks * block_size]`, into `out` where given.

    `threads` and `isa` (generic, avx2, avx512) default to the environment's, then to the machine's best.
    GGUFError for bytes that are no whole blocks, UnsupportedError for a type that holds no floats, ConfigError for a wrong `out`.
    """
    from qtransformers.native import lib  # types and sizes are read without the extension

    n = check_blocks(data, type) * type.block_size
    if out is None:
        out = np.empty(n, np.float32)
    else:
        check_out(out, n)
    settings = Settings.from_env()
    if threads is None:
        threads = (settings.threads or usable_cores()) if n >= _PARALLEL else 1
    try:
        lib.dequantize(data, type.id, out, threads, isa or settings.isa or "")
    except ValueError as e:
        raise ConfigError(str(e)) from None
    return out


def check_blocks(data: NDArray[np.uint8], type: QuantType) -> int:
    """The number of blocks in `data [nbytes]`; errors as for `dequantize`."""
    if type.family == "int":
        raise UnsupportedError(
            f"{type.name} holds whole numbers, which are not decoded; read them with QTensor.numpy()."
        )
    if data.dtype != np.uint8 or data.ndim != 1 or not data.flags.c_contiguous:
        raise ConfigError(f"blocks of {type.name} are {_what(data)}; expected contiguous uint8 [nbytes].")
    n, rest = divmod(data.size, type.block_bytes)
    if rest:
        raise GGUFError(
            f"{data.size} bytes are no whole number of {type.name} blocks; expected a multiple of {type.block_bytes}. "
            "The tensor is truncated or its type is wrong."
        )
    return n


def check_out(out: NDArray[np.float32], n: int) -> None:
    """ConfigError unless `out` can take `n` floats in place."""
    if out.dtype != np.float32 or out.shape != (n,) or not out.flags.c_contiguous or not out.flags.writeable:
        raise ConfigError(f"out is {_what(out)}; expected writable contiguous float32 [{n}].")


def _what(x: NDArray[Any]) -> str:
    order = "" if x.flags.c_contiguous else " non-contiguous"
    return f"{'' if x.flags.writeable else 'read-only '}{order}{x.dtype} {list(x.shape)}".strip()
