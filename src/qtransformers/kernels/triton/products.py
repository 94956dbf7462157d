"""How products are launched: x packed or arranged, blocks cut into tiles. What a model calls is in `multiply` and `experts`.

Nothing here waits for the device, so that all of it can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import triton

from qtransformers.kernels.table import ACCURACIES
from qtransformers.kernels.triton import few, tiles
from qtransformers.kernels.triton.blocks import LAYOUTS, alignment
from qtransformers.kernels.triton.dequantise import book_on
from qtransformers.kernels.triton.weights import Weight
from qtransformers.kernels.triton.words import INTERPRETED
from qtransformers.types import BY_NAME

Tensor = torch.Tensor
BUSY = 528  # programs that keep a card busy: four for each multiprocessor of an H200
DEPTH = 32  # columns of a tile, of which tensor cores take 16 at a time, or 8
TOGETHER = 3  # weights that one launch multiplies x with


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
    x = x if x.stride(-1) == 1 else x.contiguous()
    few.pack_kernel[(n, triton.cdiv(columns, 1024))](
        x, y.codes, y.scales, y.sums, columns, x.stride(0), rows, PLANES=planes, N=32
    )
    return y


def room_for_packed(rows: int, columns: int, planes: int, device: torch.device) -> Packed:
    """Memory for so many rows in `planes` of int8."""
    sizes = ((columns, torch.int8), (columns // 32, torch.float32), (columns // 16, torch.float32))
    codes, scales, sums = (torch.empty(planes * rows, size, dtype=kind, device=device) for size, kind in sizes)
    return Packed(codes, scales, sums, planes, rows)


def attach(x: Any, made: Packed) -> None:
    """Let `packed` find what was made of x beside it."""
    x.packed = replace(made, version=version(x))


def packed(x: Tensor, planes: int, rows: int) -> Packed:
    """What the kernel that made x has attached as `x.packed`, or `pack` of it."""
    found: Packed | None = getattr(x, "packed", None)
    if found is None or found.planes != planes or found.version != version(x):
        return pack(x, planes, rows)
    fits = found.rows == rows or (planes < 2 and found.rows > rows)  # planes follow each other after so many rows
    return found if fits else pack(x, planes, rows)


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
    """The cut for so many columns of x, chosen by registers and instructions a weight as compiled for sm_90, not by a clock.

    A step gives a thread 16 words of one column, or fewer of several; it spans as many blocks as divide a row with little waste.
    """
    layout = LAYOUTS[name]
    words = layout.groups * layout.words
    run = {16: 4, 8: 2}.get(alignment(name), 1) if layout.words % 4 == 0 else 1
    warps = 2 if run == 1 and words >= 32 else 4
    step = 32 * warps * (16 if columns <= 2 else max(2, 16 // columns))
    most = max(1, min(triton.next_power_of_2(n_blocks), step // words))
    blocks = next(b for b in (most >> k for k in range(99)) if b == 1 or -n_blocks % b * 16 <= n_blocks)
    return FewShape(max(1, min(4, step // (blocks * words))), blocks, warps, run)


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
    ws, biases = ((w,), (bias,)) if up is None else ((w, up), (bias, up_bias))
    y = torch.empty(tokens * items, w.shape[-2], dtype=torch.float32, device=x.codes.device)
    _few(x, tokens, [y], ws, biases, (items, shared, ids), act, shape)
    return y


def few_products(x: Packed, tokens: int, ws: Sequence[Weight], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """`few_product` of one item by up to `TOGETHER` weights of one type and width, all with a bias or none."""
    ys = [torch.empty(tokens, w.shape[0], dtype=torch.float32, device=x.codes.device) for w in ws]
    _few(x, tokens, ys, ws, biases, (1, 1, None), None, None)
    return ys


def _few(
    x: Packed, tokens: int, ys: Sequence[Tensor], ws: Sequence[Weight], biases: Sequence[Tensor | None],
    of_items: tuple[int, int, Tensor | None], act: str | None, shape: FewShape | None,
) -> None:  # fmt: skip
    items, shared, ids = of_items
    w, none = ws[0], (None,) * TOGETHER
    codes = x.codes if x.planes == 0 else x.codes.view(torch.int32)
    cut = few_cut(w, tokens * max(x.planes, 1), shape)
    n_rows = [y.shape[-1] for y in ys]
    few.few_kernel[(sum(triton.cdiv(n, cut["R"]) for n in n_rows), items)](
        *(*ys, *none)[:TOGETHER], codes, x.scales, x.sums, *(*(w.data for w in ws), *none)[:TOGETHER],
        *(*biases, *none)[:TOGETHER], ids, book_of(w), *(*n_rows, 0, 0)[:TOGETHER], w.shape[-1] // w.type.block_size,
        w.row_bytes, shared, x.rows if tokens == 1 else items, items, ACT=act, EXACT=x.planes == 0, T=tokens, **cut,
    )  # fmt: skip


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
        w.row_bytes, x.rows, EXPERTS=experts, EXACT=x.planes == 0, T=1, **cut,
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


def arrange(x: Tensor, name: str, dtype: torch.dtype, multiple: int, blocks: int) -> Tensor:
    """x `[n, columns]` in the order that blocks of a type decode in, `[n, width]`, padded to a `multiple` of blocks."""
    size = BY_NAME[name].block_size
    n, columns = x.shape
    x = x if x.stride(-1) == 1 else x.contiguous()
    width = triton.cdiv(columns, size * multiple) * size * multiple
    y = torch.empty(n, width, dtype=dtype, device=x.device)
    layout = {key: value for key, value in form(name).items() if key not in ("DECODE", "BYTES")}
    tiles.arrange_kernel[(n, triton.cdiv(width, 1024))](
        y, x, columns, x.stride(0), width, **layout, **places(name), B=blocks, N=1024
    )
    return y


@dataclass(frozen=True)
class TileShape:
    """How a product of many tokens is cut: rows, tokens and blocks of a tile's step, parts of the columns, warps, stages."""

    rows: int
    tokens: int
    blocks: int
    parts: int
    warps: int = 4
    stages: int = 2


