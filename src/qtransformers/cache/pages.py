"""Paged key-value storage: 256-token pages, taken and given back whole."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.cache.batch import Batch
from qtransformers.cache.states import States
from qtransformers.checks import shown
from qtransformers.errors import ConfigError, InsufficientMemoryError, QTransformersError
from qtransformers.kernels.kv import CODECS, PAGE_TOKENS, head_bytes, why_not


@dataclass(frozen=True, eq=False)
class PagedCache:
    """Keys and values of all layers. Memory is claimed by the system only when a page is first written."""

    pages: NDArray[np.uint8]  # [n_layers, n_pages, n_kv_heads, head_bytes], see kernels.kv
    codec: str
    free: list[int]  # page numbers nobody holds
    states: States = field(default_factory=lambda: States({}))  # of recurrent layers

    @classmethod
    def allocate(
        cls,
        n_layers: int,
        n_kv_heads: int,
        head_dim_k: int,
        head_dim_v: int,
        n_tokens: int,
        codec: str = "f16",
        states: Mapping[str, tuple[int, ...]] | None = None,
    ) -> PagedCache:
        """Room for `n_tokens` tokens, rounded up to whole pages; `states` are shapes of what recurrent layers remember.

        ConfigError for an unknown codec, or one that cannot hold heads of this size; InsufficientMemoryError.
        """
        check_codec(codec, head_dim_k, head_dim_v)
        n_pages = -(-n_tokens // PAGE_TOKENS)
        shape = n_layers, n_pages, n_kv_heads, head_bytes(codec, head_dim_k, head_dim_v)
        try:
            pages = _zeros(prod(shape)).reshape(shape)
        except (MemoryError, OSError, OverflowError, ValueError):  # all but the first: more bytes than can be addressed
            raise InsufficientMemoryError(
                f"keys and values in {codec} of {n_tokens:,} tokens take {prod(shape) / 2**30:,.1f} GiB, "
                "which the system refuses. Lower context_length, or take a smaller cache type."
            ) from None
        return cls(pages, codec, list(range(n_pages))[::-1], States(states or {}))

    @classmethod
    def for_batch(cls, batch: Batch, n_kv_heads: int, head_dim_k: int, head_dim_v: int) -> tuple[PagedCache, Batch]:
        """One layer with room for the sequences of a batch alone, and the batch placed in it from position 0."""
        lengths = np.diff(batch.starts)
        used = -(-lengths // PAGE_TOKENS)
        cache = cls.allocate(1, n_kv_heads, head_dim_k, head_dim_v, int(used.sum()) * PAGE_TOKENS, "f32")
        tables = np.full((len(used), used.max(initial=0)), -1, np.int32)
        for row, n in zip(tables, used, strict=True):
            row[:n] = cache.take(int(n))
        positions = np.arange(len(batch.positions), dtype=np.int32) - np.repeat(batch.starts[:-1], lengths)
        return cache, replace(batch, positions=positions, page_tables=tables)

    @property
    def nbytes(self) -> int:
        """Bytes when every page is in use."""
        return self.pages.nbytes

    @property
    def n_pages(self) -> int:
        """Pages, free and held."""
        return self.pages.shape[1]

    def take(self, n: int) -> list[int]:
        """Claim `n` pages; InsufficientMemoryError when fewer are free."""
        if n > len(self.free):
            raise InsufficientMemoryError(
                f"the cache has {len(self.free)} free pages of {PAGE_TOKENS} tokens, {n} are needed. Raise cache_tokens, or end other requests."
            )
        return [self.free.pop() for _ in range(n)]

    def copy(self, source: int, target: int) -> None:
        """Make page `target` hold what page `source` holds, of all layers."""
        self.pages[:, target] = self.pages[:, source]

    def give_back(self, pages: list[int]) -> None:
        """Return pages taken before; a page that nobody holds is a mistake of the caller."""
        for i, page in enumerate(pages):
            if not 0 <= page < self.n_pages or page in self.free or page in pages[:i]:
                raise QTransformersError(f"page {page} is given back, but nobody holds it.")
        self.states.forget(pages)
        self.free.extend(pages)


def check_codec(codec: Any, head_dim_k: int = 0, head_dim_v: int = 0) -> str:
    """`codec` if there is such a cache type and heads of these sizes fit; ConfigError listing what there is."""
    if not isinstance(codec, str) or codec not in CODECS:
        raise ConfigError(f"cache={shown(codec)}; expected one of {', '.join(CODECS)}.")
    reason = why_not(codec, head_dim_k, head_dim_v)
    if reason:
        raise ConfigError(f"cache={shown(codec)}: {reason}. Take f16.")
    return codec


def _zeros(n: int) -> NDArray[np.uint8]:
    """Bytes on a page boundary, in huge pages where the system has them: kernels read whole cache lines."""
    if n < mmap.PAGESIZE:
        return np.zeros(n, np.uint8)
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.frombuffer(mmap.mmap(-1, n), np.uint8)
    memory = mmap.mmap(
        -1, n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )  # shared memory, the default, gets no huge pages
    memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)
