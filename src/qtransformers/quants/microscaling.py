"""4-bit floats (E2M1) with scales of 8 bits. The codebook holds twice the values, so the scales are read halved.

Sources: OCP Microscaling Formats 1.0; ggml-impl.h of llama.cpp for the scales' special values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qtransformers.quants.bits import F32, Blocks, Values, planes
from qtransformers.quants.codebooks import codebook


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


DECODE = {"MXFP4": mxfp4, "NVFP4": nvfp4}
