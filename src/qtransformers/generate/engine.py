"""Runs forwards for sequences: prefill in chunks, decode, any mix of them in one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.cache import PAGE_TOKENS, Batch, PagedCache
from qtransformers.errors import ConfigError
from qtransformers.generate.requests import Sequence

Forward = Callable[[Batch, PagedCache], NDArray[np.float32]]


class Engine:
    """One model's forward and its cache. Thread-safe: one forward runs at a time."""

    def __init__(
        self,
        forward: Forward,
        cache: PagedCache,
        *,
        n_tokens: int,
        context_length: int,
        prefill_chunk: int,
        logits_rows: int | None = None,
        unused_ids: Iterable[int] = (),
        pool: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.n_tokens = n_tokens  # ids from here on pad the vocabulary and are never sampled, nor are `unused_ids`
        self.context_length = context_length
        self.prefill_chunk = prefill_chunk
        self._logits_chunk = min(prefill_chunk, logits_rows or prefill_chunk)
        self._unused = np.array(sorted(i for i in unused_ids if i < n_tokens), np.int64)
        self._forward: Forward | None = forward
        self._cache: PagedCache | None = cache
        self._pool: AbstractContextManager[Any] = pool if pool is not None else nullcontext()
        self._lock = Lock()

    def step(self, sequences: Seq[Sequence]) -> list[str]:
        """One forward for all of `sequences`: the next chunk of a prompt, or the next token; the text that became ready."""
        with self._lock:
            forward, cache = self._open()
            parts = [self._rows(sequence, cache) for sequence in sequences]
            with self._pool:
                logits = forward(Batch.join(parts), cache)
        texts = []
        row = 0
        for sequence, part in zip(sequences, parts, strict=True):
            sequence.past += len(part.tokens)
            if not len(part.output_rows):
                texts.append("")
                continue
            candidates = logits[row, : self.n_tokens]
            if len(self._unused):
                candidates[self._unused] = -np.inf
            with self._pool:
                token = sequence.sampler(
                    candidates, [*sequence.request.prompt, *sequence.tokens], len(sequence.request.prompt)
                )
            texts.append(sequence.accept(token))
            row += 1
        return texts

    def logits(self, tokens: Seq[int]) -> NDArray[np.float32]:
        """Logits of every token, `[T, vocab_size]`, at most `logits_rows` of them in one forward."""
        parts = []
        pages: list[int] = []
        try:
            for past in range(0, len(tokens), self._logits_chunk):
                chunk = tokens[past : past + self._logits_chunk]
                with self._lock:
                    forward, cache = self._open()
                    self._reserve(pages, past + len(chunk), cache)
                    with self._pool:
                        parts.append(forward(Batch.single(chunk, past, pages, outputs=None), cache))
        finally:
            self.release(pages)
        return np.concatenate(parts)

    def hidden(self, batch: Batch) -> NDArray[np.float32]:
        """What an encoder makes of the whole texts in `batch`: hidden states `[T, n_embd]`."""
        with self._lock:
            forward, cache = self._open()
            with self._pool:
                return forward(batch, cache)

    def release(self, pages: list[int]) -> None:
        """Give pages back and forget them. Takes no lock: it also runs when a stream is dropped amid a forward."""
        cache = self._cache
        if cache is not None and pages:
            cache.give_back(pages)
        pages.clear()

    def close(self) -> None:
        """Let weights, cache and threads go, after the forward that runs now. Later calls raise ConfigError."""
        with self._lock:
            self._forward = self._cache = None
            self._pool = nullcontext()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._forward is None

    @property
    def free_pages(self) -> int:
        """Pages of the cache that no request holds."""
        return len(self._open()[1].free)

    def _open(self) -> tuple[Forward, PagedCache]:
        if self._forward is None or self._cache is None:
            raise ConfigError("the model is closed. Load it again to use it.")
        return self._forward, self._cache

    def _rows(self, sequence: Sequence, cache: PagedCache) -> Batch:
        """The next rows of a sequence; its logits only where the last of its tokens is among them."""
        tokens = sequence.pending(self.prefill_chunk)
        end = sequence.past + len(tokens)
        self._reserve(sequence.pages, end, cache)
        return Batch.single(tokens, sequence.past, sequence.pages, outputs=int(end == sequence.length))

    def _reserve(self, pages: list[int], n_tokens: int, cache: PagedCache) -> None:
        missing = -(-n_tokens // PAGE_TOKENS) - len(pages)
        if missing > 0:
            pages += cache.take(missing)
