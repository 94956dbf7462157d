"""Attention over pages of `kernels.kv_rows`: few rows with the context cut in parts, many rows in tiles; one pass for a KV head's whole group.

Rows of a tile are queries: token after token, the heads of a group after each other. Keys and values become tiles of f16 (f32
for such caches), codes with their scales; products sum in f32. Parts of a context are merged in their order.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from qtransformers.errors import ConfigError
from qtransformers.kernels import kv
from qtransformers.kernels.kv import PAGE_TOKENS
from qtransformers.kernels.triton.attend_plan import plan
from qtransformers.kernels.triton.device import shared_bytes
from qtransformers.kernels.triton.kv import rotate, sequence_of, store, turn_back

LOG2E = tl.constexpr(1.4426950408889634)


def attention(
    q: Any, k: Any, v: Any, pages: Any, codec: str,
    positions: Any, starts: Any, page_tables: Any, scale: float, window: int = 0,
    softcap: float = 0.0, sinks: Any = None, causal: bool = True, rows: int = 0,
) -> Any:  # fmt: skip
    """Store k, v in the layer's pages `[n_pages, n_kv_heads, head_bytes]`, then grouped-query attention as `nn.attention` says.

    All arrays are on the device; positions, starts and page_tables int32. `rows` is the most that a sequence has (0: any
    number); with the shapes it decides what is launched, so that a graph may be captured: lengths are read on the device.
    ConfigError where shapes or types differ.
    """
    _check(q, k, v, pages, codec, positions, starts, page_tables)
    n_tokens, n_heads, d = q.shape
    n_kv_heads, dv = v.shape[1:]
    n_sequences = len(starts) - 1
    out = torch.empty((n_tokens, n_heads * dv), dtype=q.dtype, device=q.device)
    if not n_tokens:
        return out
    ready = store(k, v, q, pages, codec, positions, starts, page_tables, scale if softcap else scale * LOG2E.value)
    keys, values = kv.CODECS[codec]
    launches = plan(
        n_tokens, n_sequences, min(rows or n_tokens, n_tokens), n_kv_heads, n_heads // n_kv_heads,
        page_tables.shape[1] * PAGE_TOKENS, d, dv, keys.bits, shared_bytes(q.device),
    )  # fmt: skip
    rotated = values.bits < 16
    merged = all(launch.parts > 1 for launch in launches)
    for least, most, n_tiles, tiles, parts, tile in launches:
        n_rows = n_sequences * most if tiles else n_tokens
        room = (n_rows, n_heads, parts) if parts > 1 else (1, 1, 1)
        partial = torch.empty((*room, dv), dtype=torch.float32, device=q.device)
        tops = torch.empty((*room, 2), dtype=torch.float32, device=q.device)
        _attend[(n_tiles, n_kv_heads, parts)](
            ready, pages, out, partial, tops, positions, starts, page_tables, sinks,
            n_sequences, page_tables.stride(0), window, softcap,
            WIDTH=triton.next_power_of_2(n_sequences), TILES=tiles, STRIDE=most if tiles else 0,
            LEAST=least, MOST=most, KV_HEADS=n_kv_heads, GROUP=n_heads // n_kv_heads,
            D=d, DV=dv, KA=_first(d), KB=_second(d), VA=_first(dv), VB=_second(dv), GROUP_K=kv.group(d), GROUP_V=kv.group(dv),
            BITS_K=keys.bits, BITS_V=values.bits, CUT=kv.key_bytes(keys, d), HEAD_BYTES=pages.shape[-1], PAGE=PAGE_TOKENS,
            CAUSAL=causal, WINDOWED=window > 0, CAPPED=softcap > 0, SINKS=sinks is not None, PARTS=parts, **tile,
        )  # fmt: skip
        if parts > 1:
            _merge[(n_rows, n_heads)](
                partial, tops, out, starts, n_sequences,
                LOG_S=(n_sequences - 1).bit_length(), STRIDE=most if tiles else 0, LEAST=least, MOST=most,
                HEADS=n_heads, DV=dv, WIDE=triton.next_power_of_2(dv), GROUP_V=kv.group(dv), ROTATED=rotated and merged,
                PARTS=parts, WIDTH=triton.next_power_of_2(parts), num_warps=4,
            )  # fmt: skip
    if rotated and not merged:
        turn_back(out, dv)
    return out


def _first(d: int) -> int:
    """Heads are cut in two tiles of powers of two, of 16 at least, padded: the first's width."""
    return max(16, 1 << d.bit_length() - 1)


