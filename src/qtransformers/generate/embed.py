"""Texts to vectors: how the hidden states of an encoder become one vector a text, and which texts share a forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.cache import Batch
from qtransformers.checks import shown
from qtransformers.errors import ConfigError, ContextLengthError
from qtransformers.generate.engine import Engine
from qtransformers.generate.requests import prompt_ids

POOLINGS = {"mean": 1, "cls": 2, "last": 3}  # by the number of GGUF's `pooling_type`; 0 says nothing


def embed(
    engine: Engine, tokenizer: Any, texts: Sequence[str | Sequence[int]], pooling: str, truncate: bool
) -> list[NDArray[np.float32]]:
    """Vectors `[k, n_embd]` of the texts, batch by batch; all texts are checked before the first is computed."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise ConfigError(f"texts={shown(texts)}; expected a list of texts, [text] for one.")
    ids = []
    for i, text in enumerate(texts):
        found = tokenizer.encode(text) if isinstance(text, str) else prompt_ids(text, engine.n_tokens, f"texts[{i}]")
        ids.append(fit_context(found, engine.context_length, tokenizer.after, truncate, f"texts[{i}]"))
    return [pool(engine.hidden(batch), batch.starts, pooling) for batch in batches(ids, engine.prefill_chunk)]


def check_pooling(wanted: str | None, of_file: int, file: str) -> str:
    """The pooling to use: as wanted, else as the file says; ConfigError where neither says."""
    if wanted is None and of_file:
        return next(name for name, number in POOLINGS.items() if number == of_file)
    if wanted is None:
        raise ConfigError(
            f"{file} does not say how the states of a text's tokens become one vector. Pass pooling, {_names()}, as the model's authors have it."
        )
    if not isinstance(wanted, str) or wanted not in POOLINGS:
        raise ConfigError(f"pooling={shown(wanted)}; expected {_names()}.")
    return wanted


def pool(hidden: NDArray[np.float32], starts: NDArray[np.int32], pooling: str) -> NDArray[np.float32]:
    """One vector a text `[S, n_embd]` from the states of its tokens, rows `starts[s]..starts[s + 1]` of `hidden [T, n_embd]`.

    `mean` of all tokens, `cls` the first, `last` the last; as sentence-transformers has them (arXiv:1908.10084).
    """
    if pooling == "cls":
        return hidden[starts[:-1]]
    if pooling == "last":
        return hidden[starts[1:] - 1]
    sums = np.add.reduceat(hidden.astype(np.float64), starts[:-1], axis=0)
    return (sums / np.diff(starts)[:, None]).astype(np.float32)


def normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors `[n, n_embd]` of length 1; one that is all zeros stays so."""
    lengths = np.sqrt((vectors.astype(np.float64) ** 2).sum(-1, keepdims=True))
    return (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)


def fit_context(
    ids: Sequence[int], context_length: int, after: Sequence[int], truncate: bool, where: str
) -> tuple[int, ...]:
    """The ids of a text within the context: cut before the tokens that end every text if `truncate`, else ConfigError."""
    if not ids:
        raise ConfigError(f"{where} has no tokens; expected at least one.")
    if len(ids) <= context_length:
        return tuple(ids)
    if not truncate:
        raise ContextLengthError(
            f"{where} has {len(ids):,} tokens; the context is {context_length:,}. Split it, or pass truncate=True to leave out its end."
        )
    end = tuple(after) if tuple(ids[len(ids) - len(after) :]) == tuple(after) and len(after) < context_length else ()
    return (*ids[: context_length - len(end)], *end)


def batches(texts: Sequence[Sequence[int]], n_tokens: int) -> Iterator[Batch]:
    """Texts in their order, as many in a batch as have `n_tokens` tokens together; a longer one by itself."""
    group: list[Sequence[int]] = []
    for ids in texts:
        if group and sum(map(len, group)) + len(ids) > n_tokens:
            yield _together(group)
            group = []
        group.append(ids)
    if group:
        yield _together(group)


def _together(texts: Sequence[Sequence[int]]) -> Batch:
    return Batch.join([Batch.single(ids, 0, [], outputs=None) for ids in texts])


def _names() -> str:
    return ", ".join(map(repr, POOLINGS))
