"""Queries, keys and values of a layer, by head."""

from __future__ import annotations

from typing import Any

from qtransformers.nn import linear, linears, split


def heads(x: Any, w: Any, h: Any) -> tuple[Any, Any, Any]:
    """`q [T, n_heads, head_dim]`, `k [T, n_kv_heads, head_dim]`, `v [T, n_kv_heads, head_dim_v]` of `x [T, n_embd]`."""
    q, k, v = linears(x, (w.attn_q, w.attn_k, w.attn_v), (w.attn_q_bias, w.attn_k_bias, w.attn_v_bias))
    return by_head(q, h.head_dim), by_head(k, h.head_dim), by_head(v, h.head_dim_v)


def fused_heads(x: Any, w: Any, h: Any) -> tuple[Any, Any, Any]:
    """As `heads`, of one weight with the rows of q, k and v one after the other."""
    y = linear(x, w.attn_qkv, w.attn_qkv_bias)
    n_q, n_k = h.n_heads * h.head_dim, h.n_kv_heads * h.head_dim
    q, k, v = split(y, (n_q, n_q + n_k))
    return by_head(q, h.head_dim), by_head(k, h.head_dim), by_head(v, h.head_dim_v)


def by_head(x: Any, head_dim: int) -> Any:
    """`[T, n * head_dim]` as `[T, n, head_dim]`."""
    return x.reshape(len(x), x.shape[1] // head_dim, head_dim)


def halves(x: Any) -> tuple[Any, Any]:
    """The first and second half of each row."""
    first, second = split(x, x.shape[1] // 2)
    return first, second
