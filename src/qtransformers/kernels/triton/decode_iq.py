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
    in_turn,
    one_of_two,
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
def _points(book, index):
    """The two words of points of 8 values."""
    both = tl.load(book.to(tl.pointer_type(tl.int64)) + index)
    return both.to(tl.int32), (both >> 32).to(tl.int32)


@triton.jit
def _eights(book, index, signs):
    """Points of 8 values under signs of as many bits."""
    first, second = _points(book, index)
    return in_turn(_signed(first, signs), _signed(second, signs >> 4))


@triton.jit
def iq2_xxs(blocks, book, P: tl.constexpr):
    """8 groups of 32 in two words: four points, then four patterns of signs and a scale of 4 bits."""
    g, p = places(8, 4)
    at = (blocks + 2)[:, :, None, None]
    rest = word_at(at, 2 * g + 1 + 0 * p, 2) >> (7 * p)
    words = _eights(book, one_of_two(at, 8 * g + p), _with_parity(rest & 127))
    s = (word_at((blocks + 2)[:, :, None], 2 * groups(8) + 1, 2) >> 28) & 15
    scale = half_at(blocks)[:, :, None] * (0.5 + s.to(tl.float32)) * 0.25
    return words, scale, tl.zeros_like(scale)


@triton.jit
def iq2_xs(blocks, book, P: tl.constexpr):
    """16 groups of 16: points of 9 bits under patterns of signs of 7."""
    g, p = places(16, 2)
    both = short_at((blocks + 2)[:, :, None, None] + 4 * g + 2 * p)
    scale = _quarter_scales(blocks, 66)
    return _eights(book, both & 511, _with_parity(both >> 9)), scale, tl.zeros_like(scale)


@triton.jit
def iq2_s(blocks, book, P: tl.constexpr):
    """16 groups of 16: points of 10 bits, the upper two together, and a sign bit for each value."""
    g, p = places(16, 2)
    at, i = blocks[:, :, None, None], 2 * g + p
    high = byte_at(at + 66 + i // 4) >> (2 * (i % 4))
    words = _eights(book, one_of_two(at + 2, i) | ((high & 3) << 8), one_of_two(at + 34, i))
    scale = _quarter_scales(blocks, 74)
    return words, scale, tl.zeros_like(scale)


@triton.jit
def _fours(book, first, second, signs):
    """Two points of 4 values under signs of 8 bits."""
    return in_turn(_signed(tl.load(book + first), signs), _signed(tl.load(book + second), signs >> 4))


@triton.jit
def iq3_xxs(blocks, book, P: tl.constexpr):
    """8 groups of 32: eight points of 4 values, then, as in IQ2_XXS, signs and scale."""
    g, p = places(8, 4)
    both = short_at((blocks + 2)[:, :, None, None] + 8 * g + 2 * p)
    rest = word_at((blocks + 66)[:, :, None, None], g + 0 * p, 2) >> (7 * p)
    words = _fours(book, both & 255, both >> 8, _with_parity(rest & 127))
    s = (word_at((blocks + 66)[:, :, None], groups(8), 2) >> 28) & 15
    scale = half_at(blocks)[:, :, None] * (0.5 + s.to(tl.float32)) * 0.5
    return words, scale, tl.zeros_like(scale)


@triton.jit
def iq3_s(blocks, book, P: tl.constexpr):
    """8 groups of 32: points of 9 bits, the upper one apart; a sign bit for each value; odd scales."""
    g, p = places(8, 4)
    at = blocks[:, :, None, None]
    both, high = short_at(at + 2 + 8 * g + 2 * p), byte_at(at + 66 + g + 0 * p) >> (2 * p)
    first, second = (both & 255) | ((high << 8) & 256), (both >> 8) | ((high << 7) & 256)
    words = _fours(book, first, second, one_of_two(at + 74, 4 * g + p))
    i = groups(8)
    s = (byte_at((blocks + 106)[:, :, None] + i // 2) >> (4 * (i % 2))) & 15
    scale = half_at(blocks)[:, :, None] * (2 * s + 1).to(tl.float32)
    return words, scale, tl.zeros_like(scale)


@triton.jit
def _shifted(book, index, down):
    """Eighths: points of 8 values, eight times each and 128 more, shifted up by one, or down."""
    first, second = _points(book, index)
    shift = tl.where(down, -ONES, ONES)
    return in_turn((first + shift) ^ TOPS, (second + shift) ^ TOPS)


@triton.jit
def iq1_s(blocks, book, P: tl.constexpr):
    """8 groups of 32: points of 11 bits, the upper three with scale and sign of the shift in a half-word of the group."""
    g, p = places(8, 4)
    high = short_at((blocks + 34)[:, :, None, None] + 2 * g + 0 * p)
    index = one_of_two((blocks + 2)[:, :, None, None], 4 * g + p) | (((high >> (3 * p)) & 7) << 8)
    s = (short_at((blocks + 34)[:, :, None] + 2 * groups(8)) >> 12) & 7
    scale = half_at(blocks)[:, :, None] * (2 * s + 1).to(tl.float32) * 0.125
    return _shifted(book, index, high >= 0x8000), scale, tl.zeros_like(scale)


@triton.jit
def iq1_m(blocks, book, P: tl.constexpr):
    """16 groups of 16: as IQ1_S, with a shift for each point; `d` is spread over the top nibbles of the scales."""
    g, p = places(16, 2)
    at = blocks[:, :, None, None]
    high = byte_at(at + 32 + g + 0 * p) >> (4 * p)
    words = _shifted(book, byte_at(at + 2 * g + p) | ((high & 7) << 8), (high & 8) != 0)
    i = groups(16)
    first, second = word_at((blocks + 48)[:, :, None], 0 * i, 8), word_at((blocks + 52)[:, :, None], 0 * i, 4)
    d = ((first >> 12) & 15) | ((first >> 24) & 0xF0) | ((second >> 4) & 0xF00) | ((second >> 16) & 0xF000)
    s = (short_at((blocks + 48)[:, :, None] + 2 * (i // 4)) >> (3 * (i % 4))) & 7
    scale = half_of(d) * (2 * s + 1).to(tl.float32) * 0.125
    return words, scale, tl.zeros_like(scale)
