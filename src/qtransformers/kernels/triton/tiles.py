"""Products of many tokens on tensor cores: tiles of blocks are decoded in registers.

A product is blind to the order of its columns: weights stay in the order in which they decode, and x is brought into it
(`arrange`). Chunks of `B` blocks follow each other; in a chunk planes, bytes of words, then blocks, groups and words.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def arrange_kernel(
    y, x, columns, stride, width,
    SIZE: tl.constexpr, PLANES: tl.constexpr, GROUPS: tl.constexpr, WORDS: tl.constexpr,
    PLANE: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr, STEP: tl.constexpr,
    B: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Columns of x `[T, columns]` in the order of decoding, `[T, width]`."""
    t = tl.program_id(0).to(tl.int64)
    to = tl.program_id(1) * N + tl.arange(0, N)
    at = to % (B * SIZE)
    w, g, b = at % WORDS, at // WORDS % GROUPS, at // (WORDS * GROUPS) % B
    i, p = at // (WORDS * GROUPS * B) % 4, at // (WORDS * GROUPS * B * 4)
    inside = PLANE * p + OUTER * (g // INNER) + STEP * (g % INNER) + 4 * w + i
    source = (to // (B * SIZE) * B + b) * SIZE + inside
    value = tl.load(x + t * stride + source, mask=source < columns, other=0.0).to(tl.float32)
    tl.store(y + t * width + to, value, mask=to < width)


@triton.jit
def tile_kernel(
    y, x, data, book, bias, order, experts, begins, ends, tokens, outputs, shared, every, n_rows, n_blocks, row_bytes, width,
    DECODE: tl.constexpr, BYTES: tl.constexpr, SIZE: tl.constexpr,
    PLANES: tl.constexpr, GROUPS: tl.constexpr, WORDS: tl.constexpr, PRECISION: tl.constexpr,
    T: tl.constexpr, R: tl.constexpr, B: tl.constexpr, STEPS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """A tile of rows by tokens a program, of arranged x `[.., width]`.

    Matrix m of several multiplies rows `t * every + m`. With `order`, tile i multiplies what `order` has from `begins[i]` to
    `ends[i]` with matrix `experts[i]`: row `order / shared` of x gives row `order` of y. Of `PARTS` of the columns, each is summed
    into `outputs` rows of y of its own.
    """
    row = tl.program_id(0) * R + tl.arange(0, R)
    t = tl.program_id(1) * T + tl.arange(0, T)
    matrix = (tl.program_id(2) // PARTS).to(tl.int64)
    part = tl.program_id(2) % PARTS
    if order is None:
        inside = t < tokens
        to = tl.minimum(t, tokens - 1).to(tl.int64) * every + matrix
        source = to
    else:
        which = tl.program_id(1)
        matrix = tl.load(experts + which).to(tl.int64)
        at_order = tl.load(begins + which) + tl.arange(0, T)
        inside = at_order < tl.load(ends + which)
        to = tl.load(order + at_order, mask=inside, other=0).to(tl.int64)
        source = to // shared
    at = data + (matrix * n_rows + tl.minimum(row, n_rows - 1)[:, None]) * row_bytes
    K: tl.constexpr = B * GROUPS * WORDS
    x_at = x + source[None, :] * width + tl.arange(0, K)[:, None]  # [K, T]
    total = tl.zeros([R, T], tl.float32)
    for some in range(STEPS):
        step = part * STEPS + some
        b = tl.minimum(step * B + tl.arange(0, B), n_blocks - 1)
        blocks = at + b[None, :] * BYTES
        for p in tl.static_range(PLANES):
            words, scale, minimum = DECODE(blocks, book, p)
            for i in tl.static_range(4):
                value = scale[:, :, :, None] * (words << (24 - 8 * i) >> 24).to(tl.float32) - minimum[:, :, :, None]
                # rounded only here: Triton 3.6 cannot put a tile of halves that was reshaped last into sm_100's shared memory
                tile = tl.reshape(value, [R, K]).to(x.dtype.element_ty)
                x_tile = tl.load(x_at + (step * (B * SIZE) + (p * 4 + i) * K))
                total = tl.dot(tile, x_tile, total, input_precision=PRECISION)
    here = row < n_rows
    if bias is not None:
        add = tl.load(bias + matrix * n_rows + row, mask=here, other=0.0).to(tl.float32)[:, None]
        total += tl.where(part == 0, add, 0.0)
    y += part.to(tl.int64) * outputs * n_rows
    tl.store(y + to[None, :] * n_rows + row[:, None], total, mask=inside[None, :] & here[:, None])
