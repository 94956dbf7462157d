"""Formats with one scale per block of 32, 64 or 128 values. Source: ggml-common.h and ggml-quants.c of llama.cpp."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.quants.bits import F32, Blocks, Values, column, neighbours, planes, round_away
from qtransformers.types import BY_NAME


def q4_0(b: Blocks) -> Values:
    """`d (q - 8)`."""
    return column(b, "d") * (planes(b["qs"], 4).reshape(-1, 32).astype(np.int8) - 8)


def q4_1(b: Blocks) -> Values:
    """`d q + m`."""
    return column(b, "d") * planes(b["qs"], 4).reshape(-1, 32) + column(b, "m")


def _five_bits(b: Blocks) -> NDArray[Any]:
    return planes(b["qs"], 4).reshape(-1, 32) | neighbours(b["qh"], 1, 32).astype(np.uint8) << 4


def q5_0(b: Blocks) -> Values:
    """`d (q - 16)`."""
    return column(b, "d") * (_five_bits(b).astype(np.int8) - 16)


def q5_1(b: Blocks) -> Values:
    """`d q + m`."""
    return column(b, "d") * _five_bits(b) + column(b, "m")


def q8(b: Blocks) -> Values:
    """`d q`: Q8_0, Q8_1 and Q8_K, whose sums serve dot products only."""
    return column(b, "d") * b["qs"]


def q1_0(b: Blocks) -> Values:
    """`d` where the bit is set, else `-d`."""
    return column(b, "d") * (2 * neighbours(b["qs"], 1, 8).reshape(-1, 128).astype(np.int8) - 1)


def q2_0(b: Blocks) -> Values:
    """`d (q - 1)`."""
    return column(b, "d") * (neighbours(b["qs"], 2, 4).reshape(-1, 64).astype(np.int8) - 1)


def encode_q8_0(x: F32) -> Blocks:
    """Blocks of `x [n, 32]`: the largest magnitude becomes 127."""
    b = np.empty(len(x), BY_NAME["Q8_0"].block)
    d = np.abs(x).max(-1, initial=0) / np.float32(127)
    inverse = 1 / d
    inverse[np.isinf(inverse)] = 0  # d is zero, or too small to divide by
    b["d"] = d
    b["qs"] = round_away(x * inverse[:, None])
    return b


DECODE = {"Q4_0": q4_0, "Q4_1": q4_1, "Q5_0": q5_0, "Q5_1": q5_1, "Q8_0": q8, "Q8_1": q8, "Q1_0": q1_0, "Q2_0": q2_0}
ENCODE = {"Q8_0": encode_q8_0}
