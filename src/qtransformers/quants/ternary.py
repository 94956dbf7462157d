"""Ternary types: 256 values of -1, 0 and 1 with one scale. Source: ggml-quants.c of llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from qtransformers.quants.bits import F32, Blocks, Fields, Values, Whole, column, pack_planes, planes


def _digits(x: NDArray[np.uint8], n: int) -> NDArray[np.int8]:
    """The first `n` digits after the point of bytes `[m, k]` read as fractions of 256 in base three, `[m, n * k]`."""
    rest = x[:, None, :] * np.uint8(3) ** np.arange(n, dtype=np.uint8)[:, None]
    digits = (rest.astype(np.uint16) * 3 >> 8).astype(np.int8)
    return digits.reshape(len(x), -1)


def _unpack_tq1_0(b: Blocks) -> Fields:
    """Five digits a byte and, in `qh`, four."""
    parts = _digits(b["qs"][:, :32], 5), _digits(b["qs"][:, 32:], 5), _digits(b["qh"], 4)
    return np.concatenate(parts, 1).reshape(-1, 1, 256) - 1, None, None


def _fractions(digits: Whole) -> NDArray[np.uint8]:
    """Bytes `[m, k]` whose first digits after the point `[m, n, k]` these are: the next fraction of 256 above them."""
    n = digits.shape[1]
    value = np.zeros((len(digits), digits.shape[2]), np.int32)
    for i in range(5):
        value = value * 3 + (digits[:, i] if i < n else 0)
    return ((value * 256 + 242) // 243).astype(np.uint8)


def _pack_tq1_0(b: Blocks, q: Whole, sc: Whole, m: Whole) -> None:
    digits = q.astype(np.int32) + 1
    b["qs"][:, :32] = _fractions(digits[:, :160].reshape(-1, 5, 32))
    b["qs"][:, 32:] = _fractions(digits[:, 160:240].reshape(-1, 5, 16))
    b["qh"] = _fractions(digits[:, 240:].reshape(-1, 4, 4))


def _unpack_tq2_0(b: Blocks) -> Fields:
    q = planes(b["qs"].reshape(-1, 2, 32), 2).reshape(-1, 1, 256)
    return q.astype(np.int8) - 1, None, None


def _pack_tq2_0(b: Blocks, q: Whole, sc: Whole, m: Whole) -> None:
    b["qs"] = pack_planes(q.reshape(-1, 2, 4, 32) + 1, 2).reshape(-1, 64)


def _decode(unpack: Callable[[Blocks], Fields], b: Blocks) -> F32:
    """`d q`."""
    y: F32 = column(b, "d") * unpack(b)[0].reshape(-1, 256)
    return y


UNPACK = {"TQ1_0": _unpack_tq1_0, "TQ2_0": _unpack_tq2_0}
PACK = {"TQ1_0": _pack_tq1_0, "TQ2_0": _pack_tq2_0}
DECODE: dict[str, Callable[[Blocks], Values]] = {name: partial(_decode, unpack) for name, unpack in UNPACK.items()}