def _second(d: int) -> int:
    """And the second's; 0: there is none."""
    rest = d - _first(d)
    return max(16, triton.next_power_of_2(rest)) if rest > 0 else 0


def _check(q: Any, k: Any, v: Any, pages: Any, codec: str, positions: Any, starts: Any, page_tables: Any) -> None:
    kinds = kv.CODECS.get(codec) if isinstance(codec, str) else None
    if kinds is None:
        raise ConfigError(f"codec={codec!r}; expected one of {', '.join(kv.CODECS)}.")
    arrays = q, k, v, pages, positions, starts, page_tables
    fits = (
        q.ndim == k.ndim == v.ndim == 3
        and q.shape[0] == k.shape[0] == v.shape[0] == len(positions)
        and q.shape[2] == k.shape[2]
        and k.shape[1] == v.shape[1]
        and q.shape[1] % k.shape[1] == 0
        and pages.dtype == torch.uint8
        and pages.shape[1:] == (k.shape[1], kv.head_bytes(codec, k.shape[2], v.shape[2]))
        and all(x.is_floating_point() and x[:1].is_contiguous() for x in (q, k, v))
        and all(x.dtype == torch.int32 for x in (positions, starts, page_tables))
        and len(page_tables) == len(starts) - 1
        and page_tables[:1].is_contiguous()
        and all(x.is_contiguous() for x in (pages, positions, starts))
    )
    if not fits or kv.why_not(codec, k.shape[2], v.shape[2]):
        found = ", ".join(f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}" for x in arrays)
        raise ConfigError(
            f"attention in {codec} got {found}; expected q [T, H, D], k [T, Hk, D], v [T, Hk, Dv] of floats, "
            "pages [n, Hk, head_bytes] uint8, positions [T], starts [S + 1], page_tables [S, P] int32."
        )


@triton.jit
def _floats(codes, BITS: tl.constexpr):
    """Codes as f16, exactly."""
    return (codes.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True) - (1024 + (1 << (BITS - 1)))


@triton.jit
def _load(at, row, column, ok, WIDTH: tl.constexpr, END: tl.constexpr, CUT: tl.constexpr, MASKED: tl.constexpr):
    """Rows of `WIDTH` elements, `column`s below END where CUT, `ok` rows where MASKED."""
    place = at + row[:, None] * WIDTH + column[None, :]
    if CUT and MASKED:
        return tl.load(place, mask=ok[:, None] & (column < END)[None, :], other=0)
    elif CUT:
        return tl.load(place, mask=(column < END)[None, :], other=0)
    elif MASKED:
        return tl.load(place, mask=ok[:, None], other=0)
    else:
        return tl.load(place)