def tile_shape(w: Weight, tokens: int, items: int = 1, sorted_rows: bool = False) -> TileShape:
    """The cut for so many tokens, chosen by what is compiled for sm_90 and by how many programs keep a card busy."""
    layout = LAYOUTS[w.type.name]
    n_rows, columns = w.shape[-2:]
    size = tile_tokens(tokens, w)
    blocks = max(1, DEPTH // (layout.groups * layout.words))
    programs = triton.cdiv(n_rows, 64) * triton.cdiv(tokens, size) * items
    steps = triton.cdiv(columns, blocks * w.type.block_size)
    parts = 1 if sorted_rows else max(1, min(8, steps // 4, BUSY // programs))
    return TileShape(64, size, blocks, parts)


def tile_tokens(tokens: int, w: Weight) -> int:
    """Tokens of a tile where there are so many: more floats would not fit into registers, nor more by four planes into tensor memory."""
    if w.accuracy != "fast":
        return 16
    return min(32 if LAYOUTS[w.type.name].planes == 4 else 64, max(16, triton.next_power_of_2(tokens)))


def tile_product(
    x: Tensor, w: Weight, bias: Tensor | None = None, *, items: int = 1, shared: int = 1, sorted_by: Any = None,
    shape: TileShape | None = None,
) -> Tensor:  # fmt: skip
    """x `[n, columns]` times w on tensor cores, tiles of w decoded in registers: `[n, rows]`, or a row for each of `sorted_by`.

    Of several `items`, row r of x is for matrix `r % items`. With `sorted_by`, see `experts.Sorted`, `shared` rows of it share one
    of x. `fast` weights are multiplied as bfloat16, others as three products of tf32.
    """
    name = w.type.name
    n_rows = w.shape[-2]
    tokens = len(x) // items if sorted_by is None else sorted_by.tokens
    shape = shape or tile_shape(w, tokens, items, sorted_by is not None)
    given = arrange(x, name, tile_dtype(w.accuracy), shape.blocks * shape.parts, shape.blocks)
    steps = given.shape[1] // (w.type.block_size * shape.blocks)
    out = len(x) if sorted_by is None else len(sorted_by.order)
    y = torch.empty(shape.parts, out, n_rows, dtype=torch.float32, device=x.device)
    n_tiles = triton.cdiv(tokens, shape.tokens) if sorted_by is None else len(sorted_by.begins)
    lists = (None,) * 4 if sorted_by is None else (sorted_by.order, sorted_by.experts, sorted_by.begins, sorted_by.ends)
    tiles.tile_kernel[(triton.cdiv(n_rows, shape.rows), n_tiles, items * shape.parts)](
        y, given, w.data, book_of(w), bias, *lists, tokens, out, shared, items, n_rows, w.shape[-1] // w.type.block_size,
        w.row_bytes, given.shape[1], **form(name), PRECISION="tf32x3", T=shape.tokens, R=shape.rows, B=shape.blocks,
        STEPS=steps // shape.parts, PARTS=shape.parts, num_warps=shape.warps, num_stages=shape.stages,
    )  # fmt: skip
    return y[0] if shape.parts == 1 else y.sum(0)


def tile_dtype(accuracy: str) -> torch.dtype:
    """What tiles are multiplied as; Triton's interpreter has no bfloat16 products."""
    if ACCURACIES[accuracy] != 1:
        return torch.float32
    return torch.float16 if INTERPRETED else torch.bfloat16
