"""Mixtures of experts on the GPU: which matrix a row meets is read there, so that the host need not wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton

from qtransformers.errors import ConfigError
from qtransformers.kernels.table import ACCURACIES
from qtransformers.kernels.triton.multiply import check_act, linears
from qtransformers.kernels.triton.products import (
    few_product,
    join,
    mixed_product,
    pack,
    packed,
    tile_product,
    tile_tokens,
)
from qtransformers.kernels.triton.weights import Experts

Tensor = torch.Tensor
FEW_TOKENS = 8  # up to which each meets its experts alone


@dataclass(frozen=True, eq=False)
class Sorted:
    """Rows sorted by expert and cut into tiles, as `tile_product` takes them; tiles that are left over are empty."""

    order: Tensor  # [T * k] int32: rows t * k + j, by their experts
    experts: Tensor  # [n] int32, of each tile
    begins: Tensor  # [n] int32, its first row in `order`
    ends: Tensor  # [n] int32, the one after its last
    tokens: int  # of a tile, at most


def moe(
    x: Tensor, ids: Tensor, weights: Tensor, w_gate: Experts, w_up: Experts, w_down: Experts, act: str = "silu",
    gate_bias: Tensor | None = None, up_bias: Tensor | None = None, down_bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Each token of `x [T, n_embd]` through its experts, summed with their weights: `[T, n_embd]`; see `nn.moe`."""
    _check(x, ids, weights, w_gate, w_up, w_down, act)
    tokens, k = ids.shape
    if tokens == 0:
        return torch.zeros(0, w_down.shape[1], device=x.device)
    ids, weights = ids.contiguous(), weights.contiguous()
    ws = (w_gate, w_up, w_down)
    if any(w.floats is not None for w in ws):
        return _floats(x, ids, weights, ws, act, (gate_bias, up_bias, down_bias))
    if tokens <= FEW_TOKENS:
        given = packed(x, ACCURACIES[w_gate.accuracy], tokens)
        pair: dict[str, Any] = {"items": tokens * k, "shared": k, "ids": ids}
        if w_gate.type == w_up.type:
            hidden = few_product(given, 1, w_gate, gate_bias, up=w_up, up_bias=up_bias, act=act, **pair)
        else:
            gate, up = (few_product(given, 1, w, b, **pair) for w, b in ((w_gate, gate_bias), (w_up, up_bias)))
            hidden = join(gate, up, act)
        return mixed_product(pack(hidden, ACCURACIES[w_down.accuracy]), w_down, down_bias, ids, weights)
    rows = sort(ids, ws)
    gate, up = (tile_product(x, w, b, shared=k, sorted_by=rows) for w, b in ((w_gate, gate_bias), (w_up, up_bias)))
    y = tile_product(join(gate, up, act), w_down, down_bias, sorted_by=rows)
    return torch.einsum("tkn,tk->tn", y.view(tokens, k, -1), weights)


def sort(ids: Tensor, ws: Sequence[Experts]) -> Sorted:
    """Rows of `ids [T, k]` by expert, in tiles of as many as `tile_tokens` says of all the weights."""
    flat = ids.reshape(-1)
    n_experts = ws[0].shape[0]
    size = triton.cdiv(len(flat), n_experts)
    each = min(tile_tokens(size, w) for w in ws)
    by, order = torch.sort(flat, stable=True)
    edges = torch.arange(n_experts + 1, device=ids.device, dtype=by.dtype)
    starts = torch.searchsorted(by, edges)  # [n_experts + 1]
    tiles = (starts[1:] - starts[:-1] + each - 1) // each
    last = torch.cumsum(tiles, 0)
    tile = torch.arange(triton.cdiv(len(flat), each) + min(n_experts, len(flat)), device=ids.device)
    expert = torch.searchsorted(last, tile, right=True).clamp(max=n_experts - 1)
    begin = starts[expert] + (tile - (last - tiles)[expert]) * each
    begin = torch.where(tile < last[-1], begin, len(flat))
    end = torch.minimum(begin + each, starts[expert + 1])
    order, expert, begin, end = (v.to(torch.int32) for v in (order, expert, begin, end))
    return Sorted(order, expert, begin, end, each)


def _floats(
    x: Tensor, ids: Tensor, weights: Tensor, ws: tuple[Experts, ...], act: str, biases: tuple[Tensor | None, ...]
) -> Tensor:
    """Where an expert is plain floats: expert by expert, which the host must know, so that this is never captured."""
    y = torch.zeros(len(x), ws[2].shape[1], device=x.device)
    for e in torch.unique(ids).tolist():
        t, j = torch.nonzero(ids == e, as_tuple=True)
        of_e = [None if b is None else b[e] for b in biases]
        gate, up = linears(x[t], (ws[0].expert(e), ws[1].expert(e)), of_e[:2])
        out = linears(join(gate, up, act), (ws[2].expert(e),), of_e[2:])[0]
        y.index_add_(0, t, out * weights[t, j, None])
    return y


def _check(
    x: Tensor, ids: Tensor, weights: Tensor, w_gate: Experts, w_up: Experts, w_down: Experts, act: str
) -> None:  # fmt: skip
    check_act(act)
    n, n_ff, n_embd = w_gate.shape
    if w_up.shape != w_gate.shape or w_down.shape != (n, n_embd, n_ff):
        raise ConfigError(
            f"moe: {w_gate.name} is {list(w_gate.shape)}, {w_up.name} {list(w_up.shape)}, {w_down.name} {list(w_down.shape)}; "
            f"expected [n, n_ff, n_embd] twice and [n, n_embd, n_ff]."
        )
    if x.dim() != 2 or x.shape[1] != n_embd:
        raise ConfigError(f"moe: x is {list(x.shape)}; {w_gate.name} expects [any, {n_embd}].")
    if ids.shape != weights.shape or ids.dim() != 2 or len(ids) != len(x) or ids.dtype != torch.int32:
        raise ConfigError(
            f"moe: ids are {ids.dtype} {list(ids.shape)}, weights {list(weights.shape)}; expected int32 [{len(x)}, k] and as many."
        )
