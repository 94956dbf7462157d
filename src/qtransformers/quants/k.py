"""K types: 256 values in groups of 16 or 32 with small integer scales of their own. Source: ggml-quants.c of llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.quants.bits import F32, Blocks, Fields, Values, Whole, column, pack_planes, planes
from qtransformers.quants.legacy import q8

Unpack = Callable[[Blocks], Fields]


def _unpack_q2_k(b: Blocks) -> Fields:
    q = planes(b["qs"].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    return q, b["scales"] & 15, b["scales"] >> 4


def _pack_q2_k(b: Blocks, q: Whole, sc: Whole, m: Whole) -> None:
    b["qs"] = pack_planes(q.reshape(-1, 2, 4, 32), 2).reshape(-1, 64)
    b["scales"] = sc | m << 4


def _unpack_q3_k(b: Blocks) -> Fields:
    """The third bit of q is in `hmask`, the upper two of a scale in the last four bytes."""
    low, high = planes(b["qs"].reshape(-1, 2, 32), 2).reshape(-1, 8, 32), planes(b["hmask"], 1)
    q = (low | high << 2).astype(np.int8) - 4
    scale = planes(b["scales"][:, :8], 4).reshape(-1, 16) | planes(b["scales"][:, 8:], 2).reshape(-1, 16) << 4
    return q.reshape(-1, 16, 16), scale.astype(np.int8) - 32, None


def _pack_q3_k(b: Blocks, q: Whole, sc: Whole, m: Whole) -> None:
    q, scale = q + 4, sc + 32
    b["qs"] = pack_planes((q & 3).reshape(-1, 2, 4, 32), 2).reshape(-1, 64)
    b["hmask"] = pack_planes((q >> 2).reshape(-1, 8, 32), 1)
    b["scales"][:, :8] = pack_planes((scale & 15).reshape(-1, 2, 8), 4)
    b["scales"][:, 8:] = pack_planes((scale >> 4).reshape(-1, 4, 4), 2)


def _unpack_scales(packed: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Eight scales and eight minima of 6 bits out of 12 bytes; the last four of each are split over two places."""
    s, m, low = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([s & 63, low & 15 | s >> 6 << 4], 1)
    minima = np.concatenate([m & 63, low >> 4 | m >> 6 << 4], 1)
    return scales, minima


def _pack_scales(sc: Whole, m: Whole) -> Whole:
    first, last = slice(None, 4), slice(4, None)
    high = [v[:, first] | v[:, last] >> 4 << 6 for v in (sc, m)]
    return np.concatenate([*high, sc[:, last] & 15 | (m[:, last] & 15) << 4], 1)


def _unpack_q4_k(b: Blocks) -> Fields:
    return planes(b["qs"].reshape(-1, 4, 32), 4).reshape(-1, 8, 32), *_unpack_scales(b["scales"])


def _pack_q4_k(b: Blocks, q: Whole, sc: Whole, m: Whole) -> None:
    b["qs"] = pack_planes((q & 15).reshape(-1, 4, 2, 32), 4).reshape(-1, 128)
    b["scales"] = _pack_scales(sc, m)


def _unpack_q5_k(b: Blocks) -> Fields:
    """As Q4_K, the fifth bit of q in `qh`."""
    low, sc, m = _unpack_q4_k(b)
    return low | planes(b["qh"], 1) << 4, sc, m


def _pack_q5_k(b: Blocks, q: Whole, sc: Whole, m: Whole) -> None:
    _pack_q4_k(b, q, sc, m)
    b["qh"] = pack_planes((q >> 4).reshape(-1, 8, 32), 1)


def _unpack_q6_k(b: Blocks) -> Fields:
    low = planes(b["ql"].reshape(-1, 2, 64), 4).reshape(-1, 16, 16)
    high = planes(b["qh"].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    return (low | high << 4).astype(np.int8) - 32, b["scales"], None


def _pack_q6_k(b: Blocks, q: Whole, sc: Whole, m: Whole) -> None:
    q = q + 32
    b["ql"] = pack_planes((q & 15).reshape(-1, 2, 2, 64), 4).reshape(-1, 128)
    b["qh"] = pack_planes((q >> 4).reshape(-1, 2, 4, 32), 2).reshape(-1, 64)
    b["scales"] = sc


def _decode(unpack: Unpack, b: Blocks) -> F32:
    """`d scale q - dmin minimum`."""
    q, scale, minimum = unpack(b)
    y: F32 = (column(b, "d") * scale)[..., None] * q
    return y if minimum is None else y - (column(b, "dmin") * minimum)[..., None]


UNPACK = {"Q2_K": _unpack_q2_k, "Q3_K": _unpack_q3_k, "Q4_K": _unpack_q4_k, "Q5_K": _unpack_q5_k, "Q6_K": _unpack_q6_k}
PACK = {"Q2_K": _pack_q2_k, "Q3_K": _pack_q3_k, "Q4_K": _pack_q4_k, "Q5_K": _pack_q5_k, "Q6_K": _pack_q6_k}
DECODE: dict[str, Callable[[Blocks], Values]] = {
    **{name: partial(_decode, unpack) for name, unpack in UNPACK.items()},
    "Q8_K": q8,
}
