"""What a sampler needs to see of logits: the largest, or the few that could be drawn."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

Tensor = torch.Tensor


def best(logits: Tensor, n_tokens: int, unused: Tensor | None = None) -> Tensor:
    """The id of each row's largest logit, the first of equals: `[R] int32` of `logits [R, vocab]`.

    Only ids below `n_tokens` count, and none that `unused [vocab] bool` has. -1 where a logit is NaN or infinite, or none
    is above minus infinity: somebody should look at the row.
    """
    ids = torch.empty(len(logits), dtype=torch.int32, device=logits.device)
    if len(logits):
        _best_kernel[len(logits),](
            logits, logits if unused is None else unused, ids, logits.stride(0), n_tokens,
            UNUSED=unused is not None, BLOCK=4096, num_warps=16,
        )  # fmt: skip
    return ids


@triton.jit
def _best_kernel(logits, unused, ids, stride, n, UNUSED: tl.constexpr, BLOCK: tl.constexpr):
    row = logits + tl.program_id(0).to(tl.int64) * stride
    lane = tl.arange(0, BLOCK)
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    where = tl.full([BLOCK], 2147483647, tl.int32)
    broken = tl.zeros([BLOCK], tl.int32)
    for start in range(0, n, BLOCK):
        at = start + lane
        v = tl.load(row + at, at < n, float("-inf"))
        if UNUSED:
            v = tl.where(tl.load(unused + at, at < n, 0) != 0, float("-inf"), v)
        broken = tl.where(v < float("inf"), broken, 1)
        where = tl.where(v > top, at, where)
        top = tl.maximum(top, v)
    most = tl.max(top, 0)
    first = tl.min(tl.where(top == most, where, 2147483647), 0)
    fine = (tl.sum(broken, 0) == 0) & (most > float("-inf"))
    tl.store(ids + tl.program_id(0), tl.where(fine, first, -1))


def largest(logits: Tensor, k: int, n_tokens: int, unused: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Ids and values `[R, k]` of each row's largest logits, largest first; see `best`."""
    values, ids = torch.topk(_possible(logits, n_tokens, unused), min(k, n_tokens), -1)
    return ids, values


def totals(logits: Tensor, n_tokens: int, unused: Tensor | None = None) -> Tensor:
    """The logarithm `[R]` of the sum of exponentials of each row; see `best`."""
    return torch.logsumexp(_possible(logits, n_tokens, unused), -1)


def _possible(logits: Tensor, n_tokens: int, unused: Tensor | None) -> Tensor:
    kept = logits[:, :n_tokens]
    return kept if unused is None else kept.masked_fill(unused[:n_tokens], float("-inf"))
