"""Words of four bytes: reading them at any alignment, and arithmetic on all four at once.

`at` is a tensor of pointers to bytes. Indices count words or bytes and come from `places`.
"""

from __future__ import annotations

import triton
import triton.language as tl

TOPS = tl.constexpr(-0x7F7F7F80)  # the top bit of each byte
ONES = tl.constexpr(0x01010101)
NIBBLES = tl.constexpr(0x0F0F0F0F)


@triton.jit
def groups(G: tl.constexpr):
    """The numbers of `G` groups, `[1, 1, G]`."""
    return tl.arange(0, G)[None, None, :]


@triton.jit
def places(G: tl.constexpr, W: tl.constexpr):
    """The numbers of `G` groups, `[1, 1, G, 1]`, and of their `W` words, `[1, 1, 1, W]`."""
    return tl.arange(0, G)[None, None, :, None], tl.arange(0, W)[None, None, None, :]


@triton.jit
def half_at(at):
    """The f16 at `at`, as f32."""
    return tl.load(at.to(tl.pointer_type(tl.float16))).to(tl.float32)


@triton.jit
def short_at(at):
    """Two bytes at even addresses, as a whole number from 0."""
    return tl.load(at.to(tl.pointer_type(tl.uint16))).to(tl.int32)


@triton.jit
def byte_at(at):
    """The byte at `at`, as a whole number from 0."""
    return tl.load(at).to(tl.int32) & 255


@triton.jit
def word_at(at, k, ALIGN: tl.constexpr):
    """The `k`-th word after `at`, where only a multiple of `ALIGN` bytes is sure; from 4 on, neighbours come by wide loads."""
    if ALIGN >= 4:
        word = tl.load(at.to(tl.pointer_type(tl.int32)) + k)
    elif ALIGN == 2:
        pair = at.to(tl.pointer_type(tl.uint16)) + 2 * k
        word = tl.load(pair).to(tl.int32) | (tl.load(pair + 1).to(tl.int32) << 16)
    else:
        byte = at + 4 * k
        low = byte_at(byte) | (byte_at(byte + 1) << 8)
        word = low | ((byte_at(byte + 2) | (byte_at(byte + 3) << 8)) << 16)
    return word


@triton.jit
def less(codes, N: tl.constexpr):
    """Bytes from 0 to 127, less `N` each."""
    return ((codes | TOPS) - N * ONES) ^ TOPS


@triton.jit
def spread(bits):
    """The four lowest bits, nothing above them, one in each byte."""
    return (bits * 0x00204081) & ONES
