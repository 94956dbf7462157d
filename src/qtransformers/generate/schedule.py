"""Whose tokens the next forward computes: admission, fair turns, and who has to wait when pages run out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from qtransformers.cache import PAGE_TOKENS
from qtransformers.errors import InsufficientMemoryError
from qtransformers.generate.pages import PagePool
from qtransformers.generate.sequence import Sequence

SHARED_CHUNK = 64  # rows of prompts in a forward that also continues answers, so that these do not stutter


@dataclass(frozen=True)
class Part:
    """The next tokens of a sequence to compute, `tokens[past:end]`."""

    sequence: Sequence
    end: int

    @property
    def gives_logits(self) -> bool:
        """Whether the last of its tokens is among them."""
        return self.end == len(self.sequence.tokens)


class Scheduler:
    """Sequences that run and those that wait, first come first served.

    A forward continues every answer and computes a chunk of the prompts, in turns. Pages are taken as sequences grow; when
    there are none, the one that came last gives up its own and computes them again later. `deterministic` lets no row's
    kernel depend on what runs beside it: prompts alone and page by page, and no more than `few_rows` answers at a time. Up to
    so many rows, and again beyond, a product's sums do not depend on how many there are.
    """

    def __init__(
        self, pool: PagePool, *, parallel: int, prefill_chunk: int, few_rows: int = 8, deterministic: bool = False
    ) -> None:
        self.pool = pool
        self.running: list[Sequence] = []  # in the order of their admission
        self.waiting: deque[Sequence] = deque()
        self._parallel = parallel
        self._chunk = prefill_chunk
        self._few_rows = few_rows
        self._deterministic = deterministic
        self._step = 0

    @property
    def only_answers(self) -> bool:
        """Whether the next forward does nothing but continue answers that have no hooks."""
        running = [s for s in self.running if s.runs]
        admits = bool(self.waiting) and len(running) < self._parallel
        return not admits and all(s.decodes for s in running) and not any(s.request.hooks for s in self.running)

    def add(self, sequence: Sequence) -> None:
        """Let it wait for its turn."""
        sequence.submitted = sequence.submitted or time.perf_counter()
        self.waiting.append(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Forget it, ended or not; others may use what it computed."""
        if not sequence.ended:
            sequence.finish("cancelled")
        self._release(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def next_parts(self) -> list[Part]:
        """What the next forward computes, with pages for it. A sequence for which alone there are too few gets an `error`."""
        self._step += 1
        self._admit()
        parts = self._parts()
        order = {s: i for i, s in enumerate(self.running)}
        held: dict[Sequence, Part] = {}
        for part in sorted(parts, key=lambda part: order[part.sequence]):
            if part.sequence in self.running and self._reserve(part, held):
                held[part.sequence] = part
                part.sequence.served = self._step
        return [part for part in parts if part.sequence in held]

    def computed(self, part: Part) -> None:
        """A forward has computed this part."""
        s = part.sequence
        s.past = part.end
        if s.past // PAGE_TOKENS > s.table.n_known:
            self.pool.learn(s.table, s.tokens, self._known(s))

    def rewind(self, sequence: Sequence, past: int) -> None:
        """Go on after its first `past` tokens."""
        if past < sequence.past:
            sequence.past = self.pool.rewind(sequence.table, past)

    def reserve(self, sequence: Sequence, n_tokens: int) -> bool:
        """Pages for `n_tokens` tokens of it if they are free, for what is not worth another's."""
        try:
            self.pool.reserve(sequence.table, n_tokens)
        except InsufficientMemoryError:
            return False
        return True

    def restart(self, sequences: Iterable[Sequence]) -> None:
        """Let those of them that run give up what was computed, and begin again."""
        for s in [s for s in sequences if s in self.running]:
            self._preempt(s)

    def give_way(self) -> bool:
        """Take the pages of the sequence that can best wait, for something else; whether there was one."""
        victim = self._victim()
        if victim is not None:
            self._preempt(victim)
        return victim is not None

    def _parts(self) -> list[Part]:
        ready = [s for s in self.running if s.runs]
        answers = [s for s in ready if s.decodes]
        prompts = [s for s in ready if not s.decodes]
        if len(prompts) > 1:
            prompts.sort(key=lambda s: s.served)
        if self._deterministic:
            return self._alone(answers, prompts)
        parts = [Part(s, len(s.tokens)) for s in answers]
        left = min(self._chunk, SHARED_CHUNK) if answers else self._chunk
        for s in prompts:
            if left <= 0:
                break
            self._look_up(s)
            if any(_computes_page_of(part.sequence, s) for part in parts[len(answers) :]):
                continue  # next time it will be there
            end = min(len(s.tokens), s.past + left)
            left -= end - s.past
            parts.append(Part(s, end))
        return parts

    def _alone(self, answers: list[Sequence], prompts: list[Sequence]) -> list[Part]:
        if prompts and (not answers or self._step % 2):
            s = prompts[0]
            self._look_up(s)
            if s.past < s.n_prompt:
                return [Part(s, min(s.n_prompt, (s.past // PAGE_TOKENS + 1) * PAGE_TOKENS))]
            return [Part(s, min(len(s.tokens), s.past + self._few_rows))]
        return [Part(s, len(s.tokens)) for s in sorted(answers, key=lambda s: s.served)[: self._few_rows]]

    def _look_up(self, s: Sequence) -> None:
        """Take over what others have computed of it meanwhile."""
        if s.past == len(s.table.pages) * PAGE_TOKENS and s.past < s.n_prompt:
            before, s.past = s.past, self.pool.extend(s.table, s.tokens)
            s.cached += 0 if s.first else s.past - before

    def _admit(self) -> None:
        """Let those in that wait, while there are places and pages for the tokens they have."""
        while sum(s.runs for s in self.running) < self._parallel:
            s = next((s for s in self.waiting if s.runs), None)
            if s is None:
                return
            self._look_up(s)
            while -(-len(s.tokens) // PAGE_TOKENS) - len(s.table.pages) > self.pool.n_free:
                victim = self._victim(stalled=True)
                if victim is None:
                    if not self.running:
                        break
                    self._release(s)
                    return
                self._preempt(victim)
            self.waiting.remove(s)
            self.running.append(s)
            s.started = s.started or time.perf_counter()

    def _reserve(self, part: Part, held: dict[Sequence, Part]) -> bool:
        s = part.sequence
        while True:
            try:
                self.pool.reserve(s.table, part.end)
                return True
            except InsufficientMemoryError as e:
                victim = self._victim()
                if victim is s and len(self.running) == 1:
                    s.error = e
                    self.drop(s)
                    return False
                assert victim is not None  # this one runs
                self._preempt(victim)
                held.pop(victim, None)
                if victim is s:
                    return False

    def _victim(self, stalled: bool = False) -> Sequence | None:
        """Whose pages are to be had: of those that nobody reads first, then (unless only these are) of the last that came."""
        idle = [s for s in self.running if not s.runs and s.table.pages]
        if idle:
            return idle[-1]
        return self.running[-1] if self.running and not stalled else None

    def _preempt(self, s: Sequence) -> None:
        self._release(s)
        self.running.remove(s)
        self.waiting.appendleft(s)

    def _release(self, s: Sequence) -> None:
        self.pool.release(s.table, s.tokens, self._known(s))
        s.past = 0
        s.cached = s.cached if s.first else 0

    def _known(self, s: Sequence) -> int:
        """Tokens of it in the cache that others may find. Not those of an answer where another kernel would compute them as a prompt."""
        return min(s.past, s.n_prompt) if self._deterministic else s.past


def _computes_page_of(other: Sequence, s: Sequence) -> bool:
    """Whether the page that a sequence is about to begin is the one that another is computing."""
    begin, end = s.past, s.past + PAGE_TOKENS
    return (
        begin % PAGE_TOKENS == 0
        and begin <= other.past < end <= min(len(s.tokens) - 1, len(other.tokens))
        and other.table.salt == s.table.salt
        and other.tokens[:end] == s.tokens[:end]
    )
