"""Attention over the paged cache."""

from __future__ import annotations

from typing import Any

from qtransformers.cache import Batch, PagedCache
from qtransformers.kernels import kernels_for


def attention(
    q: Any, k: Any, v: Any, cache: PagedCache, layer: int, batch: Batch, scale: float, window: int = 0
) -> Any:
    """Store `k, v [T, n_kv_heads, D]` in the cache, then attend causally with `q [T, n_heads, D]`: `[T, n_heads * D_v]`.

    Each query sees its own sequence up to its own position; with `window` > 0 only the last `window` positions.
    """
    return kernels_for(q).attention(
        q, k, v, cache.k[layer], cache.v[layer], batch.positions, batch.starts, batch.page_tables, scale, window
    )
