"""The answer as it comes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock
from types import TracebackType

from qtransformers.generate.engine import Engine
from qtransformers.generate.requests import FinishReason, Sequence
from qtransformers.sampling import Sampler


@dataclass(frozen=True)
class Timings:
    """Seconds spent on the prompt (until the first token was chosen) and on the tokens after it."""

    prompt_tokens: int
    prompt_seconds: float
    tokens: int
    seconds: float

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of the prefill."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed of the decoding: the tokens after the first over their time."""
        return (self.tokens - 1) / self.seconds if self.seconds and self.tokens > 1 else 0.0


@dataclass(frozen=True)
class Completion:
    """An answer. `tokens` are without the stop token; `text` is without the stop text."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None  # None only while the stream is still running
    prompt_tokens: int
    timings: Timings


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer: whole characters, and the tokens chosen since the last piece."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None  # only on the last chunk


class Stream(Iterator[Chunk]):
    """Chunks of an answer. Dropping it, `close()`, an error or the end of a `with` block frees its pages."""

    def __init__(self, engine: Engine, sequence: Sequence) -> None:
        self._engine = engine
        self._sequence = sequence
        sequence.sampler = Sampler(sequence.request.sampling, engine.n_tokens)
        self._lock = Lock()  # one thread computes; others may cancel and close
        self._cancelled = False
        self._closing = False
        self._ended = False
        self._texts: list[str] = []
        self._n_shown = 0
        self._start = self._first = self._last = 0.0

    def __next__(self) -> Chunk:
        try:
            with self._lock:
                if self._ended:
                    raise StopIteration
                return self._advance()
        except BaseException:
            self._closing = True
            raise
        finally:
            if self._closing:  # asked for while the lock was held
                self.close()

    def _advance(self) -> Chunk:
        s = self._sequence
        self._start = self._start or time.perf_counter()
        text = ""
        while not text and s.finish_reason is None:
            if self._cancelled:
                text = s.finish("cancelled")
                break
            text = self._engine.step([s])[0]
            self._last = time.perf_counter()
            if len(s.tokens) <= 1:
                self._first = self._last
        self._texts.append(text)
        chunk = Chunk(text, tuple(s.tokens[self._n_shown :]), s.finish_reason)
        self._n_shown = len(s.tokens)
        if s.finish_reason is not None:
            self._end()
        return chunk

    def _end(self) -> None:
        self._ended = True
        self._engine.release(self._sequence.pages)

    def cancel(self) -> None:
        """End the answer after the token under way; the next chunk is the last, with `finish_reason` "cancelled"."""
        self._cancelled = True

    def close(self) -> None:
        """End without another chunk and free the pages; where a thread computes right now, it does so when it is done."""
        self._closing = True
        if self._lock.acquire(blocking=False):
            try:
                if self._sequence.finish_reason is None:
                    self._texts.append(self._sequence.finish("cancelled"))
                self._end()
            finally:
                self._lock.release()

    @property
    def prompt_progress(self) -> tuple[int, int]:
        """Tokens of the prompt computed so far, and all of them."""
        n = len(self._sequence.request.prompt)
        return min(self._sequence.past, n), n

    @property
    def completion(self) -> Completion:
        """The answer so far; all of it once the stream has ended."""
        s = self._sequence
        n_prompt = len(s.request.prompt)
        timings = Timings(n_prompt, self._first - self._start, len(s.tokens), self._last - self._first)
        return Completion("".join(self._texts), tuple(s.tokens), s.finish_reason, n_prompt, timings)

    def read(self) -> Completion:
        """Run to the end."""
        with self:
            for _ in self:
                pass
        return self.completion

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
