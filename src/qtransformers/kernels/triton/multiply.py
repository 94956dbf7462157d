"""Products with stored weights on the GPU: `kernels.cpu`'s names and meanings, torch tensors in and out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from qtransformers.errors import ConfigError
from qtransformers.kernels.reference import ACTIVATIONS
from qtransformers.kernels.table import ACCURACIES, FEW_ROWS
from qtransformers.kernels.triton.blocks import LAYOUTS
from qtransformers.kernels.triton.dequantise import dequantise
from qtransformers.kernels.triton.products import (
    book_of,
    few_product,
    form,
    join,
    packed,
    places,
    tile_product,
)
from qtransformers.kernels.triton.weights import Experts, Weight

Tensor = torch.Tensor
SLAB_BYTES = 1 << 27  # of weights decoded at once for a product of many tokens
TILE_TOKENS = 256  # up to which tiles are decoded in registers


def linear(x: Tensor, w: Weight, bias: Tensor | None = None) -> Tensor:
    """`x [T, in] @ w [out, in].T + bias [out]`: `[T, out]` f32. ConfigError where shapes differ."""
    return linears(x, (w,), (bias,))[0]


def linears(x: Tensor, ws: Sequence[Weight], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """`linear` of one `x [T, in]` by each weight, with its bias or None. ConfigError where shapes differ."""
    if len(ws) != len(biases):
        raise ConfigError(f"linears got {len(ws)} weights, but {len(biases)} biases.")
    for w, bias in zip(ws, biases, strict=True):
        check(x, w, bias)
    tokens = len(x)
    if tokens == 0:
        return [torch.zeros(0, w.shape[0], device=x.device) for w in ws]
    ys = []
    few = {}
    for w, bias in zip(ws, biases, strict=True):
        if w.floats is not None:
            y = _floats(x, w.floats)
        elif tokens <= FEW_ROWS[w.accuracy]:
            planes, rows = ACCURACIES[w.accuracy], triton.next_power_of_2(tokens)
            if planes not in few:
                few[planes] = packed(x, planes, rows)
            ys.append(few_product(few[planes], rows, w, bias)[:tokens])
            continue
        elif tokens <= TILE_TOKENS:
            ys.append(tile_product(x, w, bias))
            continue
        else:
            y = slab_product(x, w)
        ys.append(y if bias is None else y.add_(bias))
    return ys


def gated(
    x: Tensor, w_gate: Weight, w_up: Weight, act: str = "silu", gate_bias: Tensor | None = None, up_bias: Tensor | None = None
) -> Tensor:  # fmt: skip
    """`act(x @ w_gate.T + gate_bias) * (x @ w_up.T + up_bias)`, `[T, n_ff]`; see `nn.gated`. ConfigError where shapes differ."""
    check_act(act)
    tokens = len(x)
    alike = w_gate.type == w_up.type and w_gate.shape == w_up.shape and w_gate.accuracy == w_up.accuracy
    if not alike or w_gate.floats is not None or not 0 < tokens <= FEW_ROWS[w_gate.accuracy]:
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
        return torch.einsum("thi,hoi->tho", x.to(w.floats.dtype), w.floats).float()
    flat = x.reshape(-1, columns)
    if tokens == 0:
        y = torch.zeros(0, w.shape[1], device=x.device)
    elif tokens <= FEW_ROWS[w.accuracy]:
        rows = triton.next_power_of_2(tokens)
        y = few_product(packed(flat, ACCURACIES[w.accuracy], rows * heads), rows, w, items=heads)
    else:
        y = tile_product(flat, w, items=heads)
    return y.view(-1, heads, w.shape[1])[:tokens]


def slab_product(x: Tensor, w: Weight) -> Tensor:
    """x `[T, in]` times w by the vendor's library, slabs of rows decoded into a scratch of `scratch_bytes`."""
    dtype = torch.bfloat16 if w.accuracy == "fast" else torch.float32
    n_rows, columns = w.shape
    slab = slab_rows(w)
    given = x.to(dtype)
    y = torch.empty(len(x), n_rows, dtype=torch.float32, device=x.device)
    scratch = torch.empty(slab, columns, dtype=dtype, device=x.device)
    for first in range(0, n_rows, slab):
        count = min(slab, n_rows - first)
        data = w.data[first * w.row_bytes : (first + count) * w.row_bytes]
        part = dequantise(data, w.type, (count, columns), dtype, scratch[:count])
        _multiply(given, part, y[:, first : first + count])
    return y


def slab_rows(w: Weight) -> int:
    """Rows of w decoded at once for a product of many tokens."""
    each = w.shape[-1] * (2 if w.accuracy == "fast" else 4)
    return min(w.shape[-2], max(1, SLAB_BYTES // max(each, 1)))


def scratch_bytes(w: Weight, tokens: int) -> int:
    """Bytes that a product of so many tokens takes beside x and y."""
    columns = w.shape[-1]
    if w.floats is not None:
        return tokens * columns * w.floats.itemsize
    if tokens <= FEW_ROWS[w.accuracy]:
        return tokens * (
            columns * 4 if w.accuracy == "exact" else ACCURACIES[w.accuracy] * (columns + columns * 3 // 8)
        )
    each = 2 if w.accuracy == "fast" else 4
    return (tokens + (0 if tokens <= TILE_TOKENS else slab_rows(w))) * columns * each


def _multiply(x: Tensor, w: Tensor, out: Tensor) -> None:
    """`x w^T` into f32; halves are summed in f32, too."""
    if x.dtype == torch.float32 or not x.is_cuda:
        out.copy_(x.float() @ w.float().T)
    else:
        out.copy_(torch.mm(x, w.T, out_dtype=torch.float32))


def _floats(x: Tensor, w: Tensor) -> Tensor:
    """`x w^T` of a weight that is plain floats, f32."""
    return (x.to(w.dtype) @ w.T).float()


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
            value = (words << (24 - 8 * i) >> 24).to(tl.float32) * scale[:, :, :, None]
            if MINIMUM:
                value = value - minimum[:, :, :, None]
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
