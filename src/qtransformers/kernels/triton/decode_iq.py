"""Decoders of the IQ types, whose indices point to 4 or 8 neighbours in a codebook: see `blocks`."""

from __future__ import annotations

import triton
import triton.language as tl

from qtransformers.kernels.triton.words import (
    ONES,
    TOPS,
    byte_at,
    groups,
    half_at,
    half_of,
    places,
    short_at,
    spread,
    word_at,
)


@triton.jit
def _signed(codes, bits):
    """Bytes from 1 to 127 negated where a bit is set."""
    ones = spread(bits & 15)
    return (codes ^ ((ones << 8) - ones)) + ones


@triton.jit
def _with_parity(pattern):
    """Seven signs and the eighth that makes their number even."""
    return pattern | (((0x6996 >> ((pattern ^ (pattern >> 4)) & 15)) & 1) << 7)


@triton.jit
def _quarter_scales(blocks, OFFSET: tl.constexpr):
    """`d (scale + 1/2) / 4` of 16 groups."""
    i = groups(16)
    s = (byte_at((blocks + OFFSET)[:, :, None] + i // 2) >> (4 * (i % 2))) & 15
    return half_at(blocks)[:, :, None] * (0.5 + s.to(tl.float32)) * 0.25


@triton.jit
def iq2_xxs(blocks, book, P: tl.constexpr):
    """8 groups of 32 in two words: four points, then four patterns of signs and a scale of 4 bits."""
    g, w = places(8, 8)
    at = (blocks + 2)[:, :, None, None]
    index, signs = byte_at(at + 8 * g + w // 2), word_at(at, 2 * g + 1 + 0 * w, 2) >> (7 * (w // 2))
    words = _signed(tl.load(book + 2 * index + w % 2), _with_parity(signs & 127) >> (4 * (w % 2)))
    s = (word_at((blocks + 2)[:, :, None], 2 * groups(8) + 1, 2) >> 28) & 15
    scale = half_at(blocks)[:, :, None] * (0.5 + s.to(tl.float32)) * 0.25
    return words, scale, tl.zeros_like(scale)


@triton.jit
def iq2_xs(blocks, book, P: tl.constexpr):
    """16 groups of 16: points of 9 bits under patterns of signs of 7."""
    g, w = places(16, 4)
    both = short_at((blocks + 2)[:, :, None, None] + 4 * g + 2 * (w // 2))
    words = _signed(tl.load(book + 2 * (both & 511) + w % 2), _with_parity(both >> 9) >> (4 * (w % 2)))
    scale = _quarter_scales(blocks, 66)
    return words, scale, tl.zeros_like(scale)


@triton.jit
def iq2_s(blocks, book, P: tl.constexpr):
    """16 groups of 16: points of 10 bits, the upper two together, and a sign bit for each value."""
    g, w = places(16, 4)
    at, i = blocks[:, :, None, None], 2 * g + w // 2
    high = byte_at(at + 66 + i // 4) >> (2 * (i % 4))
    index = byte_at(at + 2 + i) | ((high & 3) << 8)
    words = _signed(tl.load(book + 2 * index + w % 2), byte_at(at + 34 + i) >> (4 * (w % 2)))
    scale = _quarter_scales(blocks, 74)
    return words, scale, tl.zeros_like(scale)


@triton.jit
def iq3_xxs(blocks, book, P: tl.constexpr):
    """8 groups of 32: eight points of 4 values, then, as in IQ2_XXS, signs and scale."""
    g, w = places(8, 8)
    at = blocks[:, :, None, None]
    signs = word_at((blocks + 66)[:, :, None, None], g + 0 * w, 2) >> (7 * (w // 2))
    words = _signed(tl.load(book + byte_at(at + 2 + 8 * g + w)), _with_parity(signs & 127) >> (4 * (w % 2)))
    s = (word_at((blocks + 66)[:, :, None], groups(8), 2) >> 28) & 15
    scale = half_at(blocks)[:, :, None] * (0.5 + s.to(tl.float32)) * 0.5
    return words, scale, tl.zeros_like(scale)


@triton.jit
def iq3_s(blocks, book, P: tl.constexpr):
    """8 groups of 32: points of 9 bits, the upper one apart; a sign bit for each value; odd scales."""
    g, w = places(8, 8)
    at = blocks[:, :, None, None]
    index = byte_at(at + 2 + 8 * g + w) | (((byte_at(at + 66 + g + 0 * w) >> w) & 1) << 8)
    words = _signed(tl.load(book + index), byte_at(at + 74 + 4 * g + w // 2) >> (4 * (w % 2)))
    i = groups(8)
    s = (byte_at((blocks + 106)[:, :, None] + i // 2) >> (4 * (i % 2))) & 15
    scale = half_at(blocks)[:, :, None] * (2 * s + 1).to(tl.float32)
    return words, scale, tl.zeros_like(scale)


@triton.jit
def _shifted(points, down):
    """Eighths: points, eight times each and 128 more, shifted up by one, or down."""
    return (points + tl.where(down, -ONES, ONES)) ^ TOPS


@triton.jit
def iq1_s(blocks, book, P: tl.constexpr):
    """8 groups of 32: points of 11 bits, the upper three with scale and sign of the shift in a half-word of the group."""
    g, w = places(8, 8)
    high = short_at((blocks + 34)[:, :, None, None] + 2 * g + 0 * w)
    index = byte_at((blocks + 2)[:, :, None, None] + 4 * g + w // 2) | (((high >> (3 * (w // 2))) & 7) << 8)
    words = _shifted(tl.load(book + 2 * index + w % 2), high >= 0x8000)
    s = (short_at((blocks + 34)[:, :, None] + 2 * groups(8)) >> 12) & 7
    scale = half_at(blocks)[:, :, None] * (2 * s + 1).to(tl.float32) * 0.125
    return words, scale, tl.zeros_like(scale)


@triton.jit
def iq1_m(blocks, book, P: tl.constexpr):
    """16 groups of 16: as IQ1_S, with a shift for each point; `d` is spread over the top nibbles of the scales."""
    g, w = places(16, 4)
    at = blocks[:, :, None, None]
    high = byte_at(at + 32 + g + 0 * w) >> (4 * (w // 2))
    index = byte_at(at + 2 * g + w // 2) | ((high & 7) << 8)
    words = _shifted(tl.load(book + 2 * index + w % 2), (high & 8) != 0)
    i = groups(16)
    first, second = word_at((blocks + 48)[:, :, None], 0 * i, 8), word_at((blocks + 52)[:, :, None], 0 * i, 4)
    d = ((first >> 12) & 15) | ((first >> 24) & 0xF0) | ((second >> 4) & 0xF00) | ((second >> 16) & 0xF000)
    s = (short_at((blocks + 48)[:, :, None] + 2 * (i // 4)) >> (3 * (i % 4))) & 7
    scale = half_of(d) * (2 * s + 1).to(tl.float32) * 0.125
    return words, scale, tl.zeros_like(scale)
