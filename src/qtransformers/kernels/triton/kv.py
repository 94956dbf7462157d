"""Keys and values into pages of `kernels.kv_rows`, and queries made ready to meet them."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from qtransformers.kernels import kv
from qtransformers.kernels.kv import PAGE_TOKENS
from qtransformers.kernels.triton.words import times_less

BLOCK = 64  # groups that a program rotates and rounds


def store(k: Any, v: Any, q: Any, pages: Any, codec: str, positions: Any, starts: Any, page_tables: Any, factor: float) -> Any:  # fmt: skip
    """Store `k [T, Hk, D], v [T, Hk, Dv]`; give `q [T, H, D] * factor` as the keys want it: f32, or f16, rotated for codes."""
    keys, values = kv.CODECS[codec]
    n_tokens, n_kv_heads, d = k.shape
    dv = v.shape[2]
    ready = torch.empty(q.shape, dtype=torch.float32 if keys.bits == 32 else torch.float16, device=q.device)
    parts = [(n_tokens * x.shape[1] * (x.shape[2] // kv.group(x.shape[2]))) for x in (k, v, q)]
    blocks = [triton.cdiv(n, BLOCK) for n in parts]
    if n_tokens:
        _store[(sum(blocks),)](
            k, v, q, pages, ready, positions, starts, page_tables,
            factor, n_tokens, len(starts) - 1, blocks[0], blocks[0] + blocks[1], k.stride(0), v.stride(0), q.stride(0), page_tables.stride(0),
            LOG_S=(len(starts) - 2).bit_length(), HEADS=q.shape[1], KV_HEADS=n_kv_heads,
            D=d, DV=dv, GROUP_K=kv.group(d), GROUP_V=kv.group(dv), BITS_K=keys.bits, BITS_V=values.bits,
            CUT=kv.key_bytes(keys, d), HEAD_BYTES=pages.shape[-1], PAGE=PAGE_TOKENS, N=BLOCK,
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
    return ready


def turn_back(y: Any, d: int) -> None:
    """Rotate every head of `d` values of contiguous `y [..., d]` in place."""
    n = y.numel() // kv.group(d)
    if n:
        _turn[(triton.cdiv(n, BLOCK),)](y, n, G=kv.group(d), N=BLOCK)


@triton.jit
def rotate(x, N: tl.constexpr, G: tl.constexpr):
    """Hadamard over each row of `x [N, G]`: the additions of `kernels.kv.rotate` in their order."""
    for i in tl.static_range(5):
        x = _butterfly(x, N, G, 1 << i)
    return x * (G**-0.5)


@triton.jit
def _butterfly(x, N: tl.constexpr, G: tl.constexpr, H: tl.constexpr):
    if H < G:
        a, b = tl.split(x.reshape(N * G // (2 * H), 2, H).permute(0, 2, 1))
        x = tl.join(a + b, a - b).permute(0, 2, 1).reshape(N, G)
    return x


@triton.jit
def sequence_of(t, starts, n_sequences, LOG_S: tl.constexpr):
    """The last sequence that starts at or before rows `t`."""
    low = tl.zeros_like(t)
    for i in tl.static_range(LOG_S):
        there = low + (1 << (LOG_S - 1 - i))
        begins = tl.load(starts + there, mask=there < n_sequences, other=2147483647)
        low = tl.where(begins <= t, there, low)
    return low


@triton.jit
def _turn(y, n, G: tl.constexpr, N: tl.constexpr):
    g = tl.program_id(0).to(tl.int64) * N + tl.arange(0, N)
    at = y + g[:, None] * G + tl.arange(0, G)[None, :]
    x = tl.load(at, mask=(g < n)[:, None], other=0.0).to(tl.float32)
    tl.store(at, rotate(x, N, G).to(y.dtype.element_ty), mask=(g < n)[:, None])


@triton.jit
def _read(x, block, n_tokens, stride, HEADS: tl.constexpr, D: tl.constexpr, G: tl.constexpr, N: tl.constexpr):
    """Groups `[N, G]` of a block of `x [T, HEADS, D]`; row, head and place within the head of each; which there are."""
    g = block * N + tl.arange(0, N)
    t, head, at = g // (HEADS * (D // G)), g // (D // G) % HEADS, g % (D // G)
    ok = t < n_tokens
    source = x + t.to(tl.int64) * stride + head * D + at * G
    values = tl.load(source[:, None] + tl.arange(0, G)[None, :], mask=ok[:, None], other=0.0)
    return values.to(tl.float32), t, head, at, ok


@triton.jit
def _put(values, head, slot, at, ok, D: tl.constexpr, G: tl.constexpr, BITS: tl.constexpr, PAGE: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """Groups `values [N, G]` to where the keys, or the values, of their heads begin (`head [N]`, pointers to bytes)."""
    if BITS >= 16:
        kind: tl.constexpr = tl.float32 if BITS == 32 else tl.float16
        place = head.to(tl.pointer_type(kind)) + slot * D + at * G
        tl.store(place[:, None] + tl.arange(0, G)[None, :], values.to(kind), mask=ok[:, None])
    else:
        HALF: tl.constexpr = 1 << (BITS - 1)
        x = rotate(values, N, G)
        low, high = tl.min(x, 1), tl.max(x, 1)
        scale = (tl.div_rn(tl.where(-low >= high, low, high), -1.0 * HALF) + 0.0).to(tl.float16)
        wide = scale.to(tl.float32)
        inverse = tl.where(wide == 0, 0.0, tl.div_rn(1.0, tl.where(wide == 0, 1.0, wide)))
        scaled = times_less(x, inverse[:, None], -12582912.0)  # rounds to even
        code = tl.minimum(tl.maximum(scaled - 12582912.0 + HALF, 0.0), 2.0 * HALF - 1)
        bad = tl.sum((tl.abs(x) <= 3.4028234663852886e38).to(tl.int32), 1) < G
        code = tl.where(bad[:, None], 0.0, code).to(tl.int32)
        scale = tl.where(bad, float("nan"), scale.to(tl.float32)).to(tl.float16)
        F: tl.constexpr = 8 // BITS if BITS != 6 else 4
        column = tl.arange(0, G // F)
        place = (head + slot * (D // F) + at * (G // F))[:, None] + column[None, :]
        if BITS == 8:
            tl.store(place, code.to(tl.uint8), mask=ok[:, None])
        elif BITS == 4:
            a, b = tl.split(code.reshape(N, G // 2, 2))
            tl.store(place, (a | (b << 4)).to(tl.uint8), mask=ok[:, None])
        else:
            even, odd = tl.split(code.reshape(N, G // 4, 2, 2))
            a, c = tl.split(even)
            b, d = tl.split(odd)
            tl.store(place, ((a & 15) | ((c & 15) << 4)).to(tl.uint8), mask=ok[:, None])
            tl.store(place + PAGE * D // 4, ((b & 15) | ((d & 15) << 4)).to(tl.uint8), mask=ok[:, None])
            upper = (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((d >> 4) << 6)
            tl.store(place + PAGE * D // 2, upper.to(tl.uint8), mask=ok[:, None])
        scales = (head + PAGE * D * BITS // 8).to(tl.pointer_type(tl.float16))
        tl.store(scales + slot * (D // G) + at, scale, mask=ok)


@triton.jit
def _heads(t, head, ok, pages, positions, starts, tables, table_stride, n_sequences, LOG_S: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_BYTES: tl.constexpr, PAGE: tl.constexpr):  # fmt: skip
    """Where the pages of rows `t` hold their heads, the slots in them, and which rows are real."""
    ok = ok & (t < tl.load(starts + n_sequences))
    s = sequence_of(t, starts, n_sequences, LOG_S)
    position = tl.load(positions + t, mask=ok, other=0)
    page = tl.load(tables + s * table_stride + position // PAGE, mask=ok, other=-1)
    ok = ok & (page >= 0)
    return pages + (page.to(tl.int64) * KV_HEADS + head) * HEAD_BYTES, position % PAGE, ok


@triton.jit(do_not_specialize=["n_tokens", "n_sequences", "blocks_k", "blocks_kv", "table_stride"])
def _store(
    k, v, q, pages, ready, positions, starts, tables,
    factor, n_tokens, n_sequences, blocks_k, blocks_kv, stride_k, stride_v, stride_q, table_stride,
    LOG_S: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
    D: tl.constexpr, DV: tl.constexpr, GROUP_K: tl.constexpr, GROUP_V: tl.constexpr, BITS_K: tl.constexpr, BITS_V: tl.constexpr,
    CUT: tl.constexpr, HEAD_BYTES: tl.constexpr, PAGE: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    if block < blocks_k:
        x, t, head, at, ok = _read(k, block, n_tokens, stride_k, KV_HEADS, D, GROUP_K, N)
        base, slot, ok = _heads(t, head, ok, pages, positions, starts, tables, table_stride, n_sequences, LOG_S, KV_HEADS, HEAD_BYTES, PAGE)  # fmt: skip
        _put(x, base, slot, at, ok, D, GROUP_K, BITS_K, PAGE, N)
    elif block < blocks_kv:
        y, t, head, at, ok = _read(v, block - blocks_k, n_tokens, stride_v, KV_HEADS, DV, GROUP_V, N)
        base, slot, ok = _heads(t, head, ok, pages, positions, starts, tables, table_stride, n_sequences, LOG_S, KV_HEADS, HEAD_BYTES, PAGE)  # fmt: skip
        _put(y, base + CUT, slot, at, ok, DV, GROUP_V, BITS_V, PAGE, N)
    else:
        x, t, head, at, ok = _read(q, block - blocks_kv, n_tokens, stride_q, HEADS, D, GROUP_K, N)
        x *= factor
        if BITS_K < 16:
            x = rotate(x, N, GROUP_K)
        place = ready + (t.to(tl.int64) * HEADS + head) * D + at * GROUP_K
        tl.store(place[:, None] + tl.arange(0, GROUP_K)[None, :], x.to(ready.dtype.element_ty), mask=ok[:, None])
