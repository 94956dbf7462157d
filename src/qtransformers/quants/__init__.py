"""Block formats in NumPy, the truth, and in C++, the same bits faster."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.checks import whole
from qtransformers.errors import ConfigError, GGUFError, UnsupportedError
from qtransformers.machine import usable_cores
from qtransformers.settings import MAX_THREADS, Settings
from qtransformers.types import QuantType

__all__ = ["dequantize", "quantize", "reference_dequantize", "reference_quantize"]

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
    GGUFError for bytes that are no whole blocks, UnsupportedError for a type that holds no floats, ConfigError for a wrong array.
    """
    n = _n_blocks(data, type) * type.block_size
    out = _given_or_new(out, np.float32, n)
    _native("dequantize", data, type, out, n, threads, isa)
    return out


def quantize(
    x: NDArray[np.float32],
    type: QuantType,
    out: NDArray[np.uint8] | None = None,
    *,
    threads: int | None = None,
    isa: str | None = None,
) -> NDArray[np.uint8]:
    """Encode f32 `[n]` as whole blocks `[nbytes]` of F32, F16, BF16 or Q8_0, bit for bit as ggml does.

    F16 and BF16 round to nearest even, values beyond their range become infinity, NaN stays NaN. Q8_0 has neither:
    ConfigError names the place. UnsupportedError for another type, ConfigError for a wrong array or an `n` that fills no blocks.
    """
    n = _n_values(x, type)
    out = _given_or_new(out, np.uint8, type.row_bytes(n))
    good = _native("quantize", x, type, out, n, threads, isa)
    if good * type.block_size != n:
        first = good * type.block_size
        raise ConfigError(
            f"values {first}..{first + type.block_size - 1} hold NaN, infinity or a magnitude beyond 127 * 65504, which {type.name} "
            "cannot store. Use F32 or BF16 for this tensor, or mend the weights."
        )
    return out


def reference_dequantize(data: NDArray[np.uint8], type: QuantType) -> NDArray[np.float32]:
    """`dequantize` in plain NumPy, the truth that the C++ path is compared with."""
    from qtransformers.quants.reference import decode

    _n_blocks(data, type)
    return decode(data, type)


def reference_quantize(x: NDArray[np.float32], type: QuantType) -> NDArray[np.uint8]:
    """`quantize` in plain NumPy; what a type cannot store is not refused but garbled."""
    from qtransformers.quants.reference import encode

    _n_values(x, type)
    return encode(x, type)


def _native(
    name: str, x: NDArray[Any], type: QuantType, out: NDArray[Any], n: int, threads: int | None, isa: str | None
) -> Any:
    from qtransformers.native import lib  # types and sizes are read without the extension

    if threads is None:
        threads = (Settings.from_env().threads or usable_cores()) if n >= _PARALLEL else 1
    else:
        whole("threads", threads, 1, MAX_THREADS)
    if isa is None:
        isa = Settings.from_env().isa or ""
    try:
        pool = lib.Pool(threads, isa)
    except ConfigError:  # the system gives no more threads; an instruction set that this machine lacks is refused again
        pool = lib.Pool(1, isa)
    with pool:
        return getattr(lib, name)(x, type.id, out)


def _n_blocks(data: NDArray[np.uint8], type: QuantType) -> int:
    if type.family == "int":
        raise UnsupportedError(
            f"{type.name} holds whole numbers, which are not decoded; read them with QTensor.numpy()."
        )
    _check(data, np.uint8, f"blocks of {type.name}")
    n, rest = divmod(data.size, type.block_bytes)
    if rest:
        raise GGUFError(
            f"{data.size} bytes are no whole number of {type.name} blocks; expected a multiple of {type.block_bytes}. "
            "The tensor is truncated or its type is wrong."
        )
    return n


def _n_values(x: NDArray[np.float32], type: QuantType) -> int:
    from qtransformers.quants.reference import ENCODE

    if type.name not in ENCODE:
        raise UnsupportedError(f"nothing here encodes {type.name}; expected one of {', '.join(ENCODE)}.")
    _check(x, np.float32, "x")
    if x.size % type.block_size:
        raise ConfigError(
            f"{x.size} values fill no whole number of {type.name} blocks; expected a multiple of {type.block_size}."
        )
    return x.size


def _given_or_new(out: NDArray[Any] | None, dtype: type[Any], n: int) -> NDArray[Any]:
    if out is None:
        return np.empty(n, dtype)
    _check(out, dtype, "out")
    if out.size != n or not out.flags.writeable:
        raise ConfigError(
            f"out is {'' if out.flags.writeable else 'read-only '}[{out.size}]; expected a writable array [{n}]."
        )
    return out


def _check(x: NDArray[Any], dtype: type[Any], what: str) -> None:
    if x.dtype != dtype or x.ndim != 1 or not x.flags.c_contiguous:
        order = "" if x.flags.c_contiguous else "non-contiguous "
        raise ConfigError(
            f"{what}: found {order}{x.dtype} {list(x.shape)}; expected contiguous {np.dtype(dtype)} of one dimension."
        )
