"""A request under way: its tokens, the text that may be shown, and how far it has come."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qtransformers.constrain.matcher import Matcher
from qtransformers.generate.pages import Table
from qtransformers.generate.requests import FinishReason, Request
from qtransformers.generate.text import AnswerText, Decoder
from qtransformers.sampling import Logprob, Sampler

F32 = NDArray[np.float32]
MAX_TRIES = 256  # tokens taken back, one after the other, before the answer ends
LONGEST_LOOP = 256  # tokens that a loop repeats


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
    """A piece of an answer: whole characters, and the tokens chosen for good since the last piece."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | None  # only on the last chunk
    logprobs: tuple[Logprob, ...] = ()  # of each token, where they were asked for
    timings: Timings | None = None  # only on the last chunk


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
    matcher: Matcher | None = field(init=False)  # of the grammar
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
        self.sampler = Sampler(self.request.sampling, self.n_tokens, self.request.breaks)
        self.matcher = self.request.grammar.matcher() if self.request.grammar else None
        self.tokens = list(self.request.prompt)
        self._ids = np.array(self.tokens, np.int32)
        self.table = Table(self.request.salt)
        self._text = AnswerText(self.decoder, self.request.stop, self.request.banned)
        self._n_shown = 0
        self._n_ids = len(self.tokens)
        self._before = [self.sampler.state]  # each token of the answer, where it may have to come back to it
        self._forbidden: dict[int, set[int]] = {}  # place among the tokens -> ids that led to banned texts there
        self._n_certain = self._tries = 0

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

    @property
    def free(self) -> bool:
        """Whether nothing takes tokens away from the next one's logits, or looks at them."""
        r = self.request
        limited = self.matcher is not None or r.healing or r.banned_ids or self._forbidden.get(len(self.tokens))
        return not (limited or r.hooks or r.logprobs is not None) and len(self.tokens) - self.n_prompt >= r.min_tokens

    def restrict(self, logits: F32) -> None:
        """Take away from the next token's logits what must not come now; the answer ends where that leaves nothing."""
        if self.matcher is not None and self.matcher.finished:
            return self.finish("stop")
        request = self.request
        allowed = request.healing.allowed(self.tokens, self.n_prompt) if request.healing else None
        if allowed is not None:
            kept = logits[allowed]
            logits.fill(-np.inf)
            logits[allowed] = kept
        forbidden = self._forbidden.get(len(self.tokens), set()) | request.banned_ids
        if len(self.tokens) - self.n_prompt < request.min_tokens:
            logits[list(request.stop_ids)] = -np.inf
        if self.matcher is not None:
            self.matcher.apply(logits)
        if forbidden:
            logits[list(forbidden)] = -np.inf
            if np.max(logits) == -np.inf:
                self.finish("banned")

    def accept(self, token: int, logprob: Logprob | None = None) -> bool:
        """Take the next token; a chunk comes of it once there is text to show.

        False where the answer does not go on behind it: it ended, or `tokens` became fewer, because a banned text was
        complete. Then the cache has to go back as far.
        """
        self.last = time.perf_counter()
        self.first = self.first or self.last
        if token in self.request.stop_ids:
            self.finish("stop")
            return False
        self.tokens.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        if self.matcher is not None:
            self.matcher.accept(token)
        found = self._text.push(token, stops=self._may_stop)
        if found.back:
            self._take_back(found.back)
            return False
        if self.request.banned:
            self._before.append(self.sampler.state)
        if found.stopped:
            self._end("stop", found.text)
        elif len(self.tokens) >= self.longest:
            self.finish("length", found.text)
        elif (
            self.request.max_repeats
            and self._may_stop
            and loops(self.history[self.n_prompt :], self.request.max_repeats)
        ):
            self.finish("loop", found.text)
        elif self.matcher is not None and self.matcher.finished:
            self.finish("stop", found.text)
        elif found.text:
            self._show(found.text)
        if self.matcher is not None and not self.ended:
            self.matcher.prepare()
        return not self.ended

    def finish(self, reason: FinishReason, text: str = "") -> None:
        """End here; what was held back is shown."""
        found = self._text.finish(stops=self._may_stop)
        self._end("stop" if found.stopped else reason, text + found.text)

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

    @property
    def _may_stop(self) -> bool:
        return len(self.tokens) - self.n_prompt > self.request.min_tokens

    def _take_back(self, n: int) -> None:
        """Go back by `n` tokens, and never again to the first of them in this place."""
        place = len(self.tokens) - n
        n_certain = place - self._text.uncertain
        self._forbidden = {p: ids for p, ids in self._forbidden.items() if n_certain <= p <= place}
        self._forbidden.setdefault(place, set()).add(self.tokens[place])
        self.sampler.restore(self._before[place - self.n_prompt])
        if self.matcher is not None:
            self.matcher.rollback(n)
        del self.tokens[place:], self.logprobs[place - self.n_prompt :], self._before[place - self.n_prompt + 1 :]
        self._n_ids = min(self._n_ids, place)
        self._tries = 1 if n_certain > self._n_certain else self._tries + 1
        self._n_certain = n_certain
        if self._tries > MAX_TRIES:
            self.finish("banned")

    def _end(self, reason: FinishReason, text: str) -> None:
        self._show(text, reason)
        self.finish_reason = reason  # after its chunk, for who reads on another thread

    def _show(self, text: str, reason: FinishReason | None = None) -> None:
        begin, self._n_shown = self._n_shown, len(self.tokens) - self.n_prompt - self._text.uncertain
        self.texts.append(text)
        tokens = tuple(self.tokens[self.n_prompt + begin : self.n_prompt + self._n_shown])
        logprobs = tuple(self.logprobs[begin : self._n_shown])
        self.chunks.append(Chunk(text, tokens, reason, logprobs, self.timings if reason else None))


def loops(tokens: NDArray[np.int32], times: int) -> bool:
    """Whether `tokens [n]` end with the same tokens `times` times in a row, at most LONGEST_LOOP of them."""
    tail = tokens[::-1][: LONGEST_LOOP * times]
    lengths = np.flatnonzero(tail[1 : len(tail) // times + 1] == tail[:1]) + 1
    return any(bool(np.array_equal(tail[: (times - 1) * n], tail[n : times * n])) for n in lengths)
