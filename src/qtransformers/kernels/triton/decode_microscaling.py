"""Decoders of the types whose nibbles point into sixteen values: see `blocks`."""

from __future__ import annotations

import triton
import triton.language as tl

from qtransformers.kernels.triton.words import (
    byte_at,
    float_of,
    groups,
    half_at,
    half_of,
    looked_up,
    nibble_book,
    places,
    short_at,
    word_at,
)

IQ4 = tl.constexpr(nibble_book("iq4"))
FP4 = tl.constexpr(nibble_book("fp4"))


@triton.jit
def iq4_nl(blocks, book, P: tl.constexpr):
    """`d` times one of 16 values."""
    _, w = places(1, 4)
    scale = half_at(blocks)[:, :, None]
    return looked_up(word_at((blocks + 2)[:, :, None, None], w, 2), IQ4, P), scale, tl.zeros_like(scale)


@triton.jit
def iq4_xs(blocks, book, P: tl.constexpr):
    """8 groups of 32: `d (scale - 32)`; the upper two bits of the scales stand together."""
    g, w = places(8, 4)
    i = groups(8)
    low = byte_at((blocks + 4)[:, :, None] + i // 2) >> (4 * (i % 2))
    high = short_at((blocks + 2)[:, :, None] + 0 * i) >> (2 * i)
    scale = half_at(blocks)[:, :, None] * (((low & 15) | ((high & 3) << 4)) - 32).to(tl.float32)
    return looked_up(word_at((blocks + 8)[:, :, None, None], 4 * g + w, 8), IQ4, P), scale, tl.zeros_like(scale)


@triton.jit
def mxfp4(blocks, book, P: tl.constexpr):
    """`2^(e - 128)`, of which the two smallest are subnormal."""
    _, w = places(1, 4)
    e = byte_at(blocks)[:, :, None]
    scale = float_of(tl.where(e < 2, 0x00200000 << (e & 1), (e - 1) << 23))
    return looked_up(word_at((blocks + 1)[:, :, None, None], w, 1), FP4, P), scale, tl.zeros_like(scale)


@triton.jit
def nvfp4(blocks, book, P: tl.constexpr):
    """A scale of 8 bits for each 16: read as a half, whose exponent begins eight lower, then halved; 0x7f is zero."""
    g, w = places(4, 2)
    x = byte_at(blocks[:, :, None] + groups(4))
    scale = tl.where(x == 127, 0.0, half_of((x & 127) << 7) * 128.0)
    return looked_up(word_at((blocks + 4)[:, :, None, None], 2 * g + w, 4), FP4, P), scale, tl.zeros_like(scale)
