"""K types: 256 values in groups of 16 or 32 with small integer scales of their own. Source: ggml-quants.c of llama.cpp."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.quants.bits import F32, Blocks, Values, column, planes
from qtransformers.quants.legacy import q8


def q2_k(b: Blocks) -> Values:
    """16 groups of 16: `d scale q - dmin minimum`."""
    q = planes(b["qs"].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    scale, minimum = b["scales"] & 15, b["scales"] >> 4
    return (column(b, "d") * scale)[..., None] * q - (column(b, "dmin") * minimum)[..., None]


def q3_k(b: Blocks) -> Values:
    """16 groups of 16: `d (scale - 32) (q - 4)`, the third bit of q in `hmask`."""
    low, high = planes(b["qs"].reshape(-1, 2, 32), 2).reshape(-1, 8, 32), planes(b["hmask"], 1)
    q = (low | high << 2).astype(np.int8) - 4
    scale = planes(b["scales"][:, :8], 4).reshape(-1, 16) | planes(b["scales"][:, 8:], 2).reshape(-1, 16) << 4
    return (column(b, "d") * (scale.astype(np.int8) - 32))[..., None] * q.reshape(-1, 16, 16)


def _scales_and_minima(packed: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Eight scales and eight minima of 6 bits out of 12 bytes; the last four of each are split over two places."""
    s, m, low = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([s & 63, low & 15 | s >> 6 << 4], 1)
    minima = np.concatenate([m & 63, low >> 4 | m >> 6 << 4], 1)
    return scales, minima


def _affine(b: Blocks, q: NDArray[Any]) -> F32:
    scales, minima = _scales_and_minima(b["scales"])
    return (column(b, "d") * scales)[..., None] * q - (column(b, "dmin") * minima)[..., None]


def q4_k(b: Blocks) -> Values:
    """8 groups of 32: `d scale q - dmin minimum`."""
    return _affine(b, planes(b["qs"].reshape(-1, 4, 32), 4).reshape(-1, 8, 32))


def q5_k(b: Blocks) -> Values:
    """As Q4_K, the fifth bit of q in `qh`."""
    low = planes(b["qs"].reshape(-1, 4, 32), 4).reshape(-1, 8, 32)
    return _affine(b, low | planes(b["qh"], 1) << 4)


def q6_k(b: Blocks) -> Values:
    """16 groups of 16: `d scale (q - 32)`."""
    low = planes(b["ql"].reshape(-1, 2, 64), 4).reshape(-1, 16, 16)
    high = planes(b["qh"].reshape(-1, 2, 32), 2).reshape(-1, 16, 16)
    q = (low | high << 4).astype(np.int8) - 32
    return (column(b, "d") * b["scales"])[..., None] * q


DECODE = {"Q2_K": q2_k, "Q3_K": q3_k, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k, "Q8_K": q8}
