"""Formats with one scale per block of 32, 64 or 128 values. Source: ggml-common.h and ggml-quants.c of llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from qtransformers.quants.bits import (
    F32,
    Blocks,
    Fields,
    Values,
    Whole,
    column,
    neighbours,
    pack_neighbours,
    pack_planes,
    planes,
    round_away,
)
from qtransformers.quants.search import ratio, to_half, total
from qtransformers.types import BY_NAME


def _unpack_q4_0(b: Blocks) -> Fields:
    return planes(b["qs"], 4).reshape(-1, 1, 32).astype(np.int8) - 8, None, None


def _pack_q4_0(b: Blocks, q: Whole, sc: Whole, m: Whole) -> None:
    _pack_q4_1(b, q + 8, sc, m)


def _unpack_q4_1(b: Blocks) -> Fields:
    return planes(b["qs"], 4).reshape(-1, 1, 32), None, None


def _pack_q4_1(b: Blocks, q: Whole, sc: Whole, m: Whole) -> None:
    b["qs"] = pack_planes((q & 15).reshape(-1, 2, 16), 4)


def _unpack_q5_0(b: Blocks) -> Fields:
    return _unpack_q5_1(b)[0].astype(np.int8) - 16, None, None


def _pack_q5_0(b: Blocks, q: Whole, sc: Whole, m: Whole) -> None:
    _pack_q5_1(b, q + 16, sc, m)


def _unpack_q5_1(b: Blocks) -> Fields:
    q = planes(b["qs"], 4).reshape(-1, 32) | neighbours(b["qh"], 1, 32).astype(np.uint8) << 4
    return q.reshape(-1, 1, 32), None, None


def _pack_q5_1(b: Blocks, q: Whole, sc: Whole, m: Whole) -> None:
    _pack_q4_1(b, q, sc, m)
    b["qh"] = pack_neighbours(q.reshape(-1, 32) >> 4, 1, "<u4")


def _unpack_q8_0(b: Blocks) -> Fields:
    return b["qs"].reshape(-1, 1, 32), None, None


def _pack_q8_0(b: Blocks, q: Whole, sc: Whole, m: Whole) -> None:
    b["qs"] = q.reshape(-1, 32)


def _decode(unpack: Callable[[Blocks], Fields], b: Blocks) -> F32:
    """`d q`, with `+ m` where the block has it."""
    y: F32 = column(b, "d") * unpack(b)[0].reshape(len(b), -1)
    return y + column(b, "m") if "m" in (b.dtype.names or ()) else y


def q8(b: Blocks) -> Values:
    """`d q`: Q8_0, Q8_1 and Q8_K, whose sums serve dot products only."""
    return column(b, "d") * b["qs"]


def q1_0(b: Blocks) -> Values:
    """`d` where the bit is set, else `-d`."""
    return column(b, "d") * (2 * neighbours(b["qs"], 1, 8).reshape(-1, 128).astype(np.int8) - 1)


def _unpack_q2_0(b: Blocks) -> Fields:
    return neighbours(b["qs"], 2, 4).reshape(-1, 1, 64).astype(np.int8) - 1, None, None


def _pack_q2_0(b: Blocks, q: Whole, sc: Whole, m: Whole) -> None:
    b["qs"] = pack_neighbours(q.reshape(-1, 16, 4) + 1, 2, "u1")


def encode_q1_0(x: F32, type_name: str, importance: F32 | None, power: F32 | None) -> Blocks:
    """Blocks of `x [n, 128]`: signs, and the weighted mean of the magnitudes."""
    b = np.empty(len(x), BY_NAME[type_name].block)
    lanes = np.ascontiguousarray(x.T)
    w = np.ones_like(lanes) if importance is None else np.ascontiguousarray(importance.T)
    b["d"] = to_half(ratio(total(w * np.abs(lanes)), total(w)))
    b["qs"] = pack_neighbours((x >= 0).reshape(-1, 16, 8), 1, "u1")
    return b


def encode_q8_0(x: F32) -> Blocks:
    """Blocks of `x [n, 32]`: the largest magnitude becomes 127."""
    b = np.empty(len(x), BY_NAME["Q8_0"].block)
    d = np.abs(x).max(-1, initial=0) / np.float32(127)
    inverse = 1 / d
    inverse[np.isinf(inverse)] = 0  # d is zero, or too small to divide by
    b["d"] = d
    b["qs"] = round_away(x * inverse[:, None])
    return b


UNPACK = {
    "Q4_0": _unpack_q4_0,
    "Q4_1": _unpack_q4_1,
    "Q5_0": _unpack_q5_0,
    "Q5_1": _unpack_q5_1,
    "Q8_0": _unpack_q8_0,
    "Q2_0": _unpack_q2_0,
}
PACK = {
    "Q4_0": _pack_q4_0,
    "Q4_1": _pack_q4_1,
    "Q5_0": _pack_q5_0,
    "Q5_1": _pack_q5_1,
    "Q8_0": _pack_q8_0,
    "Q2_0": _pack_q2_0,
}
DECODE: dict[str, Callable[[Blocks], Values]] = {
    **{name: partial(_decode, unpack) for name, unpack in UNPACK.items()}, "Q8_1": q8, "Q1_0": q1_0,
}  # fmt: skip
ENCODE = {"Q8_0": encode_q8_0}
SEARCH = {"Q1_0": encode_q1_0}
