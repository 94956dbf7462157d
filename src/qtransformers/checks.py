"""Checks of arguments: a value of the right type and range, or a ConfigError that names the field."""

from __future__ import annotations

import math
import operator
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from qtransformers.errors import ConfigError


def shown(value: Any, limit: int = 60) -> str:
    """`value` as a message may show it: its repr, cut to `limit` characters."""
    try:
        text = repr(value)
    except Exception:  # a repr may raise: integers of more than 4,300 digits do
        return f"a {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 3] + "..."


def whole(name: str, value: Any, minimum: int, maximum: int) -> int:
    """`value` as an int of minimum..maximum; bool is no number."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or not minimum <= number <= maximum:
        raise ConfigError(f"{name}={shown(value)}; expected a whole number from {minimum} to {maximum}.")
    return number


def real(name: str, value: Any, minimum: float, maximum: float) -> float:
    """`value` as a finite float of minimum..maximum; bool and text are no numbers."""
    number = math.nan
    if not isinstance(value, (bool, str, bytes)):
        with suppress(TypeError, ValueError, OverflowError):
            number = float(value)
    if not minimum <= number <= maximum:
        raise ConfigError(f"{name}={shown(value)}; expected a number from {minimum:g} to {maximum:g}.")
    return number


def path(name: str, value: Any) -> Path:
    """`value`, text or a path-like object, as a path."""
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise ConfigError(f"{name}={shown(value)}; expected a path.")
    return Path(value)


def flag(name: str, value: Any) -> bool:
    """`value` as a bool; 0, 1, "yes" and None are none."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={shown(value)}; expected True or False.")
    return value


def text(name: str, value: Any) -> str:
    """`value` as a str that has a UTF-8 form."""
    if not isinstance(value, str):
        raise ConfigError(f"{name}={shown(value)}; expected text (str).")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as e:
        raise ConfigError(
            f"{name} has a lone surrogate at character {e.start}, which is no text. Decode it with errors='replace' first."
        ) from None
    return value


_UNITS = {unit + tail: base**i for tail, base in (("", 1024), ("IB", 1024), ("B", 1000)) for i, unit in enumerate(("", "K", "M", "G", "T")) if unit or tail != "IB"}  # fmt: skip
MAX_SIZE = 1 << 60  # bytes


def size(name: str, value: Any) -> int:
    """`value` in bytes: a whole number, or text such as `24GiB`, `24G` (the same), `24GB` (10^9); at least 1."""
    found = value
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*", value, re.ASCII)
        scale = _UNITS.get(match[2].upper()) if match else None
        found = round(float(match[1]) * scale) if match and scale else None
        if found is not None and match and not match[2] and 0 < found < 1 << 20:
            raise ConfigError(
                f"{name}={shown(value)} would be so many bytes; expected an amount of memory such as {match[1]}GiB."
            )
    if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= MAX_SIZE:
        raise ConfigError(f"{name}={shown(value)}; expected an amount of memory such as 24GiB or 500MB.")
    return found
