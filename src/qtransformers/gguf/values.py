"""The table of metadata value types, and one value to and from its bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import ConfigError

ARRAY = 9  # the type id of an array; its elements have a type of their own
MAX_STRING = 1 << 30  # bytes
MAX_ELEMENTS = 1 << 30
ESCAPE = "surrogateescape"  # bytes that are no UTF-8 survive a round trip as lone surrogates


class ValueType(NamedTuple):
    """One metadata type of GGUF."""

    id: int
    name: str
    code: str  # for struct and NumPy; empty for strings
    size: int  # bytes of one value; for a string its length alone


_ROWS = (
    ValueType(0, "u8", "u1", 1), ValueType(1, "i8", "i1", 1), ValueType(2, "u16", "u2", 2), ValueType(3, "i16", "i2", 2),
    ValueType(4, "u32", "u4", 4), ValueType(5, "i32", "i4", 4), ValueType(6, "f32", "f4", 4), ValueType(7, "bool", "?", 1),
    ValueType(8, "str", "", 8), ValueType(10, "u64", "u8", 8), ValueType(11, "i64", "i8", 8), ValueType(12, "f64", "f8", 8),
)  # fmt: skip
VALUE_TYPES = {row.id: row for row in _ROWS}
VALUE_NAMES = {row.name: row for row in _ROWS}
_BY_DTYPE = {np.dtype(row.code).newbyteorder("=").str: row for row in _ROWS if row.code}
INTEGERS = frozenset({"u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64"})
FLOATS = frozenset({"f32", "f64"})


@dataclass(frozen=True, eq=False)
class Typed:
    """A value with its GGUF type forced, `Typed("u64", 5)`; for a list or array the type is its elements'."""

    type: str
    value: Any


@dataclass(frozen=True)
class Encoded:
    """A value as it lies in a file: type id and payload, in the byte order `big_endian` says."""

    data: bytes
    big_endian: bool = False


def dtype_of(kind: ValueType, big_endian: bool) -> np.dtype[Any]:
    """The NumPy type of numbers as they lie in the file."""
    return np.dtype((">" if big_endian else "<") + kind.code)


def encode(value: Any, what: str, big_endian: bool = False) -> bytes:
    """Type id and payload of one value; ConfigError naming `what` when GGUF cannot hold it.

    Unforced, an int is u32 (i32 or 64 bits where it must), a float f32, a list of ints i32, bytes u8, and NumPy keeps its dtype.
    """
    if isinstance(value, Encoded):
        if value.big_endian != big_endian:
            raise ConfigError(f"{what} was read from a file of the other byte order; pass its value instead.")
        return value.data
    order = ">" if big_endian else "<"
    forced, value = (value.type, value.value) if isinstance(value, Typed) else (None, value)
    if forced is not None and forced not in VALUE_NAMES:
        raise ConfigError(f"{what} asks for type {forced!r}; expected one of {', '.join(VALUE_NAMES)}.")
    if isinstance(value, (bytes, bytearray)):
        value = np.frombuffer(value, np.uint8)
    if isinstance(value, np.ndarray) and value.dtype.kind == "U":
        value = value.tolist()
    if not (value.ndim if isinstance(value, np.ndarray) else isinstance(value, (list, tuple))):
        kind = VALUE_NAMES[forced] if forced else _kind_of(value, what)
        return struct.pack(order + "I", kind.id) + _pack([value], kind, what, order)
    kind = VALUE_NAMES[forced] if forced else _kind_of_elements(value, what)
    if len(value) > MAX_ELEMENTS:
        raise ConfigError(f"{what} has {len(value)} elements; GGUF arrays hold at most {MAX_ELEMENTS}.")
    return struct.pack(order + "IIQ", ARRAY, kind.id, len(value)) + _pack(value, kind, what, order)


