"""Decoders of the types of one or two bits with one scale: see `blocks`."""

from __future__ import annotations

import triton
import triton.language as tl

from qtransformers.kernels.triton.words import byte_at, half_at, less, places, spread, word_at


@triton.jit
def _digits(word, n):
    """The `n`-th digit, from 0 to 4, of bytes read as fractions of 256 in base three."""
    power = tl.where(n == 4, 81, (0x1B090301 >> (8 * (n & 3))) & 255)
    even, odd = word & 0x00FF00FF, (word >> 8) & 0x00FF00FF
    even, odd = ((even * power) & 0x00FF00FF) * 3, ((odd * power) & 0x00FF00FF) * 3
    return ((even >> 8) & 0x00FF00FF) | (odd & -0x00FF0100)


@triton.jit
def tq1_0(blocks, book, P: tl.constexpr):
    """`d (digit - 1)`: five digits a byte, first of 32 bytes, then of 16; at last four of 4."""
    _, w = places(1, 64)
    byte32, byte16 = w < 40, w < 60
    source = tl.where(byte32, w % 8, tl.where(byte16, 8 + w % 4, 12))
    digit = tl.where(byte32, w // 8, tl.where(byte16, w // 4 - 10, w - 60))
    scale = half_at(blocks + 52)[:, :, None]
    return less(_digits(word_at(blocks[:, :, None, None], source, 2), digit), 1), scale, tl.zeros_like(scale)


@triton.jit
def tq2_0(blocks, book, P: tl.constexpr):
    """`d (q - 1)`."""
    g, w = places(2, 8)
    scale = half_at(blocks + 64)[:, :, None]
    pairs = (word_at(blocks[:, :, None, None], 8 * g + w, 2) >> (2 * P)) & 0x03030303
    return less(pairs, 1), scale, tl.zeros_like(scale)


@triton.jit
def q1_0(blocks, book, P: tl.constexpr):
    """`d` where the bit is set, else `-d`."""
    _, w = places(1, 32)
    scale = half_at(blocks)[:, :, None]
    bits = byte_at((blocks + 2)[:, :, None, None] + w // 2) >> (4 * (w % 2))
    return less(spread(bits & 15) << 1, 1), scale, tl.zeros_like(scale)


@triton.jit
def q2_0(blocks, book, P: tl.constexpr):
    """`d (q - 1)`, neighbours in one byte."""
    _, w = places(1, 16)
    scale = half_at(blocks)[:, :, None]
    byte = byte_at((blocks + 2)[:, :, None, None] + w)
    nibbles = (byte | (byte << 12)) & 0x000F000F
    return less((nibbles | (nibbles << 6)) & 0x03030303, 1), scale, tl.zeros_like(scale)
