"""Decoders of the types with one scale per block: see `blocks`."""

from __future__ import annotations

import triton
import triton.language as tl

from qtransformers.kernels.triton.words import NIBBLES, float_of, half_at, less, places, spread, word_at


@triton.jit
def _words(blocks, OFFSET: tl.constexpr, W: tl.constexpr, ALIGN: tl.constexpr):
    _, w = places(1, W)
    return word_at((blocks + OFFSET)[:, :, None, None], w, ALIGN)


@triton.jit
def _nibbles(blocks, P: tl.constexpr, OFFSET: tl.constexpr, ALIGN: tl.constexpr):
    return (_words(blocks, OFFSET, 4, ALIGN) >> (4 * P)) & NIBBLES


@triton.jit
def _fives(blocks, P: tl.constexpr, OFFSET: tl.constexpr, ALIGN: tl.constexpr):
    """Nibbles under the bits that the four bytes before them hold."""
    _, w = places(1, 4)
    bits = word_at((blocks + OFFSET)[:, :, None, None], 0 * w, ALIGN, RUN=False) >> (16 * P + 4 * w)
    return _nibbles(blocks, P, OFFSET + 4, ALIGN) | (spread(bits & 15) << 4)


@triton.jit
def q4_0(blocks, book, P: tl.constexpr):
    """`d (q - 8)`."""
    scale = half_at(blocks)[:, :, None]
    return less(_nibbles(blocks, P, 2, 2), 8), scale, tl.zeros_like(scale)


@triton.jit
def q4_1(blocks, book, P: tl.constexpr):
    """`d q + m`; a minus sign alone would lose that of zero."""
    return _nibbles(blocks, P, 4, 4), half_at(blocks)[:, :, None], -1.0 * half_at(blocks + 2)[:, :, None]


@triton.jit
def q5_0(blocks, book, P: tl.constexpr):
    """`d (q - 16)`."""
    scale = half_at(blocks)[:, :, None]
    return less(_fives(blocks, P, 2, 2), 16), scale, tl.zeros_like(scale)


@triton.jit
def q5_1(blocks, book, P: tl.constexpr):
    """`d q + m`; a minus sign alone would lose that of zero."""
    return _fives(blocks, P, 4, 8), half_at(blocks)[:, :, None], -1.0 * half_at(blocks + 2)[:, :, None]


@triton.jit
def q8_0(blocks, book, P: tl.constexpr):
    """`d q`."""
    scale = half_at(blocks)[:, :, None]
    return _words(blocks, 2, 8, 2), scale, tl.zeros_like(scale)


@triton.jit
def q8_1(blocks, book, P: tl.constexpr):
    """`d q`; the sum serves dot products only."""
    scale = half_at(blocks)[:, :, None]
    return _words(blocks, 4, 8, 4), scale, tl.zeros_like(scale)


@triton.jit
def q8_k(blocks, book, P: tl.constexpr):
    """`d q`, 256 values; the sums serve dot products only."""
    scale = float_of(word_at(blocks, 0, 4))[:, :, None]
    return _words(blocks, 4, 64, 4), scale, tl.zeros_like(scale)
