"""4-bit floats (E2M1) with scales of 8 bits. The codebook holds twice the values, so the scales are read halved.

Sources: OCP Microscaling Formats 1.0; ggml-impl.h of llama.cpp for the scales' special values.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from qtransformers.quants.bits import F32, Blocks, Values, pack_planes, planes
from qtransformers.quants.codebooks import codebook
from qtransformers.quants.search import inverse, total
from qtransformers.types import BY_NAME


def half_e8m0(e: NDArray[np.uint8]) -> F32:
    """`2^(e - 127) / 2`; no exponent is special."""
    return np.ldexp(np.ones(e.shape, np.float32), e.astype(np.int32) - 128)


def half_ue4m3(x: NDArray[np.uint8]) -> F32:
    """Four bits of exponent and three of mantissa, halved; the top bit is ignored, and 0x7f is zero."""
    exponent, mantissa = (x >> 3 & 15).astype(np.int32), (x & 7).astype(np.float32)
    value = np.where(exponent == 0, np.ldexp(mantissa, -10), np.ldexp(8 + mantissa, exponent - 11))
    return np.where(x == 0x7F, np.float32(0), value)


def mxfp4(b: Blocks) -> Values:
    """One exponent for 32 values."""
    return half_e8m0(b["e"])[:, None] * codebook("fp4")[0][planes(b["qs"], 4).reshape(-1, 32)]


def nvfp4(b: Blocks) -> Values:
    """A scale for each 16 of 64 values. (The scale per tensor that goes with it is a tensor of its own.)"""
    q = planes(b["qs"].reshape(-1, 4, 8), 4).reshape(-1, 4, 16)
    return half_ue4m3(b["d"])[..., None] * codebook("fp4")[0][q]


def _nearest(x: F32) -> NDArray[np.uint8]:
    """The codes nearest to values in units of the halved scale: a place among the magnitudes, and the sign."""
    magnitudes = codebook("fp4")[0][:8].astype(np.float32)
    place = np.searchsorted((magnitudes[1:] + magnitudes[:-1]) / 2, np.abs(x)).astype(np.uint8)
    return (place | (x < 0).astype(np.uint8) << 3).astype(np.uint8)


def _least_error(
    x: F32, w: F32, scales: Iterable[tuple[NDArray[np.uint8], F32]]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Scale `[groups, n]` out of (stored, halved) pairs and codes `[group, groups, n]` with the least error."""
    book = codebook("fp4")[0].astype(np.float32)
    best = code = np.zeros(0)
    error = np.full(x.shape[1:], np.inf, np.float32)
    for stored, scale in scales:
        q = _nearest(x * inverse(scale))
        off = scale * book[q] - x
        e = total(w * off * off)
        better = e < error
        best = np.where(better, stored, best if best.size else stored)
        code = np.where(better, q, code if code.size else q)
        error = np.where(better, e, error)
    return best.astype(np.uint8), code.astype(np.uint8)


def _exponent(x: F32) -> NDArray[np.int32]:
    """The exponent field of floats that are not negative."""
    field: NDArray[np.int32] = (x.view(np.uint32) >> 23).astype(np.int32)
    return field


def encode_mxfp4(x: F32, type_name: str, importance: F32 | None, power: F32 | None) -> Blocks:
    """Blocks of `x [n, 32]`: of the powers of two around the largest magnitude the one that errs least."""
    b = np.empty(len(x), BY_NAME[type_name].block)
    lanes, w = _lanes(x, importance, 1)
    middle = _exponent(np.abs(lanes).max(0)) - 2
    tried = (np.clip(middle + step, 0, 254).astype(np.uint8) for step in (0, -1, 1))
    e, q = _least_error(lanes, w, ((stored, half_e8m0(stored)) for stored in tried))
    b["e"] = e[0]
    b["qs"] = pack_planes(np.ascontiguousarray(q[:, 0].T).reshape(-1, 2, 16), 4)
    return b


def encode_nvfp4(x: F32, type_name: str, importance: F32 | None, power: F32 | None) -> Blocks:
    """Blocks of `x [n, 64]`: for each 16 the scale, out of those around the largest magnitude, that errs least."""
    b = np.empty(len(x), BY_NAME[type_name].block)
    lanes, w = _lanes(x, importance, 4)
    full = np.abs(lanes).max(0) * np.float32(1 / 12)
    normal = (full.view(np.int32) >> 20) - (119 << 3)
    middle = np.where(full < np.float32(2.0**-7), (full * np.float32(1024)).astype(np.int32), normal)
    tried = (np.clip(middle + step, 0, 126).astype(np.uint8) for step in (0, 1, -1, 2, -2, 3, -3, 4, -4, -5, -6))
    d, q = _least_error(lanes, w, ((stored, half_ue4m3(stored)) for stored in tried))
    b["d"] = d.T
    b["qs"] = pack_planes(np.ascontiguousarray(q.transpose(2, 1, 0)).reshape(-1, 4, 2, 8), 4).reshape(-1, 32)
    return b


def _lanes(x: F32, importance: F32 | None, groups: int) -> tuple[F32, F32]:
    """Values and weights as `[group, groups, n]`."""
    w = np.ones_like(x) if importance is None else importance
    values, weights = (np.ascontiguousarray(v.reshape(len(x), groups, -1).transpose(2, 1, 0)) for v in (x, w))
    return values, weights


DECODE = {"MXFP4": mxfp4, "NVFP4": nvfp4}
SEARCH = {"MXFP4": encode_mxfp4, "NVFP4": encode_nvfp4}
