"""Products of few columns: every weight is read once, and multiplied as int8 with packed x, or as a float."""

from __future__ import annotations

import triton
import triton.language as tl

from qtransformers.kernels.triton.words import INTERPRETED

HALFWAY = tl.constexpr(12582912.0)  # 1.5 * 2**23: whole numbers near it are the last bits of a float


@triton.jit
def dot4(words, x):
    """The sum of four products of signed bytes: the instruction where there is one, its meaning elsewhere."""
    if not INTERPRETED:
        return tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, 0;", "=r,r,r", [words, x], dtype=tl.int32, is_pure=True, pack=1
        )
    total = (words << 24 >> 24) * (x << 24 >> 24) + (words << 16 >> 24) * (x << 16 >> 24)
    return total + (words << 8 >> 24) * (x << 8 >> 24) + (words >> 24) * (x >> 24)


@triton.jit
def dot4_float(words, x):
    """`dot4` as f32, by adding to the bits of a float instead of a conversion."""
    if not INTERPRETED:
        bits = tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, 1262485504;", "=r,r,r", [words, x], dtype=tl.int32, is_pure=True, pack=1
        )
        return bits.to(tl.float32, bitcast=True) - HALFWAY
    return dot4(words, x).to(tl.float32)


@triton.jit
def rounded(x):
    """The nearest whole number of floats below 2**22, ties to even."""
    return (x + HALFWAY) - HALFWAY


@triton.jit
def pack_kernel(x, codes, scales, sums, columns, stride, tokens, PLANES: tl.constexpr, N: tl.constexpr):
    """32 N columns of a token as int8 `[PLANES * T, columns]`, with scales per 32, and sums of what they stand for per 16."""
    t = tl.program_id(0).to(tl.int64)
    piece = tl.program_id(1) * N + tl.arange(0, N)
    here = (piece * 32 < columns)[:, None]
    at = piece[:, None] * 32 + tl.arange(0, 32)[None, :]
    rest = tl.load(x + t * stride + at, mask=here, other=0.0).to(tl.float32)
    put_packed(rest, codes, scales, sums, t, piece, columns, tokens, PLANES, N)


