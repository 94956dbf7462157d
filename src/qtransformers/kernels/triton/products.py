"""How products are launched: x packed or arranged, blocks cut into tiles. What a model calls is in `multiply` and `experts`.

Nothing here waits for the device, so that all of it can be captured in a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton

from qtransformers.kernels.table import ACCURACIES
from qtransformers.kernels.triton import few, tiles
from qtransformers.kernels.triton.blocks import LAYOUTS, alignment
from qtransformers.kernels.triton.dequantise import book_on
from qtransformers.kernels.triton.weights import Weight
from qtransformers.types import BY_NAME

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class Packed:
    """x `[n, columns]` as it enters products of few tokens: int8, in planes whose `codes * scale` are added up, or f32."""

    codes: Tensor  # [planes * rows, columns] int8, or f32
    scales: Tensor  # [planes * rows, columns / 32] f32
    sums: Tensor  # [planes * rows, columns / 16] f32, of what the codes stand for
    planes: int  # 0: f32
    rows: int  # n, or more
    version: int = 0  # of x, which may have been changed since


def version(x: Tensor) -> int:
    """How often a tensor was changed in place, where torch counts."""
    return 0 if x.is_inference() else x._version


def pack(x: Tensor, planes: int, rows: int | None = None) -> Packed:
    """Round x `[n, columns]` to int8, in 1 plane for `fast` and 2 for `high`, with room for `rows`; 0: as f32."""
    n, columns = x.shape
    rows = n if rows is None else rows
    if planes == 0:
        x = torch.nn.functional.pad(x.float(), (0, 0, 0, rows - n)).contiguous()
        return Packed(x, x, x, 0, rows)
    y = room_for_packed(rows, columns, planes, x.device)
    few.pack_kernel[(n, triton.cdiv(columns, 1024))](
        x, y.codes, y.scales, y.sums, columns, x.stride(0), rows, PLANES=planes, N=32
    )
    return y


def room_for_packed(rows: int, columns: int, planes: int, device: torch.device) -> Packed:
    """Memory for so many rows in `planes` of int8."""
    sizes = ((columns, torch.int8), (columns // 32, torch.float32), (columns // 16, torch.float32))
    codes, scales, sums = (torch.empty(planes * rows, size, dtype=kind, device=device) for size, kind in sizes)
    return Packed(codes, scales, sums, planes, rows)


def packed(x: Tensor, planes: int, rows: int) -> Packed:
    """What the kernel that made x has attached as `x.packed`, or `pack` of it."""
    found = getattr(x, "packed", None)
    if found is not None and found.planes == planes and found.rows >= rows and found.version == version(x):
        return found
    return pack(x, planes, rows)


@cache
def form(name: str) -> dict[str, Any]:
    """A type's blocks as the kernels take them."""
    layout, kind = LAYOUTS[name], BY_NAME[name]
    return {
        "DECODE": layout.decode, "BYTES": kind.block_bytes, "SIZE": kind.block_size,
        "PLANES": layout.planes, "GROUPS": layout.groups, "WORDS": layout.words,
    }  # fmt: skip


@cache
def places(name: str) -> dict[str, Any]:
    """Where the groups of a type's blocks begin, as the kernels take it."""
    layout = LAYOUTS[name]
    return {"PLANE": layout.plane, "OUTER": layout.outer, "INNER": layout.inner, "STEP": layout.step}


@dataclass(frozen=True)
class FewShape:
    """How a product of few columns is cut: rows and blocks of a step, warps, words summed as whole numbers, steps unrolled."""

    rows: int
    blocks: int
    warps: int
    words: int
    unroll: int = 1


