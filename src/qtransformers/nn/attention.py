"""Attention over the paged cache, or within a batch."""

from __future__ import annotations

from typing import Any

from qtransformers.cache import Batch, PagedCache
from qtransformers.kernels import kernels_for


def attention(
    q: Any, k: Any, v: Any, cache: PagedCache | None, layer: int, batch: Batch, scale: float, window: int = 0,
    softcap: float = 0.0, sinks: Any = None, causal: bool = True,
) -> Any:  # fmt: skip
    """Store `k [T, n_kv_heads, D], v [T, n_kv_heads, D_v]` in the cache, then attend with `q [T, n_heads, D]`: `[T, n_heads * D_v]`.

    Each query sees its own sequence up to its own position; with `window` > 0 only the last `window` positions, its own
    among them. `causal=False` (encoders) lets it see the whole sequence as far as it is stored, or `window // 2`
    positions on either side. `cache=None` attends over the keys and values of the batch alone and stores nothing.
    Scores are `q . k * scale`, then `softcap * tanh(score / softcap)` where a softcap is given (arXiv:2408.00118);
    `sinks [n_heads]` are logits that join each row's softmax without a value (gpt-oss).
    """
    if cache is None:
        cache, batch = PagedCache.for_batch(batch, k.shape[1], k.shape[2], v.shape[2])
        layer = 0
    return kernels_for(q).attention(
        q, k, v, cache.pages[layer - cache.first_layer], cache.codec, batch.positions, batch.starts, batch.page_tables,
        scale, window, softcap, sinks, causal, batch.rows,
    )  # fmt: skip
