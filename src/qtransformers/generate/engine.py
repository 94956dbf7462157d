"""Runs forwards for all requests at once: whoever waits for a token computes the next step for everybody."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import zip_longest
from threading import Condition, Lock, get_ident
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.cache import Batch, PagedCache
from qtransformers.checks import shown
from qtransformers.errors import ConfigError, InsufficientMemoryError
from qtransformers.generate.choose import choose
from qtransformers.generate.pages import PagePool, Table
from qtransformers.generate.requests import Request
from qtransformers.generate.schedule import Part, Scheduler
from qtransformers.generate.sequence import Sequence
from qtransformers.generate.speculative import NOTHING, Guess, Speculation

# Of batch, cache, and where a request has adapters, which rows have which: logits, or on a device `Row`s
Forward = Callable[..., Any]

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Parts:
    """What an open engine works with."""

    forward: Forward
    cache: PagedCache
    pages: PagePool
    scheduler: Scheduler
    threads: AbstractContextManager[Any]


@dataclass(frozen=True)
class Usage:
    """What an engine is doing: requests, and pages of the cache of 256 tokens (`free` ones may hold beginnings for reuse)."""

    running: int
    waiting: int
    pages: int
    free_pages: int


class Engine:
    """One model's forward, its cache, and the requests that share them. Thread-safe; it has no thread of its own."""

    def __init__(
        self,
        forward: Forward,
        cache: PagedCache,
        *,
        n_tokens: int,
        context_length: int,
        prefill_chunk: int,
        logits_rows: int | None = None,
        parallel: int = 8,
        few_rows: int = 8,
        deterministic: bool = False,
        unused_ids: Iterable[int] = (),
        speculation: Speculation | None = None,
        pool: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.n_tokens = n_tokens  # ids from here on pad the vocabulary and are never sampled, nor are `unused_ids`
        self.context_length = context_length
        self.prefill_chunk = prefill_chunk
        self._logits_chunk = min(prefill_chunk, logits_rows or prefill_chunk)
        self._unused = np.array(sorted(i for i in unused_ids if i < n_tokens), np.int64)
        # What recurrent layers remember is of one sequence and of its last token: it can neither be shared nor rewound.
        self._rewinds = not cache.states.nbytes
        pages = PagePool(cache, shares=self._rewinds, partly=not deterministic)
        scheduler = Scheduler(
            pages, parallel=parallel, prefill_chunk=prefill_chunk, few_rows=few_rows, deterministic=deterministic
        )
        self._parts: Parts | None = Parts(forward, cache, pages, scheduler, pool or nullcontext())
        self.speculation = speculation
        self._turn = Condition(Lock())  # whoever computes has set _busy; not reentrant, see `drop`
        self._busy = False
        self._worker = 0  # the thread that set it last
        self._arrived: deque[Sequence] = deque()
        self._dropped: deque[Sequence] = deque()
        self._scoring = Lock()

    def submit(self, sequence: Sequence) -> None:
        """Let a sequence take part from the next step on. `advance` or another's steps fill its `chunks`. Never waits."""
        self.check(sequence.request)
        self._use()
        sequence.submitted = time.perf_counter()
        self._arrived.append(sequence)
        if sequence.ended:  # dropped meanwhile: nobody would take it from there
            with suppress(ValueError):
                self._arrived.remove(sequence)

    def check(self, request: Request) -> None:
        """ConfigError for what this model cannot do."""
        if request.banned and not self._rewinds:
            raise ConfigError(
                f"banned={shown(request.banned)}: an answer goes back to where such a text begins, but what the recurrent "
                "layers of this model remember cannot go back. Leave banned out."
            )

    def advance(self, sequence: Sequence) -> None:
        """Compute steps, or wait while another thread does, until a submitted sequence has a chunk or an end.

        What the forward raises, it raises here; what a sequence's own sampling raises, becomes its `error`.
        """
        while True:
            mine = False
            try:
                with self._turn:
                    while self._busy and not sequence.news:
                        self._wait()
                    if sequence.news:
                        return
                    self._worker, mine = get_ident(), True
                    self._busy = True
                self._step()
            finally:  # also after Ctrl-C, wherever that came
                if mine:
                    self._end_turn()

    def step(self, *, wait: bool = True) -> bool:
        """One forward for all that run; whether there was anything to do.

        `wait=False`: nothing where another thread computes, or where there is more to do than to continue answers.
        """
        with self._exclusive(wait) as mine:
            return mine and (wait or self.only_answers) and self._step(admits=wait)

    @property
    def only_answers(self) -> bool:
        """Whether the next step does nothing but continue answers, and calls no hook."""
        return self._parts is not None and not self._arrived and self._parts.scheduler.only_answers

    def drop(self, sequence: Sequence) -> None:
        """Forget a sequence and free its pages, at once or after the forward under way.

        Never waits: it also runs when a stream is collected, on whatever thread, perhaps amid a step.
        """
        self._dropped.append(sequence)
        self._reap()

    def logits(self, tokens: Seq[int]) -> Iterator[F32]:
        """Logits of every token, `[t, vocab_size]`, at most `logits_rows` of them in one forward; others take their turns between."""
        table = Table()
        with self._scoring:  # two could starve each other of pages
            try:
                for past in range(0, len(tokens), self._logits_chunk):
                    chunk = tokens[past : past + self._logits_chunk]
                    with self._exclusive():
                        engine = self._use()
                        _reserve(engine, table, past + len(chunk))
                        with engine.threads:
                            batch = Batch.single(chunk, past, table.numbers, outputs=None)
                            found = np.asarray(engine.forward(batch, engine.cache))
                    yield found
            finally:
                with self._exclusive():
                    if self._parts:
                        self._parts.pages.release(table)

    @contextmanager
    def held(self, tokens: Seq[int]) -> Iterator[tuple[PagedCache, list[int], int]]:
        """The cache, the pages that hold the first of `tokens`, and how many these are; nobody writes to them meanwhile."""
        table = Table()
        with self._exclusive():
            engine = self._use()
            n = engine.pages.extend(table, [*tokens, -1])  # the last is always left to compute
        try:
            yield engine.cache, table.numbers, n
        finally:
            with self._exclusive():
                if self._parts:
                    engine.pages.release(table)

    def take_in(self, tokens: Seq[int], page: Callable[[int], NDArray[np.uint8]]) -> None:
        """Have `page(i) [n_layers, n_kv_heads, head_bytes]` as the pages of `tokens`, for requests that begin so."""
        table = Table()
        with self._exclusive():
            engine = self._use()
            _reserve(engine, table, len(tokens))
        n = 0
        try:
            for i, number in enumerate(table.numbers):
                engine.cache.write(number, page(i))
            n = len(tokens)
        finally:
            with self._exclusive():
                if self._parts:
                    engine.pages.release(table, tokens, n)

    def hidden(self, batch: Batch) -> F32:
        """What an encoder makes of the whole texts in `batch`: hidden states `[T, n_embd]`."""
        with self._exclusive():
            engine = self._use()
            with engine.threads:
                return engine.forward(batch, engine.cache)

    def close(self) -> None:
        """Let weights, cache and threads go, after the forward that runs now. Later calls raise ConfigError."""
        with self._exclusive():
            self._parts = None

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._parts is None

    @property
    def usage(self) -> Usage:
        """How busy it is."""
        engine = self._use()
        s, pages = engine.scheduler, engine.pages
        return Usage(len(s.running), len(s.waiting) + len(self._arrived), pages.n_pages, pages.n_free)

    def _use(self) -> Parts:
        if self._parts is None:
            raise ConfigError("the model is closed. Load it again to use it.")
        return self._parts

    @contextmanager
    def _exclusive(self, wait: bool = True) -> Iterator[bool]:
        """Whether this thread alone computes in the block; always, if it is to `wait` for that."""
        mine = False
        try:
            with self._turn:
                while wait and self._busy:
                    self._wait()
                if not self._busy:
                    self._worker, mine = get_ident(), True
                    self._busy = True
            yield mine
        finally:
            if mine:
                self._end_turn()

    def _wait(self) -> None:
        if self._worker == get_ident():
            raise ConfigError(
                "a hook or callback used the model that is computing for it. Use another model, or wait for the answer."
            )
        self._turn.wait()

    def _end_turn(self) -> None:
        with self._turn:
            self._busy = False
            self._turn.notify_all()
        self._reap()

    def _reap(self) -> None:
        """Free what was dropped, unless somebody is computing, who will do so in the end."""
        while self._dropped and self._turn.acquire(blocking=False):
            try:
                if self._busy:
                    return
                while self._dropped:
                    sequence = self._dropped.popleft()
                    if sequence in self._arrived:  # there may never be a step that takes it from there
                        self._arrived.remove(sequence)
                    if self._parts:
                        self._parts.scheduler.drop(sequence)
                    elif not sequence.ended:
                        sequence.finish("cancelled")
                self._let_go()
            finally:
                self._turn.release()

    def _step(self, *, admits: bool = True) -> bool:
        engine = self._use()
        while admits and self._arrived:
            sequence = self._arrived.popleft()
            if not sequence.ended:  # it may have been dropped meanwhile
                engine.scheduler.add(sequence)
        if _sweep(engine.scheduler):
            return True
        start = time.perf_counter()
        parts = engine.scheduler.next_parts()
        if not parts:
            return False
        with engine.threads:
            guesses = self._guesses(engine.scheduler, parts)
            rows = [_rows(part, guesses.get(part.sequence, NOTHING)) for part in parts]
            answers = all(part.sequence.decodes for part in parts)
            for part in parts:
                if part.gives_logits and part.sequence.matcher is not None:
                    part.sequence.matcher.prepare()
            row = n_tokens = done = 0
            try:
                logits = engine.forward(Batch.join(rows), engine.cache, *_adapters(parts, rows))
                for part, its in zip(parts, rows, strict=True):
                    s, n_rows = part.sequence, len(its.output_rows)
                    engine.scheduler.computed(part)
                    if n_rows:
                        n_tokens += self._take(engine, s, logits[row : row + n_rows], guesses.get(s, NOTHING))
                        row += n_rows
                    engine.scheduler.rewind(s, len(s.tokens) - bool(n_rows and not s.ended))
                    if s.ended:
                        engine.scheduler.drop(s)
                    done += 1
            except BaseException:
                if engine.cache.states.nbytes:  # they have moved on, or in part
                    engine.scheduler.restart([part.sequence for part in parts[done:]])
                raise
        if any(part.sequence.ended for part in parts):
            self._let_go()
        if answers and self.speculation:
            self.speculation.learn(len(parts), row, n_tokens, time.perf_counter() - start)
        return True

    def _let_go(self) -> None:
        """A draft model need not remember answers that have ended."""
        if self.speculation and self.speculation.draft:
            self.speculation.draft.let_go()

    def _guesses(self, scheduler: Scheduler, parts: Seq[Part]) -> dict[Sequence, Guess]:
        """What may follow, where nothing but answers is computed, and there are pages for it."""
        if self.speculation is None or not all(part.sequence.decodes for part in parts):
            return {}
        found = self.speculation.guess([part.sequence for part in parts])
        return {s: g for s, g in found.items() if scheduler.reserve(s, len(s.tokens) + len(g.tokens))}

    def _take(self, engine: Parts, s: Sequence, logits: Any, guess: Guess) -> int:
        """Continue a sequence by its rows: that of its last token, and those of its guess as far as this was right."""
        past, right = s.past, 0
        for row, token in zip_longest(logits, guess.tokens):
            self._continue(s, row, guess, right)
            if s.tokens[past + right :] != [token]:  # one more, as guessed
                break
            right += 1
            if s.ended:
                break
        if guess.tokens:
            engine.scheduler.computed(Part(s, min(past + right, len(s.tokens))))
            assert self.speculation is not None  # it made the guess
            self.speculation.judge(s, guess, right)
        return right + 1

    def _continue(self, s: Sequence, logits: Any, guess: Guess, i: int) -> None:
        """Choose the sequence's next token; an error in this ends it and nothing else."""
        try:
            choose(s, logits, guess, i, self.n_tokens, self._unused)
        except Exception as e:
            s.error = e


def _sweep(scheduler: Scheduler) -> bool:
    """End what was cancelled; whether there was any."""
    ended = [s for s in (*scheduler.running, *scheduler.waiting) if s.cancelled]
    for s in ended:
        s.finish("cancelled")
        scheduler.drop(s)
    return bool(ended)


def _reserve(engine: Parts, table: Table, n_tokens: int) -> None:
    while True:
        try:
            return engine.pages.reserve(table, n_tokens)
        except InsufficientMemoryError:
            if not engine.scheduler.give_way():
                raise


def _adapters(parts: Seq[Part], rows: Seq[Batch]) -> tuple[()] | tuple[list[tuple[int, int, Any, float]]]:
    """(first row, end, updates, scale) of each adapter, as one argument; none where no request has any."""
    if not any(part.sequence.request.adapters for part in parts):
        return ()
    ends = np.cumsum([len(batch.tokens) for batch in rows]).tolist()
    return ([
        (end - len(batch.tokens), end, adapter.updates, scale)
        for part, batch, end in zip(parts, rows, ends, strict=True)
        for adapter, scale in part.sequence.request.adapters
    ],)  # fmt: skip


def _rows(part: Part, guess: Guess) -> Batch:
    """The rows of a part; logits only where the last of the tokens is among them, of it and of what may follow."""
    s = part.sequence
    n_outputs = 1 + len(guess.tokens) if part.gives_logits else 0
    return Batch.single([*s.tokens[s.past : part.end], *guess.tokens], s.past, s.table.numbers, outputs=n_outputs)
