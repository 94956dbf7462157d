"""A request under way: its tokens, the text that may be shown, and how far it has come."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qtransformers.generate.pages import Table
from qtransformers.generate.requests import Decoder, FinishReason, Request
from qtransformers.generate.stops import StopText
from qtransformers.sampling import Logprob, Sampler


@dataclass(frozen=True)
class Timings:
    """Counts and seconds of one answer: until its first forward, until its first token, and from there to its last."""

    prompt_tokens: int
    cached_tokens: int  # of the prompt, that an earlier request had left in the cache
    tokens: int
    queue_seconds: float
    prompt_seconds: float
    seconds: float
    drafted_tokens: int = 0  # guessed by speculation
    accepted_tokens: int = 0  # and of those, how many were right

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of the prefill, without what was in the cache."""
        return (self.prompt_tokens - self.cached_tokens) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed of the decoding: the tokens after the first over their time."""
        return (self.tokens - 1) / self.seconds if self.seconds and self.tokens > 1 else 0.0


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer: whole characters, and the tokens chosen since the last piece."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None  # only on the last chunk
    logprobs: tuple[Logprob, ...] = ()  # of each token, where they were asked for


@dataclass(frozen=True)
class Completion:
    """An answer. `tokens` are without the stop token; `text` is without the stop text."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None  # None only while the stream is still running
    prompt_tokens: int
    timings: Timings
    logprobs: tuple[Logprob, ...] = ()  # of each token, where they were asked for
    prompt: tuple[int, ...] = ()  # `prompt + tokens` is what the cache holds, for save_session or to go on from


@dataclass(eq=False)
class Sequence:
    """A request and its state. The engine writes to it under its lock; `chunks` is where a reader takes from."""

    request: Request
    decoder: Decoder
    n_tokens: int  # of the vocabulary
    run_ahead: int = 64  # chunks that may lie unread before it pauses

    sampler: Sampler = field(init=False)
    tokens: list[int] = field(init=False)  # prompt and answer
    past: int = 0  # of them are in the cache
    table: Table = field(init=False)
    chunks: deque[Chunk] = field(default_factory=deque)
    texts: list[str] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: Exception | None = None  # of its own sampling, which ended it
    served: int = 0  # the step that last computed some of it
    cancelled: bool = False
    cached: int = 0
    drafted: int = 0
    accepted: int = 0
    submitted: float = 0.0
    started: float = 0.0
    first: float = 0.0
    last: float = 0.0

    def __post_init__(self) -> None:
        self.sampler = Sampler(self.request.sampling, self.n_tokens)
        self.tokens = list(self.request.prompt)
        self._ids = np.array(self.tokens, np.int32)
        self.table = Table(self.request.salt)
        self._stops = StopText(self.request.stop)
        self._n_shown = 0
        self._n_ids = len(self.tokens)

    @property
    def n_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt)

    @property
    def answer(self) -> tuple[int, ...]:
        """Tokens of the answer so far."""
        return tuple(self.tokens[self.n_prompt :])

    @property
    def history(self) -> NDArray[np.int32]:
        """`tokens` as an array, to be read only until the next one comes."""
        n = len(self.tokens)
        known = self._n_ids
        if n > len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty(max(64, n), np.int32)])
        self._ids[known:n] = self.tokens[known:]
        self._n_ids = n
        return self._ids[:n]

    @property
    def ended(self) -> bool:
        """Whether no more will come."""
        return self.finish_reason is not None or self.error is not None

    @property
    def news(self) -> bool:
        """Whether there is something to read, or an end."""
        return bool(self.chunks) or self.ended

    @property
    def decodes(self) -> bool:
        """Whether one row gives the next token; else some of the prompt, or of what was given up, is to be computed before."""
        return self.past == len(self.tokens) - 1 and self.past >= self.n_prompt

    @property
    def runs(self) -> bool:
        """Whether it wants more tokens now."""
        return not self.ended and len(self.chunks) < self.run_ahead

    @property
    def longest(self) -> int:
        """Tokens it may come to hold."""
        return self.n_prompt + self.request.max_tokens

    def accept(self, token: int, logprob: Logprob | None = None) -> None:
        """Take the next token; a chunk comes of it once there is text to show."""
        self.last = time.perf_counter()
        self.first = self.first or self.last
        if token in self.request.stop_ids:
            return self.finish("stop")
        self.tokens.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        text = self._stops.push(self.decoder.push(token))
        if self._stops.found:
            self._end("stop", text)
        elif len(self.tokens) >= self.longest:
            self.finish("length", text)
        elif text:
            self._show(text)
        return None

    def finish(self, reason: FinishReason, text: str = "") -> None:
        """End here; what was held back is shown."""
        text += self._stops.push(self.decoder.finish())
        if self._stops.found:
            return self._end("stop", text)
        return self._end(reason, text + self._stops.rest())

    @property
    def timings(self) -> Timings:
        """What it took so far."""
        start = self.started or self.submitted
        return Timings(
            prompt_tokens=self.n_prompt,
            cached_tokens=self.cached,
            tokens=len(self.tokens) - self.n_prompt,
            queue_seconds=start - self.submitted,
            prompt_seconds=max(0.0, self.first - start),
            seconds=self.last - self.first,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
        )

    @property
    def completion(self) -> Completion:
        """The answer so far."""
        return Completion(
            text="".join(self.texts),
            tokens=self.answer,
            finish_reason=self.finish_reason,
            prompt_tokens=self.n_prompt,
            timings=self.timings,
            logprobs=tuple(self.logprobs),
            prompt=self.request.prompt,
        )

    def _end(self, reason: FinishReason, text: str) -> None:
        self._show(text, reason)
        self.finish_reason = reason  # after its chunk, for who reads on another thread

    def _show(self, text: str, reason: FinishReason | None = None) -> None:
        begin, self._n_shown = self._n_shown, len(self.tokens) - self.n_prompt
        self.texts.append(text)
        tokens = tuple(self.tokens[self.n_prompt + begin :])
        self.chunks.append(Chunk(text, tokens, reason, tuple(self.logprobs[begin:])))
