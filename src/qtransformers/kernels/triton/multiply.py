"""Products with stored weights on the GPU: `kernels.cpu`'s names and meanings, torch tensors in and out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch.nn import functional

from qtransformers.errors import ConfigError
from qtransformers.kernels.reference import ACTIVATIONS
from qtransformers.kernels.staging import TILE_TOKENS, slab_rows
from qtransformers.kernels.table import ACCURACIES
from qtransformers.kernels.triton.blocks import LAYOUTS
from qtransformers.kernels.triton.dequantise import decode
from qtransformers.kernels.triton.products import (
    TOGETHER,
    Packed,
    book_of,
    few_product,
    few_products,
    form,
    join,
    packed,
    places,
    tile_product,
)
from qtransformers.kernels.triton.weights import Experts, Weight
from qtransformers.kernels.triton.words import times_less

Tensor = torch.Tensor
TERMS = {torch.float16: 2, torch.bfloat16: 3}  # halves that add up to a float
FEW_COLUMNS = 2  # of x, tokens by planes: more are multiplied faster by tiles, whose work they share


def linear(x: Tensor, w: Weight, bias: Tensor | None = None) -> Tensor:
    """`x [T, in] @ w [out, in].T + bias [out]`: `[T, out]` f32. ConfigError where shapes differ."""
    return linears(x, (w,), (bias,))[0]


def linear_like(x: Tensor, w: Weight, bias: Tensor | None = None) -> Tensor:
    """`linear` in x's dtype: many tokens in bfloat16 meet `fast` weights as they are, with no array of floats beside the result."""
    if x.dtype != torch.bfloat16 or w.accuracy != "fast" or w.type.name not in (*LAYOUTS, "BF16"):
        return linear(x, w, bias).to(x.dtype)
    if len(x) <= (0 if w.floats is not None else TILE_TOKENS["fast"]):
        return linear(x, w, bias).to(x.dtype)
    check(x, w, bias)
    bias = None if bias is None else bias.to(x.dtype)
    return slab_product(x, w, bias, x.dtype) if w.floats is None else functional.linear(x, w.floats, bias)


