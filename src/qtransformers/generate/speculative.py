"""Several tokens in one forward: guesses that the model confirms or replaces, as many of them as pay.

What comes out is what would have come out without (Leviathan et al., arXiv:2211.17192; Chen et al., arXiv:2302.01318).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from qtransformers.generate.repeats import Repeats
from qtransformers.generate.sequence import Sequence as Answer
from qtransformers.sampling import Sampler

SHORTEST_REPEAT = 2  # tokens that must have occurred before, for what followed them to be a guess
LONGEST_TEXT = 32768  # last tokens of a prompt that are searched for repeats
ALLOWANCE = 0.01  # of the time may be lost to guesses that turn out wrong
RESERVE = 4.0  # plain steps that may be lost in a row, once they have been earned
FORCED = 0  # the kind of guesses that a grammar leaves no choice about, but for how the text is cut into tokens
STALE = 32  # steps with guesses after which one without them measures what these save

Distribution = tuple[NDArray[np.int64], NDArray[np.float64]]  # ids, rising, and their probabilities


@dataclass(frozen=True)
class Guess:
    """Tokens that may come next, and by what `Odds` count them; with `drawn`, each was drawn from this distribution."""

    tokens: tuple[int, ...] = ()
    kinds: tuple[int, ...] = ()
    drawn: tuple[Distribution, ...] | None = None


NOTHING = Guess()


class Odds:
    """How often guesses of a kind are right, what came last counting most; unknown kinds are as `before`, or even."""

    def __init__(self, memory: float, before: Odds | None = None) -> None:
        self._keep = 1 - 1 / memory  # tokens
        self._before = before
        self._counts: dict[int, tuple[float, float]] = {}  # right, all

    def __call__(self, kind: int) -> float:
        """The chance of one."""
        right, n = self._counts.get(kind, (0.0, 0.0))
        return (right + 3 * (self._before(kind) if self._before else 0.5)) / (n + 3)

    def learn(self, kind: int, was_right: bool) -> None:
        """A guess of this kind has been judged."""
        right, n = self._counts.get(kind, (0.0, 0.0))
        self._counts[kind] = right * self._keep + was_right, n * self._keep + 1
        if self._before:
            self._before.learn(kind, was_right)


class Costs:
    """Seconds of a step by its rows, following the machine and the contexts; between and beyond what was measured, a guess."""

    SLOPE = 0.05  # of one row's time for each further row, as far as is known: little, so that it is tried

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._measured: dict[int, int] = {}

    def __call__(self, rows: int) -> float:
        """Of such a step; 0 where nothing is known."""
        known = self._seconds
        if rows in known:
            return known[rows]
        less, more = (max((r for r in known if r < rows), default=0), min((r for r in known if r > rows), default=0))
        if less and more:
            return known[less] + (known[more] - known[less]) * (rows - less) / (more - less)
        near = less or more
        return known[near] * max(0.5, 1 + self.SLOPE * (rows - near)) if near else 0.0

    def learn(self, rows: int, seconds: float) -> None:
        """A step took so long. The first ones are slow; single hiccups count little."""
        n = self._measured[rows] = self._measured.get(rows, 0) + 1
        old = self._seconds.get(rows, seconds)
        self._seconds[rows] = min(old, seconds) if n <= 3 else old + (min(seconds, 2 * old) - old) / 8

    def knows(self, rows: int) -> bool:
        """Whether such a step was measured."""
        return rows in self._seconds


@dataclass
class Trust:
    """What is known of one sequence's guesses."""

    odds: Odds
    repeats: Repeats = field(default_factory=Repeats)