def encode_string(text: str, what: str, order: str) -> bytes:
    """Length and bytes of a string; ConfigError for lone surrogates that stand for no byte, and past 1 GiB."""
    try:
        raw = text.encode("utf-8", ESCAPE)
    except UnicodeEncodeError as e:
        raise ConfigError(f"{what} holds {text[e.start]!r}, which UTF-8 cannot express. Remove it.") from None
    if len(raw) > MAX_STRING:
        raise ConfigError(f"{what} has {len(raw)} bytes; GGUF strings hold at most {MAX_STRING}.")
    return struct.pack(order + "Q", len(raw)) + raw


def _pack(values: Sequence[Any] | NDArray[Any], kind: ValueType, what: str, order: str) -> bytes:
    if kind.name == "str":
        if wrong := [v for v in values if not isinstance(v, str)]:
            raise ConfigError(f"{what} holds {wrong[0]!r:.80} among strings.")
        return b"".join(encode_string(v, what, order) for v in values)
    numbers = np.asarray(values)
    if numbers.dtype.kind == "f" and all(type(v) is int and v >= 0 for v in values):  # some of them past 2^63
        numbers = np.array(values, np.uint64)
    if numbers.ndim != 1 or numbers.dtype.kind not in "biuf":
        raise ConfigError(f"{what} is {values!r:.80}; expected {kind.name}, flat.")
    return _as_numbers(numbers, kind, what).astype(order + kind.code).tobytes()


def _as_numbers(numbers: NDArray[Any], kind: ValueType, what: str) -> NDArray[Any]:
    """Cast, refusing to lose anything but precision of floats."""
    target = np.dtype(kind.code)
    if not numbers.size:
        return numbers.astype(target)
    if target.kind == "f" and numbers.dtype.kind in "iuf":
        with np.errstate(over="ignore"):
            cast = numbers.astype(target)
        lost = np.isinf(cast) & ~np.isinf(numbers.astype(np.float64))
    elif numbers.dtype.kind in "biu" and (numbers.dtype.kind == "b") == (target.kind == "b"):
        cast = numbers.astype(target)
        lost = (cast != numbers) | ((cast < 0) != (numbers < 0)) if target.kind != "b" else np.zeros(1, bool)
    else:
        raise ConfigError(f"{what} holds {numbers.dtype} values; expected {kind.name}.")
    if lost.any():
        raise ConfigError(f"{what} is {numbers[lost][0]}, which {kind.name} cannot hold.")
    return cast


def _kind_of(value: Any, what: str) -> ValueType:
    if isinstance(value, str):
        return VALUE_NAMES["str"]
    if isinstance(value, (np.generic, np.ndarray)):
        if kind := _BY_DTYPE.get(np.asarray(value).dtype.newbyteorder("=").str):
            return kind
    elif isinstance(value, bool):
        return VALUE_NAMES["bool"]
    elif isinstance(value, float):
        return VALUE_NAMES["f32"]
    elif isinstance(value, int):
        return _integer(value, value, ("u32", "i32", "u64", "i64"), what)
    raise ConfigError(
        f"{what} is a {type(value).__name__}; GGUF metadata holds int, float, bool, str and flat lists of them."
    )


def _kind_of_elements(values: Sequence[Any] | NDArray[Any], what: str) -> ValueType:
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        return _kind_of(values, what)
    kinds = {str if isinstance(v, str) else type(v) for v in values}
    if not kinds:
        raise ConfigError(f'{what} is an empty list; name its type, Typed("str", []).')
    if kinds == {int}:
        return _integer(min(values), max(values), ("i32", "i64", "u64"), what)
    if kinds == {int, float}:
        return VALUE_NAMES["f32"]
    if len(kinds) > 1:
        raise ConfigError(f"{what} mixes {', '.join(sorted(k.__name__ for k in kinds))}; GGUF arrays hold one type.")
    return _kind_of(values[0], what)


def _integer(low: int, high: int, names: Sequence[str], what: str) -> ValueType:
    """The first of `names` that holds low..high."""
    for name in names:
        limits = np.iinfo(np.dtype(VALUE_NAMES[name].code))
        if limits.min <= low and high <= limits.max:
            return VALUE_NAMES[name]
    raise ConfigError(f"{what} is {high if abs(high) > abs(low) else low}; GGUF integers have at most 64 bits.")