@cache
def few_shape(name: str, columns: int, n_blocks: int) -> FewShape:
    """The cut for so many columns of x."""
    layout = LAYOUTS[name]
    run = {16: 4, 8: 2}.get(alignment(name), 1) if layout.words % 4 == 0 else 1
    blocks = min(triton.next_power_of_2(n_blocks), max(1, 512 // (layout.groups * layout.words)))
    return FewShape(2, blocks, 4, run)


def few_cut(w: Weight, columns: int, shape: FewShape | None) -> dict[str, Any]:
    """The cut of a product as the kernels take it."""
    name, n_blocks = w.type.name, w.shape[-1] // w.type.block_size
    shape = shape or few_shape(name, columns, n_blocks)
    return {
        **form(name), **places(name), "MINIMUM": LAYOUTS[name].has_minimum, "SUM": shape.words, "C": columns,
        "R": shape.rows, "B": shape.blocks, "STEPS": triton.cdiv(n_blocks, shape.blocks), "UNROLL": shape.unroll,
        "EVEN": n_blocks % shape.blocks == 0, "num_warps": shape.warps,
    }  # fmt: skip


def few_product(
    x: Packed, tokens: int, w: Weight, bias: Tensor | None = None, *, items: int = 1, shared: int = 1,
    ids: Tensor | None = None, up: Weight | None = None, up_bias: Tensor | None = None, act: str | None = None,
    shape: FewShape | None = None,
) -> Tensor:  # fmt: skip
    """Rows of x, `tokens` (a power of two) of each of `items`, times w `[.., n, columns]`: `[tokens * items, n]`.

    Item i of token t is row `t * items + i` of the result, and row `t * items + i // shared` of x. Its matrix is i, or
    `ids[i]`. With `act`, joined with the product by `up`, of w's type and shape.
    """
    n_rows, columns = w.shape[-2:]
    n_blocks = columns // w.type.block_size
    y = torch.empty(tokens * items, n_rows, dtype=torch.float32, device=x.codes.device)
    codes = x.codes if x.planes == 0 else x.codes.view(torch.int32)
    every = x.rows if tokens == 1 else items
    cut = few_cut(w, tokens * max(x.planes, 1), shape)
    few.few_kernel[(triton.cdiv(n_rows, cut["R"]), items)](
        y, codes, x.scales, x.sums, w.data, None if up is None else up.data, bias, up_bias, ids, book_of(w),
        n_rows, n_blocks, w.row_bytes, shared, every, items, ACT=act, EXACT=x.planes == 0, T=tokens, **cut,
    )  # fmt: skip
    return y


def mixed_product(
    x: Packed, w: Weight, bias: Tensor | None, ids: Tensor, weights: Tensor, shape: FewShape | None = None
) -> Tensor:
    """Rows `t * k + j` of x times the matrices `ids [T, k]`, summed over j with `weights [T, k]`: `[T, n]`."""
    n_rows, columns = w.shape[-2:]
    tokens, experts = ids.shape
    y = torch.empty(tokens, n_rows, dtype=torch.float32, device=ids.device)
    codes = x.codes if x.planes == 0 else x.codes.view(torch.int32)
    cut = few_cut(w, max(x.planes, 1), shape)
    few.mixed_kernel[(triton.cdiv(n_rows, cut["R"]), tokens)](
        y, codes, x.scales, x.sums, w.data, bias, ids, weights, book_of(w), n_rows, columns // w.type.block_size,
        w.row_bytes, x.rows, EXPERTS=experts, EXACT=x.planes == 0, **cut,
    )  # fmt: skip
    return y


def join(gate: Tensor, up: Tensor, act: str) -> Tensor:
    """What `act` makes of gate and up."""
    y = torch.empty_like(gate)
    if y.numel():
        few.join_kernel[(triton.cdiv(y.numel(), 1024),)](y, gate, up, y.numel(), ACT=act, N=1024)
    return y


def book_of(w: Weight) -> Tensor | None:
    """The codebook of a weight's type, where the weight is."""
    return book_on(LAYOUTS[w.type.name].book, w.data.device)


def chunk_blocks(name: str) -> int:
    """Blocks of which a plane's bytes follow each other in the order of decoding."""
    layout = LAYOUTS[name]
    return max(1, 64 // (layout.groups * layout.words))


def arrange(x: Tensor, name: str, dtype: torch.dtype, blocks: int) -> Tensor:
    """x `[n, columns]` in the order that blocks of a type decode in, `[n, width]`."""
    size = BY_NAME[name].block_size
    n, columns = x.shape
    width = triton.cdiv(columns, size * blocks) * size * blocks
    y = torch.empty(n, width, dtype=dtype, device=x.device)
    layout = {key: value for key, value in form(name).items() if key not in ("DECODE", "BYTES")}
    tiles.arrange_kernel[(n, triton.cdiv(width, 1024))](
        y, x, columns, x.stride(0), width, **layout, **places(name), B=blocks, N=1024
    )
    return y


@dataclass(frozen=True)
class TileShape:
    """How a product of many tokens is cut: rows, tokens and blocks of a tile's step, warps, stages of its pipeline."""

    rows: int
    tokens: int
    blocks: int
    warps: int = 4
    stages: int = 2


def tile_shape(name: str, tokens: int) -> TileShape:
    """The cut for so many tokens."""
    return TileShape(64, min(64, max(16, triton.next_power_of_2(tokens))), chunk_blocks(name))


def tile_product(
    x: Tensor, w: Weight, bias: Tensor | None = None, *, items: int = 1, shared: int = 1, sorted_by: Any = None,
    shape: TileShape | None = None,
) -> Tensor:  # fmt: skip
    """x `[n, columns]` times w on tensor cores, tiles of w decoded in registers: `[n, rows]`, or a row for each of `sorted_by`.

    Of several `items`, row r of x is for matrix `r % items`. With `sorted_by`, see `experts.Sorted`, `shared` rows of it share one
    of x. `fast` weights are multiplied as bfloat16, others as three products of tf32.
    """
    name = w.type.name
    n_rows, columns = w.shape[-2:]
    tokens = len(x) // items if sorted_by is None else sorted_by.tokens
    shape = shape or tile_shape(name, tokens)
    given = arrange(x, name, tile_dtype(w.accuracy, x.is_cuda), shape.blocks)
    out = len(x) if sorted_by is None else len(sorted_by.order)
    y = torch.empty(out, n_rows, dtype=torch.float32, device=x.device)
    n_tiles = triton.cdiv(tokens, shape.tokens) if sorted_by is None else len(sorted_by.begins)
    lists = (None,) * 4 if sorted_by is None else (sorted_by.order, sorted_by.experts, sorted_by.begins, sorted_by.ends)
    tiles.tile_kernel[(triton.cdiv(n_rows, shape.rows), n_tiles, items)](
        y, given, w.data, book_of(w), bias, *lists, tokens, shared, items, n_rows, columns // w.type.block_size, w.row_bytes,
        given.shape[1], **form(name), PRECISION="tf32x3", T=shape.tokens, R=shape.rows, B=shape.blocks,
        STEPS=given.shape[1] // (w.type.block_size * shape.blocks), num_warps=shape.warps, num_stages=shape.stages,
    )  # fmt: skip
    return y


def tile_dtype(accuracy: str, on_gpu: bool) -> torch.dtype:
    """What tiles are multiplied as; Triton's interpreter has no bfloat16 products."""
    if ACCURACIES[accuracy] != 1:
        return torch.float32
    return torch.bfloat16 if on_gpu else torch.float16
