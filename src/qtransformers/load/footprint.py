"""Bytes that a model takes while it runs, from shapes alone: cache, temporaries, the program itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qtransformers.cache import PAGE_TOKENS, bytes_per_token
from qtransformers.kernels.staging import WORKSPACES, float_bytes, product_bytes
from qtransformers.types import QuantType

PROGRAM_BYTES = 48 << 20  # the interpreter with NumPy, the extension and this library; benchmarks/memory.py
# Of a tokenizer: a token, a merge of pairs; a token where there are no merges.
TOKEN_BYTES, MERGE_BYTES, PLAIN_BYTES = 360, 60, 240
KEPT_BYTES = 64 << 20  # of output arrays that csrc/spare.h keeps at most for the next of their size
WAVE_BYTES = 32 << 20  # of activations of experts at a time, csrc/experts.cpp
GATE_ROWS = 48  # of gate and up that a thread holds at a time, csrc/isa/gemm.h
SAMPLER_ROWS = 4  # copies of a row of logits
PAGE_BYTES, PAGE_ENTRY = 4096, 8  # memory of the system for each page that a process maps


@dataclass(frozen=True)
class Product:
    """A matrix `[out, columns]` that tokens are multiplied with; of stacked experts each with `used` of them, of `heads` each with all."""

    role: str
    layer: int | None
    type: QuantType
    out: int
    columns: int
    used: int = 0  # experts; 0: one matrix for all
    heads: int = 0  # matrices, each for a head of its own


@dataclass(frozen=True)
class CacheShape:
    """Numbers that one token leaves in the cache of one layer, and how many layers there are."""

    n_layers: int
    n_kv_heads: int
    head_dim_k: int
    head_dim_v: int

    @classmethod
    def of(cls, hparams: Mapping[str, Any]) -> CacheShape:
        """From the hyperparameters of an architecture."""
        return cls(hparams["n_layers"], hparams["n_kv_heads"], hparams["head_dim"], hparams["head_dim_v"])

    def bytes(self, tokens: int, codec: str) -> int:
        """Of all layers for `tokens` tokens, in whole pages."""
        rounded = -(-tokens // PAGE_TOKENS) * PAGE_TOKENS
        per_layer = bytes_per_token(codec, self.n_kv_heads, self.head_dim_k, self.head_dim_v)
        return rounded * self.n_layers * per_layer


def cache_bytes(hparams: Mapping[str, int], context_length: int, codec: str) -> int:
    """Keys and values of `context_length` tokens, in whole pages."""
    return CacheShape.of(hparams).bytes(context_length, codec)


def temporaries(
    width: int, vocab: int, products: Iterable[Product], rows: int, logits_rows: int, accuracy: str, threads: int
) -> int:
    """Peak of what a forward pass of `rows` tokens takes beside weights and cache.

    Arrays of all sublayers by size, since memory of one size is kept for the next; x as integer kernels want it; a tile of y
    and a gate's two halves for each thread; logits, and the sampler's copies of a row.
    """
    from qtransformers.kernels.cpu import scratch_bytes

    groups: dict[tuple[str, int | None], list[Product]] = {}
    shared, tile = 0, 0
    for p in products:
        groups.setdefault((p.role, p.layer), []).append(p)
        packed, own = scratch_bytes(p.type, rows, p.columns, accuracy)
        shared, tile = max(shared, packed * max(1, p.heads)), max(tile, own)
    most: Counter[int] = Counter()
    live = 0
    for (role, _), members in groups.items():
        arrays = Counter({4 * rows * n: times for n, times in _arrays(role, members, width).items()})
        if role == "experts":
            arrays[min(WAVE_BYTES, 4 * rows * members[0].used * (2 * width + members[-1].columns))] += 1
        live = max(live, sum(n * times for n, times in arrays.items()))
        most |= arrays
    kept = sum(n * times for n, times in most.items())
    gate = 2 * 4 * rows * GATE_ROWS
    end = 4 * (logits_rows + SAMPLER_ROWS) * vocab
    return min(kept, live + KEPT_BYTES) + shared + threads * (tile + gate) + end


def device_temporaries(
    width: int, vocab: int, products: Iterable[Product], rows: int, logits_rows: int, accuracy: str
) -> int:
    """Peak of what a forward pass of `rows` tokens takes on a GPU beside weights and cache.

    Arrays of the largest sublayer, and as many that wait for their next use as on the CPU; what its largest product takes; logits twice, as
    captured steps keep them; workspaces of the vendor's library.
    """
    groups: dict[tuple[str, int | None], list[Product]] = {}
    for p in products:
        groups.setdefault((p.role, p.layer), []).append(p)
    live = 0
    for (role, _), members in groups.items():
        arrays = sum(4 * rows * n * times for n, times in _arrays(role, members, width).items())
        if role == "experts":  # what each of a token's experts makes of it: gate, up and both joined, and its output
            arrays += 4 * rows * sum(p.used * p.out for p in (members[0], *members))
            most = rows * max(p.used * p.columns for p in members) * float_bytes(accuracy)
        else:
            most = max(product_bytes(p.out, p.columns, rows, accuracy) for p in members)
        live = max(live, arrays + most)
    return live + KEPT_BYTES + 2 * 4 * (logits_rows + SAMPLER_ROWS) * vocab + WORKSPACES


def _arrays(role: str, members: list[Product], width: int) -> Counter[int]:
    """How many arrays of so many columns a sublayer has at once: the residual stream, its norm, what matrices put out."""
    *others, last = [p for p in members if not p.heads] or members
    arrays = Counter({width: 2})
    arrays[last.out] += 1
    if role == "experts":
        return arrays
    if role == "attn":
        arrays.update([last.columns, *(p.out for p in others)])
        if others:
            arrays[min(p.out for p in others)] += 1  # keys before and after their rotation
        for p in (
            p for p in members if p.heads
        ):  # queries taken to a latent vector, and what comes back: each with a copy by head
            arrays |= Counter({p.heads * max(p.out, p.columns): 3, p.heads * min(p.out, p.columns): 2})
            arrays[max((o.out for o in others), default=last.out)] += 1  # parts of queries, with and without positions
    elif len(others) == 1:
        arrays.update([others[0].out, last.columns])
    else:  # a gate and what it lets through are one call
        arrays[last.columns] += 1
    return arrays


def program_bytes(tokens: int, merges: int = 0) -> int:
    """The interpreter, the library, and a tokenizer."""
    return PROGRAM_BYTES + tokens * (TOKEN_BYTES if merges else PLAIN_BYTES) + merges * MERGE_BYTES


def page_tables(mapped: int) -> int:
    """What the system needs to map so many bytes in small pages; in huge pages it is next to nothing."""
    return mapped // PAGE_BYTES * PAGE_ENTRY
