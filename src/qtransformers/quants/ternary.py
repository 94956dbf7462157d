"""Ternary types: 256 values of -1, 0 and 1 with one scale. Source: ggml-quants.c of llama.cpp."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qtransformers.quants.bits import Blocks, Values, column, planes


def _digits(x: NDArray[np.uint8], n: int) -> NDArray[np.int8]:
    """The first `n` digits after the point of bytes `[m, k]` read as fractions of 256 in base three, `[m, n * k]`."""
    rest = x[:, None, :] * np.uint8(3) ** np.arange(n, dtype=np.uint8)[:, None]
    digits = (rest.astype(np.uint16) * 3 >> 8).astype(np.int8)
    return digits.reshape(len(x), -1)


def tq1_0(b: Blocks) -> Values:
    """`d (digit - 1)`, five digits a byte and, in `qh`, four."""
    parts = _digits(b["qs"][:, :32], 5), _digits(b["qs"][:, 32:], 5), _digits(b["qh"], 4)
    return column(b, "d") * (np.concatenate(parts, 1) - 1)


def tq2_0(b: Blocks) -> Values:
    """`d (q - 1)`."""
    q = planes(b["qs"].reshape(-1, 2, 32), 2).reshape(-1, 256)
    return column(b, "d") * (q.astype(np.int8) - 1)


DECODE = {"TQ1_0": tq1_0, "TQ2_0": tq2_0}