def linears(x: Tensor, ws: Sequence[Weight], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """`linear` of one `x [T, in]` by each weight, with its bias or None. ConfigError where shapes differ."""
    if len(ws) != len(biases):
        raise ConfigError(f"linears got {len(ws)} weights, but {len(biases)} biases.")
    for w, bias in zip(ws, biases, strict=True):
        check(x, w, bias)
    tokens = len(x)
    if tokens == 0:
        return [torch.zeros(0, w.shape[0], device=x.device) for w in ws]
    rows = triton.next_power_of_2(tokens)
    given: dict[int, Packed] = {}
    ys: dict[int, Tensor] = {}
    for several in _together(tokens, ws, biases):
        i = several[0]
        planes = ACCURACIES[ws[i].accuracy]
        if not _few(tokens, ws[i]):
            ys[i] = _many(x, ws[i], biases[i])
            continue
        if planes not in given:
            given[planes] = packed(x, planes, rows)
        found = few_products(given[planes], rows, [ws[i] for i in several], [biases[i] for i in several])
        ys.update((i, y[:tokens]) for i, y in zip(several, found, strict=True))
    return [ys[i] for i in range(len(ws))]


def _few(tokens: int, w: Weight) -> bool:
    """Whether w is read once, by integer products or in floats, for so many tokens."""
    return w.floats is None and 0 < tokens * max(ACCURACIES[w.accuracy], 1) <= FEW_COLUMNS


def _together(tokens: int, ws: Sequence[Weight], biases: Sequence[Tensor | None]) -> list[list[int]]:
    """The numbers of weights that one launch may take: of one type, all with a bias or none, for few tokens."""
    alike: dict[Any, list[list[int]]] = {}
    for i, (w, bias) in enumerate(zip(ws, biases, strict=True)):
        key = (w.type, w.accuracy, None if bias is None else bias.dtype) if _few(tokens, w) else i
        lists = alike.setdefault(key, [[]])
        if len(lists[-1]) == TOGETHER:
            lists.append([])
        lists[-1].append(i)
    return [several for lists in alike.values() for several in lists]


def _many(x: Tensor, w: Weight, bias: Tensor | None) -> Tensor:
    """The product of more tokens, or with plain floats."""
    if w.floats is None and len(x) <= TILE_TOKENS[w.accuracy]:
        return tile_product(x, w, bias)
    if w.floats is None:
        return slab_product(x, w, bias)
    y = _floats(x, w.floats, w.accuracy)
    return y if bias is None else y.add_(bias)


def gated(
    x: Tensor, w_gate: Weight, w_up: Weight, act: str = "silu", gate_bias: Tensor | None = None, up_bias: Tensor | None = None
) -> Tensor:  # fmt: skip
    """`act(x @ w_gate.T + gate_bias) * (x @ w_up.T + up_bias)`, `[T, n_ff]`; see `nn.gated`. ConfigError where shapes differ."""
    check_act(act)
    tokens = len(x)
    alike = w_gate.type == w_up.type and w_gate.shape == w_up.shape and w_gate.accuracy == w_up.accuracy
    if not alike or not _few(tokens, w_gate):
        gate, up = linears(x, (w_gate, w_up), (gate_bias, up_bias))
        if gate.shape != up.shape:
            raise ConfigError(
                f"gated: {w_gate.name} is {list(w_gate.shape)}, {w_up.name} {list(w_up.shape)}; expected equal shapes."
            )
        return join(gate, up, act)
    check(x, w_gate, gate_bias)
    check(x, w_up, up_bias)
    rows = triton.next_power_of_2(tokens)
    given = packed(x, ACCURACIES[w_gate.accuracy], rows)
    return few_product(given, rows, w_gate, gate_bias, up=w_up, up_bias=up_bias, act=act)[:tokens]


def per_head(x: Tensor, w: Experts) -> Tensor:
    """`x [T, H, in]`, each head times a matrix of its own of `w [H, out, in]`: `[T, H, out]`. ConfigError where shapes differ."""
    if x.dim() != 3 or x.shape[1] != w.shape[0] or x.shape[2] != w.shape[2]:
        raise ConfigError(
            f"per_head: x is {list(x.shape)}; {w.name}, {list(w.shape)}, expects [any, {w.shape[0]}, {w.shape[2]}]."
        )
    tokens, heads, columns = x.shape
    if w.floats is not None:
        return torch.einsum("thi,hoi->tho", x.float(), w.floats.float())
    flat = x.reshape(-1, columns)
    if tokens == 0:
        y = torch.zeros(0, w.shape[1], device=x.device)
    elif _few(tokens, w):
        rows = triton.next_power_of_2(tokens)
        y = few_product(packed(flat, ACCURACIES[w.accuracy], rows * heads), rows, w, items=heads)
    else:
        y = tile_product(flat, w, items=heads)
    return y.view(-1, heads, w.shape[1])[:tokens]


def slab_product(x: Tensor, w: Weight, bias: Tensor | None = None, result: torch.dtype = torch.float32) -> Tensor:
    """x `[T, in]` times w by the vendor's library in dtype `result`, slabs of rows decoded into a scratch (`staging.product_bytes`).

    The bias is added within the product where x is multiplied in that dtype too.
    """
    dtype = torch.bfloat16 if w.accuracy == "fast" else torch.float32
    n_rows, columns = w.shape
    slab = slab_rows(n_rows, columns, w.accuracy)
    given, bias = x.to(dtype), None if bias is None else bias.to(result)
    scratch = torch.empty(slab, columns, dtype=dtype, device=x.device)
    if slab == n_rows > 0:
        return _multiplied(given, decode(w.data, w.type, scratch), bias, result)
    y = torch.empty(len(x), n_rows, dtype=result, device=x.device)
    for first in range(0, n_rows, slab or 1):
        rows = slice(first, min(first + slab, n_rows))
        data = w.data[first * w.row_bytes : rows.stop * w.row_bytes]
        some = None if bias is None else bias[rows]
        y[:, rows] = _multiplied(given, decode(data, w.type, scratch[: rows.stop - first]), some, result)
    return y


def _multiplied(x: Tensor, w: Tensor, bias: Tensor | None = None, result: torch.dtype = torch.float32) -> Tensor:
    """`x w^T + bias` in dtype `result`: of halves sums in f32, too; where torch cannot give that (before 2.8), rounded to halves."""
    if x.dtype == result:
        return functional.linear(x, w, bias)
    if not x.is_cuda:
        y = x.float() @ w.float().T
    elif "dtype" in torch.ops.aten.mm.overloads():
        y = torch.mm(x, w.T, out_dtype=torch.float32)
    else:
        y = (x @ w.T).float()
    return y if bias is None else y.add_(bias)


def _floats(x: Tensor, w: Tensor, accuracy: str) -> Tensor:
    """`x w^T` of a weight that is plain floats, f32.

    x meets halves as one half (`fast`), or as several that add up to it, beneath each other, so that w is still read once. Its rows
    are brought below 2048 for that: halves end at 65504.
    """
    if w.dtype.itemsize > 2:
        return (x.to(w.dtype) @ w.T).float()
    n = TERMS[w.dtype] if accuracy != "fast" else 1
    most = x.abs().amax(-1, keepdim=True).float()
    scale = torch.exp2(torch.floor(torch.log2(most.clamp(min=1e-30))) - 10)
    rest, parts = x / scale, []
    for _ in range(n):
        parts.append(rest.to(w.dtype))
        rest = rest - parts[-1].float()
    return _multiplied(torch.cat(parts), w).view(n, len(x), -1).sum(0) * scale


def embedding(tokens: Tensor, w: Weight) -> Tensor:
    """Rows of `w [vocab, n_embd]`: `[T, n_embd]` f32, with the bits of decoding; NaN for ids outside the vocabulary."""
    if tokens.dim() != 1 or tokens.dtype != torch.int32:
        raise ConfigError(f"embedding expects tokens [T] int32; found {tokens.dtype} {list(tokens.shape)}.")
    vocab, columns = w.shape
    if w.floats is not None:
        known = (tokens >= 0) & (tokens < vocab)
        rows = w.floats[tokens.clamp(0, vocab - 1).long()].float()
        return torch.where(known[:, None], rows, torch.nan)
    y = torch.empty(len(tokens), columns, dtype=torch.float32, device=tokens.device)
    n_blocks = columns // w.type.block_size
    blocks = max(1, 1024 // w.type.block_size)
    if y.numel():
        rows_kernel[(len(tokens), triton.cdiv(n_blocks, blocks))](
            y, tokens, w.data, book_of(w), vocab, n_blocks, w.row_bytes, **form(w.type.name), **places(w.type.name),
            MINIMUM=LAYOUTS[w.type.name].has_minimum, B=blocks, enable_fp_fusion=False,
        )  # fmt: skip
    return y


@triton.jit
def rows_kernel(
    y, tokens, data, book, vocab, n_blocks, row_bytes,
    DECODE: tl.constexpr, BYTES: tl.constexpr, SIZE: tl.constexpr,
    PLANES: tl.constexpr, GROUPS: tl.constexpr, WORDS: tl.constexpr,
    PLANE: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr, STEP: tl.constexpr, MINIMUM: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    """`B` blocks of a token's row as f32."""
    t = tl.program_id(0).to(tl.int64)
    token = tl.load(tokens + t).to(tl.int64)
    known = (token >= 0) & (token < vocab)
    b = tl.program_id(1) * B + tl.arange(0, B)
    inside = (b < n_blocks)[None, :, None, None]
    row = data + tl.minimum(tl.maximum(token, 0), vocab - 1) * row_bytes
    blocks = (row + tl.minimum(b, n_blocks - 1) * BYTES)[None, :]
    g = tl.arange(0, GROUPS)[:, None]
    for p in tl.static_range(PLANES):
        words, scale, minimum = DECODE(blocks, book, p)
        first = PLANE * p + OUTER * (g // INNER) + STEP * (g % INNER) + 4 * tl.arange(0, WORDS)[None, :]
        to = y + t * (n_blocks * SIZE) + b[None, :, None, None] * SIZE + first[None, None, :, :]
        for i in tl.static_range(4):
            value = (words << (24 - 8 * i) >> 24).to(tl.float32)
            if MINIMUM:
                value = times_less(value, scale[:, :, :, None], minimum[:, :, :, None])
            else:
                value *= scale[:, :, :, None]
            tl.store(to + i, tl.where(known, value, float("nan")), mask=inside)


def check(x: Tensor, w: Weight, bias: Tensor | None) -> None:
    """ConfigError where x or a bias does not fit w."""
    if not isinstance(x, Tensor) or not isinstance(w, Weight) or len(w.shape) != 2:
        raise ConfigError(f"linear expects x [T, in] float32, w Weight; found {type(x).__name__}, {type(w).__name__}.")
    if x.dim() != 2 or x.shape[1] != w.shape[1] or not x.is_floating_point():
        raise ConfigError(
            f"x is {x.dtype} {list(x.shape)}; {w.name}, {list(w.shape)}, expects floats [any, {w.shape[1]}]."
        )
    if x.device != w.data.device:
        raise ConfigError(f"x is on {x.device}; {w.name} is on {w.data.device}. Move one of them.")
    if bias is not None and tuple(bias.shape) != (w.shape[0],):
        raise ConfigError(f"bias is {list(bias.shape)}; expected [{w.shape[0]}].")


def check_act(act: str) -> None:
    """ConfigError for what joins no gate and up."""
    if act not in ACTIVATIONS:
        raise ConfigError(f"act={act!r}; expected one of {', '.join(ACTIVATIONS)}.")
