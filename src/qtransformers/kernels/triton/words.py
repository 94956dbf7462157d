"""Words of four bytes: reading them at any alignment, and arithmetic on all four at once.

`at` is a tensor of pointers to bytes. Indices count words or bytes and come from `places`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qtransformers.kernels.triton.device import interpreted
from qtransformers.quants.codebooks import codebook

INTERPRETED = tl.constexpr(interpreted())
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
def one_of_two(at, k):
    """The `k`-th byte after even addresses, read with its neighbour: lone bytes in a row are read wide, for other threads."""
    return (short_at(at + (k & -2)) >> (8 * (k & 1))) & 255


@triton.jit
def word_at(at, k, ALIGN: tl.constexpr, RUN: tl.constexpr = True):
    """The `k`-th word after `at`, where only a multiple of `ALIGN` bytes is sure; from 4 on, neighbours come by wide loads.

    Lanes are to be dealt out along the words of a group, then groups, blocks, rows: the compiler learns that from runs claimed
    in this order. Words of a group must lie in one (else `RUN` is false); halves and bytes are claimed to lie at any place.
    """
    HINT: tl.constexpr = RUN and len(at.shape) == 4
    if ALIGN >= 4:
        words = at.to(tl.pointer_type(tl.int32)) + k
        if HINT:
            words = tl.max_contiguous(words, [1, 2, 4, 8])
        word = tl.load(words)
    elif ALIGN == 2:
        low, high = at.to(tl.pointer_type(tl.uint16)) + 2 * k, at.to(tl.pointer_type(tl.uint16)) + (2 * k + 1)
        if HINT:
            low = tl.multiple_of(tl.max_contiguous(low, [1, 2, 4, 8]), [2, 2, 2, 2])
            high = tl.multiple_of(tl.max_contiguous(high, [1, 2, 4, 8]), [2, 2, 2, 2])
        word = tl.load(low).to(tl.int32) | (tl.load(high).to(tl.int32) << 16)
    else:
        word = byte_in_run(at, 4 * k)
        for i in tl.static_range(1, 4):
            word |= byte_in_run(at, 4 * k + i) << (8 * i)
    return word


@triton.jit
def byte_in_run(at, k):
    """The `k`-th byte after `at`, lanes dealt out as by `word_at`."""
    byte = at + k
    if len(byte.shape) == 4:
        byte = tl.multiple_of(tl.max_contiguous(byte, [1, 2, 4, 8]), [1, 1, 1, 1])
    return byte_at(byte)


@triton.jit
def less(codes, N: tl.constexpr):
    """Bytes from 0 to 127, less `N` each."""
    return ((codes | TOPS) - N * ONES) ^ TOPS


@triton.jit
def turned(word, n):
    """A word rotated to the left by `n` bits, to the right where `n` is negative: one instruction, as a shift is."""
    bits, n = word.to(tl.uint32, bitcast=True), n & 31
    return ((bits << n) | (bits >> ((32 - n) & 31))).to(tl.int32, bitcast=True)


@triton.jit
def in_turn(first, second):
    """Words `[R, B, G, W]` and those that follow each: `[R, B, G, 2 W]`."""
    return tl.reshape(tl.join(first, second), [first.shape[0], first.shape[1], first.shape[2], 2 * first.shape[3]])


@triton.jit
def spread(bits):
    """The four lowest bits, nothing above them, one in each byte."""
    return (bits * 0x00204081) & ONES


@triton.jit
def float_of(bits):
    """The f32 of which these are the bits."""
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def half_of(bits):
    """The f16 whose bits are the lower sixteen, as f32."""
    return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def times_less(x, scale, minimum):
    """`scale x - minimum`, the product rounded first.

    Of a pair of them ptxas makes one instruction on sm_100, whatever flags say; written as PTX, it does not.
    """
    if INTERPRETED:
        y = x * scale - minimum
    else:
        y = tl.inline_asm_elementwise(
            "{ .reg .f32 p; mul.rn.f32 p, $1, $2; sub.rn.f32 $0, p, $3; }", "=f,f,f,f", [x, scale, minimum],
            tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    return y


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """f32 as `dtype`, to nearest even; the interpreter would only cut bfloat16 off."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, 0x7FC00000, bits + 0x7FFF + ((bits >> 16) & 1))
        y = (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        y = x.to(dtype)
    return y


def nibble_book(name: str) -> tuple[str, int, int]:
    """Codes for 16 nibbles: PTX that gives a word of the lower and one of the upper nibbles of a word, and the codes' bytes."""
    book = codebook(name)[0]
    lookup = """{{
        .reg .b32 i, s, a, b, c;
        and.b32 i, $2, 0x77777777;
        shr.b32 s, $2, 1;
        lop3.b32 s, s, 0x44444444, 0x32103210, 0xEA;
        prmt.b32 a, {0}, {1}, i;
        prmt.b32 b, {2}, {3}, i;
        prmt.b32 a, a, b, s;
        shr.b32 i, i, 16;
        shr.b32 s, s, 16;
        prmt.b32 b, {0}, {1}, i;
        prmt.b32 c, {2}, {3}, i;
        prmt.b32 b, b, c, s;
        prmt.b32 $0, a, b, 0x6420;
        prmt.b32 $1, a, b, 0x7531;
    }}""".format(*book.view("<u4"))
    first, second = book.view("<i8")
    return lookup, int(first), int(second)


@triton.jit
def looked_up(raw, book: tl.constexpr, P: tl.constexpr):
    """The nibbles of plane `P` replaced by signed bytes; `book` is a `nibble_book`."""
    if INTERPRETED:
        codes = 0 * raw
        for k in tl.static_range(4):
            nibble = (raw >> (8 * k + 4 * P)) & 15
            eight = tl.where(nibble < 8, book[1], book[2])
            codes = codes | (((eight >> (8 * (nibble & 7)).to(tl.int64)) & 255).to(tl.int32) << (8 * k))
    else:
        low, high = tl.inline_asm_elementwise(book[0], "=r,=r,r", [raw], (tl.int32, tl.int32), is_pure=True, pack=1)
        codes = low if P == 0 else high
    return codes
