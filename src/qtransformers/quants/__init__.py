"""Block formats in NumPy, the truth, and in C++, the same bits faster."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.checks import whole
from qtransformers.errors import ConfigError, GGUFError, UnsupportedError
from qtransformers.machine import usable_cores
from qtransformers.quants.fitted import Scales, grid_of, pack, round_to, unpack
from qtransformers.quants.weights import row_power
from qtransformers.settings import MAX_THREADS, Settings
from qtransformers.types import QuantType

__all__ = [
    "Scales",
    "dequantize",
    "fit",
    "pack",
    "quantize",
    "reference_dequantize",
    "reference_quantize",
    "round_to",
    "unpack",
]

_LARGEST = 65504.0  # magnitude that a searched type may hold: the largest half
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

    `threads` and `isa` (a name of `QTRANSFORMERS_ISA`) default to the environment's, then to the machine's best.
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
    importance: NDArray[np.float32] | None = None,
    threads: int | None = None,
    isa: str | None = None,
) -> NDArray[np.uint8]:
    """Encode rows, f32 `[rows, in]` or one row `[in]`, as blocks `[nbytes]`, row after row; `in` fills whole blocks.

    F16, BF16 and Q8_0 round, bit for bit as ggml does; F16 and BF16 turn values beyond their range into infinity and keep NaN.
    The other types search for the scales that give the least weighted squared error (weights.py). `importance [in]`, finite and
    not negative, says how much errors in each column count: the mean squares of the activations. F32, F16, BF16 and Q8_0 ignore it.

    ConfigError names the place of NaN, infinity or a magnitude that the type cannot store, and a wrong array or importance;
    UnsupportedError for a type that holds no weights.
    """
    n = _n_values(x, type)
    out = _given_or_new(out, np.uint8, type.row_bytes(n))
    weights = _positive(importance, x)
    power = None if weights is None or not x.size else row_power(x.reshape(-1, x.shape[-1]))
    good = _native("quantize", x.reshape(-1), type, out, n, threads, isa, weights, power, *_near_points(type))
    _refuse(x, type, good * type.block_size)
    return out


def fit(
    x: NDArray[np.float32],
    type: QuantType,
    *,
    importance: NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> Scales:
    """The scales with which `quantize` would encode x; with `round_to` and `pack` (fitted.py) they make the same blocks.

    UnsupportedError for a type whose codes lie on no even grid; else as `quantize`.
    """
    grid_of(type)
    return unpack(quantize(x, type, importance=importance, threads=threads), type)[1]


def _near_points(type: QuantType) -> tuple[NDArray[Any], ...]:
    from qtransformers.quants.points import BOOKS, table

    if type.name not in BOOKS:
        return ()
    found = table(BOOKS[type.name].name)
    return found.ids, found.values


def _refuse(x: NDArray[np.float32], type: QuantType, first: int) -> None:
    """ConfigError unless `first`, the beginning of the first bad block, is past the end."""
    if first == x.size:
        return
    where = f"values {first}..{first + type.block_size - 1}"
    if x.ndim == 2:
        row, column = divmod(first, x.shape[1])
        where = f"row {row}, columns {column}..{column + type.block_size - 1}"
    limit = "127 * 65504" if type.name == "Q8_0" else f"{_LARGEST:.0f}"
    raise ConfigError(
        f"{where} hold NaN, infinity or a magnitude beyond {limit}, which {type.name} "
        "cannot store. Use F32 or BF16 for this tensor, or mend the weights."
    )


def _positive(importance: NDArray[np.float32] | None, x: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Importance with a mean of 1 and no zeros, so that scales stay defined where nothing counts."""
    if importance is None:
        return None
    width = x.shape[-1]
    if importance.dtype != np.float32 or importance.shape != (width,):
        raise ConfigError(
            f"importance: found {importance.dtype} {list(importance.shape)}; expected float32 [{width}], a number for each column."
        )
    bad = np.flatnonzero(~((importance >= 0) & (importance < np.inf)))
    if bad.size:
        raise ConfigError(
            f"importance of column {bad[0]} is {importance[bad[0]]}; expected finite numbers that are not negative. Collect it again."
        )
    mean = importance.mean(dtype=np.float64) if width else 0.0
    if mean == 0:
        return np.ones_like(importance)
    return np.maximum(importance / mean, 1e-6).astype(np.float32)


def reference_dequantize(data: NDArray[np.uint8], type: QuantType) -> NDArray[np.float32]:
    """`dequantize` in plain NumPy, the truth that the C++ path is compared with."""
    from qtransformers.quants.reference import decode

    _n_blocks(data, type)
    return decode(data, type)


def reference_quantize(
    x: NDArray[np.float32], type: QuantType, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """`quantize` in plain NumPy; what a type cannot store is not refused but garbled."""
    from qtransformers.quants.reference import encode

    _n_values(x, type)
    return encode(x.reshape(-1, x.shape[-1] if x.size else type.block_size), type, _positive(importance, x))


def _native(
    name: str,
    x: NDArray[Any],
    type: QuantType,
    out: NDArray[Any],
    n: int,
    threads: int | None,
    isa: str | None,
    *more: Any,
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
        return getattr(lib, name)(x, type.id, out, *more)


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
    from qtransformers.quants.reference import ENCODE, SEARCH

    if type.name not in ENCODE and type.name not in SEARCH:
        raise UnsupportedError(f"nothing here encodes {type.name}; expected one of {', '.join([*ENCODE, *SEARCH])}.")
    _check(x, np.float32, "x", (1, 2))
    if x.shape[-1] % type.block_size:
        raise ConfigError(
            f"{x.shape[-1]} values fill no whole number of {type.name} blocks; expected a multiple of {type.block_size}."
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


def _check(x: NDArray[Any], dtype: type[Any], what: str, dimensions: tuple[int, ...] = (1,)) -> None:
    if x.dtype != dtype or x.ndim not in dimensions or not x.flags.c_contiguous:
        order = "" if x.flags.c_contiguous else "non-contiguous "
        allowed = " or ".join(map(str, dimensions))
        raise ConfigError(
            f"{what}: found {order}{x.dtype} {list(x.shape)}; expected contiguous {np.dtype(dtype)} of {allowed} dimension{'s' if dimensions != (1,) else ''}."
        )
