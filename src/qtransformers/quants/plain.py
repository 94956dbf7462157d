"""Plain floats."""

from __future__ import annotations

import numpy as np

from qtransformers.quants.bits import F32, Blocks, Values
from qtransformers.types import BY_NAME


def cast(b: Blocks) -> Values:
    """F32, F16, F64: to nearest even."""
    x: F32 = b["x"].astype(np.float32)
    return x


def bf16(b: Blocks) -> Values:
    """The upper half of a float."""
    return (b["x"].astype(np.uint32) << 16).view(np.float32)


def encode_f32(x: F32) -> Blocks:
    """As it is."""
    return x.astype("<f4").view(BY_NAME["F32"].block)


def encode_f16(x: F32) -> Blocks:
    """To nearest even; too large becomes infinity."""
    return x.astype("<f2").view(BY_NAME["F16"].block)


def encode_bf16(x: F32) -> Blocks:
    """To nearest even; NaN stays NaN."""
    bits = x.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> 16 & 1)
    high = np.where(np.isnan(x), bits | np.uint32(0x400000), rounded) >> 16
    return high.astype("<u2").view(BY_NAME["BF16"].block)


DECODE = {"F32": cast, "F16": cast, "F64": cast, "BF16": bf16}
ENCODE = {"F32": encode_f32, "F16": encode_f16, "BF16": encode_bf16}