@triton.jit
def put_packed(rest, codes, scales, sums, t, piece, columns, tokens, PLANES: tl.constexpr, N: tl.constexpr):
    """Columns `rest [N, 32]` of token t, which are its pieces `piece [N]`, into what `pack_kernel` makes."""
    here = (piece * 32 < columns)[:, None]
    at = piece[:, None] * 32 + tl.arange(0, 32)[None, :]
    for plane in tl.static_range(PLANES):
        row = plane * tokens + t
        most = tl.max(tl.abs(rest), 1)
        scale = most / 127.0 + tl.sum(rest * 0.0, 1)  # what is no number stays none
        code = rounded(rest * (127.0 / tl.where(most > 0, most, 1.0))[:, None])
        tl.store(codes + row * columns + at, code.to(tl.int8), mask=here)
        tl.store(scales + row * (columns // 32) + piece, scale, mask=piece * 32 < columns)
        halves = tl.sum(tl.reshape(code, [N, 2, 16]), 2) * scale[:, None]
        tl.store(sums + row * (columns // 16) + piece[:, None] * 2 + tl.arange(0, 2)[None, :], halves, mask=here)
        rest -= code * scale[:, None]


@triton.jit
def product(
    x, scales, sums, every, data, book, row, n_rows, n_blocks, row_bytes,
    DECODE: tl.constexpr, BYTES: tl.constexpr, SIZE: tl.constexpr,
    PLANES: tl.constexpr, GROUPS: tl.constexpr, WORDS: tl.constexpr,
    PLANE: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr, STEP: tl.constexpr, MINIMUM: tl.constexpr,
    SUM: tl.constexpr, C: tl.constexpr, R: tl.constexpr, B: tl.constexpr, STEPS: tl.constexpr, UNROLL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Every `every`-th of C rows of packed x times rows `row [R]`: `[C, R]`. `SUM` words are added up as whole numbers."""
    at = data + tl.minimum(row, n_rows - 1)[:, None].to(tl.int64) * row_bytes
    c = tl.arange(0, C)[:, None, None, None] * every
    columns = n_blocks * SIZE
    g = tl.arange(0, GROUPS)
    w = tl.arange(0, WORDS)
    TERMS: tl.constexpr = WORDS // SUM
    total = tl.zeros([C, R, B, GROUPS, TERMS], tl.float32)
    for step in tl.range(STEPS, loop_unroll_factor=UNROLL):
        b = step * B + tl.arange(0, B)
        live = b < n_blocks
        if not EVEN:
            b = tl.minimum(b, n_blocks - 1)
        blocks = at + b[None, :] * BYTES
        for p in tl.static_range(PLANES):
            words, scale, minimum = DECODE(blocks, book, p)
            first = PLANE * p + OUTER * (g // INNER) + STEP * (g % INNER)  # [G]
            begin = b[None, None, :, None] * SIZE + first[None, None, None, :]  # [1, 1, B, G]
            x_at = (
                x + c[:, :, :, :, None] * (columns // 4) + begin[:, :, :, :, None] // 4 + w[None, None, None, None, :]
            )
            if MINIMUM or WORDS <= 8:
                x_scale = tl.load(scales + c * (columns // 32) + begin // 32)[:, :, :, :, None]
            else:  # a group spans several scales of x
                t = tl.arange(0, TERMS)[None, None, None, None, :]
                x_scale = tl.load(
                    scales + c[:, :, :, :, None] * (columns // 32) + begin[:, :, :, :, None] // 32 + t * SUM // 8
                )
            if not EVEN:
                x_scale = tl.where(live[None, None, :, None, None], x_scale, 0.0)
            x_words = tl.load(tl.max_contiguous(x_at, [1, 2, 4, 8, 16]))
            if SUM == 1:
                dot = dot4_float(words[None], x_words)
            else:
                dot = tl.reshape(dot4(words[None], x_words), [C, R, B, GROUPS, TERMS, SUM])
                dot = tl.sum(dot, 5).to(tl.float32)
            total += scale[None, :, :, :, None] * x_scale * dot
            if MINIMUM:
                x_sum = tl.load(sums + c * (columns // 16) + begin // 16)
                if WORDS == 8:
                    x_sum += tl.load(sums + c * (columns // 16) + begin // 16 + 1)
                if not EVEN:
                    x_sum = tl.where(live[None, None, :, None], x_sum, 0.0)
                total -= (minimum[None] * (x_sum * (1.0 / TERMS)))[:, :, :, :, None]
    return tl.sum(tl.reshape(total, [C, R, B * GROUPS * TERMS]), 2)


@triton.jit
def product_exact(
    x, every, data, book, row, n_rows, n_blocks, row_bytes,
    DECODE: tl.constexpr, BYTES: tl.constexpr, SIZE: tl.constexpr,
    PLANES: tl.constexpr, GROUPS: tl.constexpr, WORDS: tl.constexpr,
    PLANE: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr, STEP: tl.constexpr,
    C: tl.constexpr, R: tl.constexpr, B: tl.constexpr, STEPS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """As `product`, of x in f32."""
    at = data + tl.minimum(row, n_rows - 1)[:, None].to(tl.int64) * row_bytes
    c = tl.arange(0, C)[:, None, None, None, None] * every
    g = tl.arange(0, GROUPS)[None, None, None, :, None]
    w = tl.arange(0, WORDS)[None, None, None, None, :]
    total = tl.zeros([C, R, B, GROUPS, WORDS], tl.float32)
    for step in tl.range(STEPS, loop_unroll_factor=UNROLL):
        b = step * B + tl.arange(0, B)
        live = (b < n_blocks)[None, None, :, None, None]
        b = tl.minimum(b, n_blocks - 1)
        blocks = at + b[None, :] * BYTES
        for p in tl.static_range(PLANES):
            words, scale, minimum = DECODE(blocks, book, p)
            first = PLANE * p + OUTER * (g // INNER) + STEP * (g % INNER) + 4 * w
            x_at = x + c * (n_blocks * SIZE) + b[None, None, :, None, None] * SIZE + first
            for i in tl.static_range(4):
                value = scale[:, :, :, None] * (words << (24 - 8 * i) >> 24).to(tl.float32) - minimum[:, :, :, None]
                total += value[None] * tl.load(x_at + i, mask=live, other=0.0)
    return tl.sum(tl.reshape(total, [C, R, B * GROUPS * WORDS]), 2)


@triton.jit
def activated(gate, up, ACT: tl.constexpr):
    """What joins gate and up, as `reference.ACTIVATIONS` says it."""
    if ACT == "silu":
        return gate / (1 + tl.exp(-gate)) * up
    if ACT == "gelu":
        return gate / (1 + tl.exp(-1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))) * up
    g = tl.minimum(gate, 7.0)
    return g / (1 + tl.exp(-1.702 * g)) * (tl.minimum(tl.maximum(up, -7.0), 7.0) + 1)


@triton.jit
def results(
    x, scales, sums, every, from_row, data, bias, matrix, book, row, n_rows, n_blocks, row_bytes,
    DECODE: tl.constexpr, BYTES: tl.constexpr, SIZE: tl.constexpr,
    PLANES: tl.constexpr, GROUPS: tl.constexpr, WORDS: tl.constexpr,
    PLANE: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr, STEP: tl.constexpr, MINIMUM: tl.constexpr,
    EXACT: tl.constexpr, SUM: tl.constexpr, C: tl.constexpr, T: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
    STEPS: tl.constexpr, UNROLL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Rows `from_row + c * every` of x times rows of a matrix, its bias added: `[T, R]`, planes of x added up."""
    columns = n_blocks * SIZE
    at = data + matrix * n_rows * row_bytes
    if EXACT:
        out = product_exact(
            x + from_row * columns, every, at, book, row, n_rows, n_blocks, row_bytes,
            DECODE, BYTES, SIZE, PLANES, GROUPS, WORDS, PLANE, OUTER, INNER, STEP, C, R, B, STEPS, UNROLL,
        )  # fmt: skip
    else:
        out = product(
            x + from_row * (columns // 4), scales + from_row * (columns // 32), sums + from_row * (columns // 16), every,
            at, book, row, n_rows, n_blocks, row_bytes,
            DECODE, BYTES, SIZE, PLANES, GROUPS, WORDS, PLANE, OUTER, INNER, STEP, MINIMUM, SUM, C, R, B, STEPS, UNROLL, EVEN,
        )  # fmt: skip
    out = tl.sum(tl.reshape(out, [C // T, T, R]), 0)
    if bias is not None:
        out += tl.load(bias + matrix * n_rows + row, mask=row < n_rows, other=0.0).to(tl.float32)[None, :]
    return out


@triton.jit
def few_kernel(
    y, y2, y3, x, scales, sums, data, data2, data3, bias, bias2, bias3, ids, book,
    n_rows, n_rows2, n_rows3, n_blocks, row_bytes, shared, x_every, y_every,
    DECODE: tl.constexpr, BYTES: tl.constexpr, SIZE: tl.constexpr,
    PLANES: tl.constexpr, GROUPS: tl.constexpr, WORDS: tl.constexpr,
    PLANE: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr, STEP: tl.constexpr, MINIMUM: tl.constexpr,
    ACT: tl.constexpr,
    EXACT: tl.constexpr, SUM: tl.constexpr, C: tl.constexpr, T: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
    STEPS: tl.constexpr, UNROLL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """A tile of rows by item `i`, of which there are as many as matrices (or as `ids`, which say each item's matrix).

    `y[i + t * y_every] = x[i / shared + t * x_every] w^T + bias`, or with `ACT` what joins that with the same of `data2`.
    Without, `data2` and `data3` are further matrices of one item, their tiles after those of the first.
    """
    tile = tl.program_id(0)
    item = tl.program_id(1)
    if ACT is None and y2 is not None:
        n = n_rows
        other = tile >= tl.cdiv(n, R)
        tile = tl.where(other, tile - tl.cdiv(n, R), tile)
        y, data, n_rows = tl.where(other, y2, y), tl.where(other, data2, data), tl.where(other, n_rows2, n)
        if bias is not None:
            bias = tl.where(other, bias2, bias)
        if y3 is not None:
            other &= tile >= tl.cdiv(n_rows2, R)
            tile = tl.where(other, tile - tl.cdiv(n_rows2, R), tile)
            y, data, n_rows = tl.where(other, y3, y), tl.where(other, data3, data), tl.where(other, n_rows3, n_rows)
            if bias is not None:
                bias = tl.where(other, bias3, bias)
    row = tile * R + tl.arange(0, R)
    matrix = (item if ids is None else tl.load(ids + item)).to(tl.int64)
    from_row = (item // shared).to(tl.int64)
    out = results(
        x, scales, sums, x_every, from_row, data, bias, matrix, book, row, n_rows, n_blocks, row_bytes,
        DECODE, BYTES, SIZE, PLANES, GROUPS, WORDS, PLANE, OUTER, INNER, STEP, MINIMUM,
        EXACT, SUM, C, T, R, B, STEPS, UNROLL, EVEN,
    )  # fmt: skip
    if ACT is not None:
        up = results(
            x, scales, sums, x_every, from_row, data2, bias2, matrix, book, row, n_rows, n_blocks, row_bytes,
            DECODE, BYTES, SIZE, PLANES, GROUPS, WORDS, PLANE, OUTER, INNER, STEP, MINIMUM,
            EXACT, SUM, C, T, R, B, STEPS, UNROLL, EVEN,
        )  # fmt: skip
        out = activated(out, up, ACT)
    to = (item + tl.arange(0, T) * y_every).to(tl.int64)
    tl.store(y + to[:, None] * n_rows + row[None, :], out, mask=(row < n_rows)[None, :])


@triton.jit
def mixed_kernel(
    y, x, scales, sums, data, bias, ids, weights, book, n_rows, n_blocks, row_bytes, x_every,
    DECODE: tl.constexpr, BYTES: tl.constexpr, SIZE: tl.constexpr,
    PLANES: tl.constexpr, GROUPS: tl.constexpr, WORDS: tl.constexpr,
    PLANE: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr, STEP: tl.constexpr, MINIMUM: tl.constexpr,
    EXPERTS: tl.constexpr,
    EXACT: tl.constexpr, SUM: tl.constexpr, C: tl.constexpr, T: tl.constexpr, R: tl.constexpr, B: tl.constexpr,
    STEPS: tl.constexpr, UNROLL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """A tile of rows of token `t`: `y[t]` is the sum over its experts of `weights (x w^T + bias)`, x a row for each."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    t = tl.program_id(1)
    total = tl.zeros([T, R], tl.float32)
    for j in range(EXPERTS):
        item = (t * EXPERTS + j).to(tl.int64)
        matrix = tl.load(ids + item).to(tl.int64)
        out = results(
            x, scales, sums, x_every, item, data, bias, matrix, book, row, n_rows, n_blocks, row_bytes,
            DECODE, BYTES, SIZE, PLANES, GROUPS, WORDS, PLANE, OUTER, INNER, STEP, MINIMUM,
            EXACT, SUM, C, T, R, B, STEPS, UNROLL, EVEN,
        )  # fmt: skip
        total += out * tl.load(weights + item).to(tl.float32)
    tl.store(y + t.to(tl.int64) * n_rows + row[None, :], total, mask=(row < n_rows)[None, :])


@triton.jit
def join_kernel(y, gate, up, n, ACT: tl.constexpr, N: tl.constexpr):
    """`ACT` of n values of gate and up."""
    at = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    inside = at < n
    a, b = tl.load(gate + at, mask=inside, other=0.0), tl.load(up + at, mask=inside, other=0.0)
    tl.store(y + at, activated(a, b, ACT), mask=inside)
