"""Bytes that a model takes while it runs, from shapes alone: cache, temporaries, the program itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qtransformers.cache.pages import CODECS, PAGE_TOKENS

PROGRAM_BYTES = 52 << 20  # the interpreter with NumPy, the extension and this library; benchmarks/memory.py
TOKEN_BYTES = 240  # of a tokenizer, for each token of the vocabulary; the same script
PAGE_BYTES, PAGE_ENTRY = 4096, 8  # memory of the system for each page that a process maps


@dataclass(frozen=True)
class Block:
    """Matrices that read the same input in turn, as one sublayer does: `[rows, columns]` of each."""

    role: str
    layer: int | None
    matrices: tuple[tuple[int, int], ...]


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
        return rounded * self.n_layers * self.n_kv_heads * (self.head_dim_k + self.head_dim_v) * CODECS[codec].itemsize


def cache_bytes(hparams: Mapping[str, int], context_length: int, codec: str) -> int:
    """Keys and values of `context_length` tokens, in whole pages."""
    return CacheShape.of(hparams).bytes(context_length, codec)


def temporaries(width: int, vocab: int, blocks: Iterable[Block], rows: int, logits_rows: int) -> int:
    """Peak of F32 temporaries in a forward pass of `rows` tokens.

    In a sublayer: the residual stream and its norm, what the sublayer's matrices put out, and what the last one takes in.
    At the end: the last norm and the logits.
    """
    sums: dict[tuple[str, int | None], list[int]] = {}
    for block in blocks:
        entry = sums.setdefault((block.role, block.layer), [0, 0])
        entry[0] += sum(out for out, _ in block.matrices)
        entry[1] = max(entry[1], *(n_in for _, n_in in block.matrices))
    sublayer = 2 * width + max((outputs + widest for outputs, widest in sums.values()), default=0)
    return 4 * max(rows * sublayer, logits_rows * (2 * width + vocab))


def program_bytes(vocab: int) -> int:
    """The interpreter, the library, and a tokenizer of `vocab` tokens."""
    return PROGRAM_BYTES + vocab * TOKEN_BYTES


def page_tables(mapped: int) -> int:
    """What the system needs to map so many bytes in small pages; in huge pages it is next to nothing."""
    return mapped // PAGE_BYTES * PAGE_ENTRY
