"""Decoders of the K types, 256 values in groups of 16 or 32: see `blocks`."""

from __future__ import annotations

import triton
import triton.language as tl

from qtransformers.kernels.triton.words import NIBBLES, byte_at, groups, half_at, less, places, turned, word_at


@triton.jit
def q2_k(blocks, book, P: tl.constexpr):
    """Groups of 16: `d scale q - dmin minimum`."""
    g, w = places(4, 4)
    words = (word_at((blocks + 16)[:, :, None, None], 4 * g + w, 4) >> (2 * P)) & 0x03030303
    i = groups(4)
    both = byte_at(blocks[:, :, None] + (8 * (i // 2) + i % 2 + 2 * P))
    scale = half_at(blocks + 80)[:, :, None] * (both & 15).to(tl.float32)
    return words, scale, half_at(blocks + 82)[:, :, None] * (both >> 4).to(tl.float32)


@triton.jit
def q3_k(blocks, book, P: tl.constexpr):
    """Groups of 16: `d (scale - 32) (q - 4)`; the third bits of q come first in the block."""
    g, w = places(4, 4)
    low = (word_at((blocks + 32)[:, :, None, None], 4 * g + w, 2) >> (2 * P)) & 0x03030303
    high = turned(word_at(blocks[:, :, None, None], 4 * (g % 2) + w, 2), 2 - 4 * (g // 2) - P) & 0x04040404
    i = groups(4)
    s = 2 * P + i % 2  # of 16, less the half
    packed = (blocks + 96)[:, :, None]
    nibble = (byte_at(packed + s) >> (4 * (i // 2))) & 15
    pair = (byte_at(packed + 8 + s % 4) >> (4 * (i // 2) + 2 * (P // 2))) & 3
    scale = half_at(blocks + 108)[:, :, None] * ((nibble | (pair << 4)) - 32).to(tl.float32)
    return less(low | high, 4), scale, tl.zeros_like(scale)


@triton.jit
def _affine(blocks, P: tl.constexpr):
    """`d scale` and `dmin minimum` of every other group of 32; the last four of each six bits are split over two places."""
    i = groups(4)
    packed = blocks[:, :, None]
    first, second, third = word_at(packed, 1, 16), word_at(packed, 2, 16), word_at(packed, 3, 16)
    late = i >= 2
    scales = tl.where(late, (third & NIBBLES) | ((first >> 2) & 0x30303030), first)
    minima = tl.where(late, ((third >> 4) & NIBBLES) | ((second >> 2) & 0x30303030), second)
    shift = 16 * (i % 2) + 8 * P
    scale = half_at(blocks)[:, :, None] * ((scales >> shift) & 63).to(tl.float32)
    return scale, half_at(blocks + 2)[:, :, None] * ((minima >> shift) & 63).to(tl.float32)


@triton.jit
def q4_k(blocks, book, P: tl.constexpr):
    """Groups of 32: `d scale q - dmin minimum`."""
    g, w = places(4, 8)
    words = (word_at((blocks + 16)[:, :, None, None], 8 * g + w, 16) >> (4 * P)) & NIBBLES
    scale, minimum = _affine(blocks, P)
    return words, scale, minimum


@triton.jit
def q5_k(blocks, book, P: tl.constexpr):
    """As Q4_K, the fifth bits in 32 bytes of their own."""
    g, w = places(4, 8)
    low = (word_at((blocks + 48)[:, :, None, None], 8 * g + w, 16) >> (4 * P)) & NIBBLES
    high = turned(word_at((blocks + 16)[:, :, None, None], w + 0 * g, 16), 4 - 2 * g - P) & 0x10101010
    scale, minimum = _affine(blocks, P)
    return low | high, scale, minimum


@triton.jit
def q6_k(blocks, book, P: tl.constexpr):
    """Groups of 16: `d scale (q - 32)`."""
    g, w = places(8, 4)
    low = (word_at(blocks[:, :, None, None], 4 * g + w, 2) >> (4 * P)) & NIBBLES
    pairs = word_at((blocks + 128)[:, :, None, None], 8 * (g // 4) + 4 * (g % 2) + w, 2)
    high = turned(pairs, 4 - 4 * P - 2 * ((g % 4) // 2)) & 0x30303030
    i = groups(8)
    at = (blocks + 192)[:, :, None] + (8 * (i // 4) + i % 4 + 4 * P)
    scale = half_at(blocks + 208)[:, :, None] * tl.load(at.to(tl.pointer_type(tl.int8))).to(tl.float32)
    return less(low | high, 32), scale, tl.zeros_like(scale)
