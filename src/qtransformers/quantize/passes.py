"""Texts through a model, many tokens at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.cache import PAGE_TOKENS, Batch, PagedCache
from qtransformers.errors import ConfigError

if TYPE_CHECKING:
    from qtransformers.load import Loaded
    from qtransformers.load.tokenizer import Tokenizer

F32 = NDArray[np.float32]
Ints = NDArray[np.int32]
CHUNK = 512  # tokens


def text_chunks(
    tokenizer: Tokenizer, text: str, size: int = CHUNK, encode_special: bool = False, least: int = 2
) -> Ints:
    """The tokens of a text in disjoint chunks `[n, size]`, the rest left out, as llama-perplexity cuts them.

    Each begins with BOS in place of its first token where the vocabulary asks for one. ConfigError for fewer than `least`.
    """
    ids = tokenizer.encode(text, encode_special=encode_special)
    n = len(ids) // size
    if n < least:
        raise ConfigError(f"the text has {len(ids):,} tokens; expected at least {least * size:,}. Give a longer one.")
    rows = np.array(ids[: n * size], np.int32).reshape(n, size)
    if tokenizer.bos_id in tokenizer.before:
        rows[:, 0] = tokenizer.bos_id
    return rows


def side_by_side(rows: Ints, outputs: NDArray[np.integer] | slice = slice(None)) -> Batch:
    """A batch of texts `[S, n]`, each from position 0 in pages of its own, with logits of the tokens at `outputs`."""
    n_rows, n = rows.shape
    pages = -(-n // PAGE_TOKENS)
    wanted = np.arange(n_rows * n, dtype=np.int32).reshape(n_rows, n)[:, outputs]
    return Batch(
        tokens=np.ascontiguousarray(rows, np.int32).reshape(-1),
        positions=np.tile(np.arange(n, dtype=np.int32), n_rows),
        starts=np.arange(0, (n_rows + 1) * n, n, dtype=np.int32),
        page_tables=np.arange(n_rows * pages, dtype=np.int32).reshape(n_rows, pages),
        output_rows=np.ascontiguousarray(wanted.reshape(-1)),
    )


def new_cache(model: Loaded, n_rows: int, n: int) -> PagedCache:
    """Room for a batch of `side_by_side`."""
    return model.new_cache(n_rows * -(-n // PAGE_TOKENS) * PAGE_TOKENS)


def one_layer_cache(model: Loaded, n_rows: int, n: int) -> PagedCache:
    """The same, all layers in one place: for forwards that never look back at what an earlier one stored."""
    own = new_cache(model, n_rows, n)
    one = PagedCache.allocate(
        1, model.plan.cache_shape.n_kv_heads, model.plan.cache_shape.head_dim_k, model.plan.cache_shape.head_dim_v,
        own.n_pages * PAGE_TOKENS if own.n_pages else 0, own.codec,
    )  # fmt: skip
    return replace(own, pages=[one.pages[0]] * len(own.pages))


def logits(model: Loaded, batch: Batch, cache: PagedCache, weights: Any = None) -> F32:
    """What the model says at the batch's output rows, `[R, vocab_size]`."""
    found: F32 = model.spec.forward(model.weights if weights is None else weights, model.hparams, batch, cache)
    return found


def slices(n: int, step: int) -> Sequence[slice]:
    """0..n in pieces."""
    return [slice(i, min(i + step, n)) for i in range(0, n, step)]


def calibration_text() -> str:
    """The small multilingual text that comes with the package, for models whose use is not known."""
    from importlib.resources import files

    return (files("qtransformers") / "data" / "calibration.txt").read_text(encoding="utf-8")
