"""Paged key-value storage: 256-token pages, taken and given back whole."""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Mapping, Sequence
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
from qtransformers.kernels.kv_rows import from_cpu_layout, to_cpu_layout


@dataclass(frozen=True, eq=False)
class PagedCache:
    """Keys and values of all layers. Main memory is claimed by the system only when a page is first written."""

    pages: Sequence[Any]  # of each layer [n_pages, n_kv_heads, head_bytes] bytes where its attention is, see kernels.kv
    codec: str
    free: list[int]  # page numbers nobody holds
    states: States = field(default_factory=lambda: States({}))  # of recurrent layers
    head_dims: tuple[int, int] = (0, 0)  # of keys, of values
    first_layer: int = 0  # of those that keep keys and values: a stage of a pipeline has only its own

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
        places: Sequence[str] = (),
        states_place: str = "cpu",
    ) -> PagedCache:
        """Room for `n_tokens` tokens, rounded up to whole pages; `states` are shapes of what recurrent layers remember.

        `places` are the devices of the layers, `cpu` or `cuda:0`; none: all the CPU. `states_place` is that of states.
        ConfigError for an unknown codec, or one that cannot hold heads of this size; InsufficientMemoryError.
        """
        check_codec(codec, head_dim_k, head_dim_v)
        n_pages = -(-n_tokens // PAGE_TOKENS)
        layers = tuple(places) or ("cpu",) * n_layers
        stores: dict[str, Any] = {}
        for place, n in Counter(layers).items():
            shape = n, n_pages, n_kv_heads, head_bytes(codec, head_dim_k, head_dim_v)
            try:
                stores[place] = _zeros(prod(shape), place).reshape(shape)
            except (
                MemoryError,
                OSError,
                OverflowError,
                ValueError,
            ):  # all but the first: more bytes than can be addressed
                raise InsufficientMemoryError(
                    f"keys and values in {codec} of {n_tokens:,} tokens take {prod(shape) / 2**30:,.1f} GiB, "
                    f"which {'the system' if place == 'cpu' else place} refuses. Lower context_length, or take a smaller cache type."
                ) from None
        rows = {place: iter(store) for place, store in stores.items()}
        pages = stores["cpu"] if set(stores) == {"cpu"} else tuple(next(rows[place]) for place in layers)
        return cls(
            pages, codec, list(range(n_pages))[::-1], States(states or {}, states_place), (head_dim_k, head_dim_v)
        )

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
        return sum(layer.nbytes for layer in self.pages)

    @property
    def n_pages(self) -> int:
        """Pages, free and held."""
        return self.pages[0].shape[0] if len(self.pages) else 0

    def take(self, n: int) -> list[int]:
        """Claim `n` pages; InsufficientMemoryError when fewer are free."""
        if n > len(self.free):
            raise InsufficientMemoryError(
                f"the cache has {len(self.free)} free pages of {PAGE_TOKENS} tokens, {n} are needed. Raise cache_tokens, or end other requests."
            )
        return [self.free.pop() for _ in range(n)]

    def copy(self, source: int, target: int) -> None:
        """Make page `target` hold what page `source` holds, of all layers."""
        for layer in self.pages:
            layer[target] = layer[source]

    @property
    def page_shape(self) -> tuple[int, int, int]:
        """Layers, heads, and bytes of each in a page."""
        return len(self.pages), *self.pages[0].shape[1:]

    def read(self, page: int) -> NDArray[np.uint8]:
        """What a page holds, as the CPU's kernels lay it: `page_shape` bytes."""
        return np.stack([self._as_cpu(layer[page]) for layer in self.pages])

    def write(self, page: int, held: NDArray[np.uint8]) -> None:
        """Let a page hold what `read` gave."""
        for layer, part in zip(self.pages, held, strict=True):
            if isinstance(layer, np.ndarray):
                layer[page] = part
            else:
                layer[page] = layer.new_tensor(from_cpu_layout(part, self.codec, *self.head_dims))

    def _as_cpu(self, part: Any) -> NDArray[np.uint8]:
        return part if isinstance(part, np.ndarray) else to_cpu_layout(part.cpu().numpy(), self.codec, *self.head_dims)

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


def _zeros(n: int, place: str) -> Any:
    """Bytes on a device. In main memory on a page boundary, in huge pages where the system has them: kernels read whole cache lines."""
    if place != "cpu":
        from qtransformers.kernels.triton.device import zeros

        return zeros(n, place)
    if n < mmap.PAGESIZE:
        return np.zeros(n, np.uint8)
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.frombuffer(mmap.mmap(-1, n), np.uint8)
    memory = mmap.mmap(
        -1, n, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )  # shared memory, the default, gets no huge pages
    memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)