@triton.jit
def _tile(
    at, row, ok, FIRST: tl.constexpr, WIDE: tl.constexpr, D: tl.constexpr, G: tl.constexpr,
    BITS: tl.constexpr, N: tl.constexpr, PAGE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Dimensions FIRST to FIRST + WIDE of rows of a head's keys or values, `[N, WIDE]`; where MASKED, 0 in rows that are not `ok`."""
    F: tl.constexpr = 1 if BITS >= 8 else (2 if BITS == 4 else 4)
    CUT: tl.constexpr = FIRST + WIDE > D
    column = FIRST // F + tl.arange(0, WIDE // F)
    if BITS >= 16:
        kind: tl.constexpr = tl.float32 if BITS == 32 else tl.float16
        return _load(at.to(tl.pointer_type(kind)), row, column, ok, D, D, CUT, MASKED)
    else:
        x = _load(at, row, column, ok, D // F, D // F, CUT, False)
        if BITS == 8:
            codes = _floats(x, BITS)
        elif BITS == 4:
            codes = _floats(tl.join(x & 15, x >> 4).reshape(N, WIDE), BITS)
        else:
            odd = _load(at + PAGE * D // 4, row, column, ok, D // 4, D // 4, CUT, False)
            high = _load(at + PAGE * D // 2, row, column, ok, D // 4, D // 4, CUT, False)
            evens = tl.join((x & 15) | ((high & 3) << 4), (x >> 4) | (high & 48))
            odds = tl.join((odd & 15) | ((high & 12) << 2), (odd >> 4) | ((high & 192) >> 2))
            codes = _floats(tl.join(evens, odds).reshape(N, WIDE), BITS)
        scales = (at + PAGE * D * BITS // 8).to(tl.pointer_type(tl.float16))
        scale = _load(scales, row, FIRST // G + tl.arange(0, WIDE // G), ok, D // G, D // G, CUT, MASKED)
        return codes * tl.broadcast_to(scale[:, :, None], (N, WIDE // G, G)).reshape(N, WIDE)


@triton.jit
def _step(
    t0, top, total, acc_a, acc_b, q_a, q_b, pages, table, hk, position, low, high, window, softcap,
    KV_HEADS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, KA: tl.constexpr, KB: tl.constexpr, VA: tl.constexpr, VB: tl.constexpr,
    GROUP_K: tl.constexpr, GROUP_V: tl.constexpr, BITS_K: tl.constexpr, BITS_V: tl.constexpr, CUT: tl.constexpr,
    HEAD_BYTES: tl.constexpr, PAGE: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr,
    N: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The keys and values of `t0` to `t0 + N` join a running softmax."""
    page = tl.load(table + t0 // PAGE)
    at = pages + (page.to(tl.int64) * KV_HEADS + hk) * HEAD_BYTES
    row = t0 % PAGE + tl.arange(0, N)
    t = t0 + tl.arange(0, N)
    there = (t >= low) & (t < high)
    scores = tl.dot(q_a, tl.trans(_tile(at, row, there, 0, KA, D, GROUP_K, BITS_K, N, PAGE, False)), input_precision="ieee")  # fmt: skip
    if KB:
        scores = tl.dot(q_b, tl.trans(_tile(at, row, there, KA, KB, D, GROUP_K, BITS_K, N, PAGE, False)), scores, input_precision="ieee")  # fmt: skip
    if CAPPED:
        scores = softcap * LOG2E * (1 - 2 / (tl.exp2(scores * (2 * LOG2E / softcap)) + 1))
    if MASKED:
        seen = there[None, :]
        if CAUSAL:
            seen = seen & (t[None, :] <= position[:, None])
            if WINDOWED:
                seen = seen & (t[None, :] > position[:, None] - window)
        elif WINDOWED:
            seen = seen & (t[None, :] >= position[:, None] - window // 2) & (t[None, :] <= position[:, None] + window // 2)  # fmt: skip
        scores = tl.where(seen, scores, float("-inf"))
    new = tl.maximum(top, tl.max(scores, 1))
    level = tl.where(new == float("-inf"), 0.0, new) if MASKED else new
    fade = tl.exp2(top - level)
    p = tl.exp2(scores - level[:, None])
    total = total * fade + tl.sum(p, 1)
    p = p.to(tl.float32 if BITS_V == 32 else tl.float16)
    at += CUT
    acc_a = tl.dot(p, _tile(at, row, there, 0, VA, DV, GROUP_V, BITS_V, N, PAGE, MASKED), acc_a * fade[:, None], input_precision="ieee")  # fmt: skip
    if VB:
        acc_b = tl.dot(p, _tile(at, row, there, VA, VB, DV, GROUP_V, BITS_V, N, PAGE, MASKED), acc_b * fade[:, None], input_precision="ieee")  # fmt: skip
    return new, total, acc_a, acc_b


@triton.jit(do_not_specialize=["n_sequences", "table_stride", "window"])
def _attend(
    q, pages, out, partial, tops, positions, starts, tables, sinks, n_sequences, table_stride, window, softcap,
    WIDTH: tl.constexpr, TILES: tl.constexpr, STRIDE: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
    D: tl.constexpr, DV: tl.constexpr, KA: tl.constexpr, KB: tl.constexpr, VA: tl.constexpr, VB: tl.constexpr,
    GROUP_K: tl.constexpr, GROUP_V: tl.constexpr, BITS_K: tl.constexpr, BITS_V: tl.constexpr, CUT: tl.constexpr,
    HEAD_BYTES: tl.constexpr, PAGE: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, CAPPED: tl.constexpr,
    SINKS: tl.constexpr, PARTS: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    HEADS: tl.constexpr = KV_HEADS * GROUP
    tile, hk, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if TILES:
        s = tile // TILES
        tile = tile % TILES
    else:  # the last first: they see most
        s, tile = _find(tl.num_programs(0) - 1 - tile, starts, n_sequences, WIDTH, LEAST, MOST, GROUP, M)
        if s >= n_sequences:
            return
    first = tl.load(starts + s)
    n = tl.load(starts + s + 1) - first
    if (n < LEAST) | (n > MOST) | (tile * M >= n * GROUP):
        return
    past = tl.load(positions + first)
    r = tile * M + tl.arange(0, M)
    token, head = r // GROUP, hk * GROUP + r % GROUP
    real = r < n * GROUP
    position = past + token
    place = q + ((first + token).to(tl.int64) * HEADS + head)[:, None] * D
    column = tl.arange(0, KA)
    q_a = tl.load(place + column[None, :], mask=real[:, None] & (column < D)[None, :], other=0.0)
    q_b = q_a
    if KB:
        column = KA + tl.arange(0, KB)
        q_b = tl.load(place + column[None, :], mask=real[:, None] & (column < D)[None, :], other=0.0)

    early, late = past + tile * M // GROUP, past + tl.minimum(n * GROUP - 1, tile * M + M - 1) // GROUP
    low, high = 0, past + n  # what any row of the tile sees
    begin, end = 0, past + n  # what all of them see
    if CAUSAL:
        high, end = late + 1, early + 1
        if WINDOWED:
            low, begin = tl.maximum(0, early + 1 - window), tl.maximum(0, late + 1 - window)
    elif WINDOWED:
        low, begin = tl.maximum(0, early - window // 2), tl.maximum(0, late - window // 2)
        high, end = tl.minimum(high, late + window // 2 + 1), tl.minimum(high, early + window // 2 + 1)
    start = low // N * N
    length = tl.cdiv(tl.cdiv(high - start, PARTS), N) * N
    start += part * length
    stop = tl.minimum(high, start + length)

    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    if SINKS:  # they join the first part
        top = tl.where(part == 0, tl.load(sinks + head).to(tl.float32) * LOG2E, top)
        total = tl.where(part == 0, 1.0, total)
    acc_a = tl.zeros([M, VA], tl.float32)
    acc_b = tl.zeros([M, VB if VB else 1], tl.float32)
    table = tables + s.to(tl.int64) * table_stride
    begin = tl.minimum(tl.maximum(tl.cdiv(begin, N) * N, start), tl.maximum(start, stop)) if M >= 64 else start
    end = tl.maximum(tl.minimum(end, stop) // N * N, begin) if M >= 64 else start
    if WINDOWED and M >= 64:
        for t0 in range(start, begin, N):
            top, total, acc_a, acc_b = _step(
                t0, top, total, acc_a, acc_b, q_a, q_b, pages, table, hk, position, low, high, window, softcap,
                KV_HEADS, D, DV, KA, KB, VA, VB, GROUP_K, GROUP_V, BITS_K, BITS_V, CUT, HEAD_BYTES, PAGE, CAUSAL, WINDOWED, CAPPED, N, True,
            )  # fmt: skip
    if M >= 64:
        for t0 in range(begin, end, N):
            top, total, acc_a, acc_b = _step(
                t0, top, total, acc_a, acc_b, q_a, q_b, pages, table, hk, position, low, high, window, softcap,
                KV_HEADS, D, DV, KA, KB, VA, VB, GROUP_K, GROUP_V, BITS_K, BITS_V, CUT, HEAD_BYTES, PAGE, CAUSAL, WINDOWED, CAPPED, N, False,
            )  # fmt: skip
    for t0 in range(end, stop, N):
        top, total, acc_a, acc_b = _step(
            t0, top, total, acc_a, acc_b, q_a, q_b, pages, table, hk, position, low, high, window, softcap,
            KV_HEADS, D, DV, KA, KB, VA, VB, GROUP_K, GROUP_V, BITS_K, BITS_V, CUT, HEAD_BYTES, PAGE, CAUSAL, WINDOWED, CAPPED, N, True,
        )  # fmt: skip

    index = ((s * STRIDE if STRIDE else first) + token).to(tl.int64) * HEADS + head
    if PARTS > 1:
        index = index * PARTS + part
        tl.store(tops + 2 * index, top, mask=real)
        tl.store(tops + 2 * index + 1, total, mask=real)
        target = partial
    else:
        index = (first + token).to(tl.int64) * HEADS + head
        acc_a /= total[:, None]
        acc_b /= total[:, None]
        target = out
    place = target + index[:, None] * DV
    column = tl.arange(0, VA)
    tl.store(place + column[None, :], acc_a.to(target.dtype.element_ty), mask=real[:, None] & (column < DV)[None, :])
    if VB:
        column = VA + tl.arange(0, VB)
        tl.store(place + column[None, :], acc_b.to(target.dtype.element_ty), mask=real[:, None] & (column < DV)[None, :])  # fmt: skip


@triton.jit
def _find(tile, starts, n_sequences, WIDTH: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr, GROUP: tl.constexpr, M: tl.constexpr):  # fmt: skip
    """The sequence that a tile belongs to, and which of its tiles it is; sequence `n_sequences`: none."""
    s = tl.arange(0, WIDTH)
    n = tl.load(starts + s + 1, mask=s < n_sequences, other=0) - tl.load(starts + s, mask=s < n_sequences, other=0)
    tiles = tl.where((n >= LEAST) & (n <= MOST), tl.cdiv(n * GROUP, M), 0)
    before = tl.cumsum(tiles, 0) - tiles
    mine = tl.sum(((before + tiles) <= tile).to(tl.int32), 0)
    return tl.minimum(mine, n_sequences), tile - tl.sum(tl.where(s == mine, before, 0), 0)


@triton.jit(do_not_specialize=["n_sequences"])
def _merge(
    partial, tops, out, starts, n_sequences,
    LOG_S: tl.constexpr, STRIDE: tl.constexpr, LEAST: tl.constexpr, MOST: tl.constexpr,
    HEADS: tl.constexpr, DV: tl.constexpr, WIDE: tl.constexpr, GROUP_V: tl.constexpr, ROTATED: tl.constexpr,
    PARTS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One head of one row: its parts, in order."""
    row, head = tl.program_id(0), tl.program_id(1)
    if STRIDE:
        s = row // STRIDE
        token = row % STRIDE
    else:
        s = sequence_of(row, starts, n_sequences, LOG_S)
        token = row - tl.load(starts + s)
    first = tl.load(starts + s)
    n = tl.load(starts + s + 1) - first
    if (n < LEAST) | (n > MOST) | (token >= n):
        return
    index = (row.to(tl.int64) * HEADS + head) * PARTS
    part = tl.arange(0, WIDTH)
    top = tl.load(tops + 2 * (index + part), mask=part < PARTS, other=float("-inf"))
    highest = tl.max(top, 0)
    weight = tl.exp2(top - highest)
    total = tl.sum(tl.load(tops + 2 * (index + part) + 1, mask=part < PARTS, other=0.0) * weight, 0)
    used = tl.sum((weight > 0).to(tl.int32), 0)
    column = tl.arange(0, WIDE)
    ok = (column < DV)[None, :]
    y = tl.zeros([WIDE], tl.float32)
    if used == 0:
        y += float("nan")
    EIGHT: tl.constexpr = min(8, PARTS)
    for at in range(0, PARTS, EIGHT):
        eight = at + tl.arange(0, EIGHT)
        here = tl.load(tops + 2 * (index + eight))
        w = tl.exp2(here - highest)
        values = tl.load(
            partial + (index + eight)[:, None] * DV + column[None, :], mask=ok & (w > 0)[:, None], other=0.0
        )
        y += tl.sum(values * w[:, None], 0)
    y /= total
    if ROTATED:
        y = rotate(y.reshape(WIDE // GROUP_V, GROUP_V), WIDE // GROUP_V, GROUP_V).reshape(WIDE)
    tl.store(
        out + ((first + token).to(tl.int64) * HEADS + head) * DV + column, y.to(out.dtype.element_ty), mask=column < DV
    )