class Speculation:
    """Decides what to guess, and how many tokens of it, by measured odds and costs; a ledger of seconds bounds the loss.

    A forward has `few_rows` rows at most then, so that no kernel rounds otherwise than without guesses.
    """

    def __init__(self, few_rows: int, costs: Costs | None = None) -> None:
        self._few_rows = few_rows
        self._costs = costs or Costs()
        self._odds = Odds(memory=500)
        self._trust: WeakKeyDictionary[Answer, Trust] = WeakKeyDictionary()
        self._balance = 0.0  # seconds earned by right guesses, less those that wrong ones and the search for them took
        self._thought = 0.0  # seconds since the last step
        self._since: dict[int, int] = {}  # by answers in a step: steps with guesses since the last without

    def guess(self, answers: Sequence[Answer]) -> dict[Answer, Guess]:
        """What may follow each of these answers, which the next step continues; those left out get no guess."""
        n = len(answers)
        room = self._few_rows - n
        if self._balance < -2 * self._costs(n) or not self._costs.knows(n) or self._since.get(n, 0) >= STALE:
            return {}
        if room <= 0 or not any(s.request.speculate for s in answers):
            return {}
        start = time.perf_counter()
        found = {s: guess for s in answers if (guess := self._repeated(s, room)).tokens}
        counts = self._worth(n, room, {s: self._chances(s, guess) for s, guess in found.items()}) if found else {}
        self._thought = time.perf_counter() - start
        return {s: _first(found[s], k) for s, k in counts.items()}

    def judge(self, s: Answer, guess: Guess, n_right: int) -> None:
        """The model has confirmed the first `n_right` tokens of a guess, and not the next."""
        s.drafted += len(guess.tokens)
        s.accepted += n_right
        odds = self._of(s).odds
        for i, kind in enumerate(guess.kinds[: n_right + 1]):
            odds.learn(kind, i < n_right)

    def learn(self, n: int, rows: int, n_tokens: int, seconds: float) -> None:
        """A step that continued `n` answers by `n_tokens` tokens had so many rows and took so long."""
        thought, self._thought = self._thought, 0.0
        if rows == n:
            self._costs.learn(n, seconds - thought)
            self._since[n] = 0
            self._balance += ALLOWANCE * seconds - thought
        else:
            self._costs.learn(rows, seconds)
            self._since[n] = self._since.get(n, 0) + 1
            self._balance += self._costs(n) * n_tokens / n - seconds
        self._balance = min(self._balance, RESERVE * self._costs(n))

    def _of(self, s: Answer) -> Trust:
        trust = self._trust.get(s)
        if trust is None:
            trust = self._trust[s] = Trust(Odds(memory=30, before=self._odds))
        return trust

    def _repeated(self, s: Answer, room: int) -> Guess:
        """What followed where the text last went like this."""
        limit = min(room, s.request.max_draft, s.longest - len(s.tokens) - 1)
        if limit <= 0 or s.request.speculate not in ("auto", "ngram"):
            return NOTHING
        if s.matcher is not None and s.matcher.ready and (forced := s.matcher.forced()[:limit]):
            return Guess(tuple(forced), (FORCED,) * len(forced))
        trust = self._of(s)
        known = len(trust.repeats.tokens)
        start = max(0, s.n_prompt - LONGEST_TEXT)
        if known > len(s.tokens) - start:  # some were taken back
            trust.repeats, known = Repeats(), 0
        for token in s.tokens[start + known :]:
            trust.repeats.push(token)
        length = trust.repeats.length
        if length < SHORTEST_REPEAT:
            return NOTHING
        tokens = tuple(trust.repeats.guess(limit))
        if s.matcher is not None and s.matcher.ready:
            tokens = tokens[: s.matcher.valid_prefix(tokens)]
        # a guess that turned out right has made the repeat longer for the next
        return Guess(tokens, tuple(min(length + i, 255).bit_length() for i in range(len(tokens))))

    def _chances(self, s: Answer, guess: Guess) -> list[float]:
        """How likely it is that all of the first tokens are right: of one, of two, ..."""
        odds = self._of(s).odds
        return np.cumprod([odds(kind) for kind in guess.kinds]).tolist()

    def _worth(self, n: int, room: int, chances: dict[Answer, list[float]]) -> dict[Answer, int]:
        """How many tokens of each guess give most tokens a second; where none do, one now and then, to learn."""
        ranked = sorted(((c, -i, s) for s, cs in chances.items() for i, c in enumerate(cs)), key=lambda x: x[:2])[::-1]
        best, rate, tokens = 0, n / self._costs(n), float(n)
        for k, (chance, _, _) in enumerate(ranked[:room], 1):
            tokens += chance
            if tokens / self._costs(n + k) > rate:
                best, rate = k, tokens / self._costs(n + k)
        if not best and self._balance > 0:
            best = 1
        return dict(Counter(s for _, _, s in ranked[:best]))


def settle(
    sampler: Sampler, logits: NDArray[np.float32], tokens: NDArray[np.int32], n_prompt: int, guess: int, q: Distribution
) -> int:
    """The next token, where `guess` was drawn from `q`: distributed as if the sampler had drawn it.

    It is the guess with probability min(1, p / q), else drawn from what of p exceeds q.
    """
    ids, p = sampler.distribution(logits, tokens, n_prompt)
    if sampler.uniform() * probability(q, guess) < probability((ids, p), guess):
        token = guess
    else:
        left = np.maximum(p - _on(ids, q), 0)
        token = sampler.draw(ids, left if left.any() else p)
    sampler.accepted(token, probability((ids, p), token))
    return token


def probability(distribution: Distribution, token: int) -> float:
    """Of a token; 0 if it is not among the ids."""
    return float(_on(np.array([token]), distribution)[0])


def _on(ids: NDArray[np.int64], distribution: Distribution) -> NDArray[np.float64]:
    """Probabilities of these ids."""
    known, p = distribution
    i = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.where(known[i] == ids, p[i], 0.0)


def _first(guess: Guess, k: int) -> Guess:
    return Guess(guess.tokens[:k], guess.kinds[:k], guess.drawn and guess.drawn[:k])
