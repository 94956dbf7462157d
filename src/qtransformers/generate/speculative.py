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

from qtransformers.generate.costs import Costs, Odds
from qtransformers.generate.drafting import Draft
from qtransformers.generate.repeats import Repeats
from qtransformers.generate.sequence import Sequence as Answer
from qtransformers.sampling import Sampler, Sampling

SHORTEST_REPEAT = 2  # tokens that must have occurred before, for what followed them to be a guess
LONGEST_TEXT = 32768  # last tokens of a prompt that are searched for repeats
ALLOWANCE = 0.01  # of the time may be lost to guesses that turn out wrong
RESERVE = 4.0  # plain steps that may be lost in a row, once they have been earned
FORCED = 0  # the kind of guesses that a grammar leaves no choice about, but for how the text is cut into tokens
STALE = 32  # steps with guesses after which one without them measures what these save

LEAST_CHANCE = 0.2  # that a draft model's next token comes to be used; below, it is not asked for more
LONGEST_LAG = 64  # tokens that the draft model reads at the cost of the guess; for longer prompts it has credit
CREDIT = 16.0  # plain steps that may be owed for prompts it has read, when it begins another; half of what is earned pays it back
DRAFTED = 15  # odds of the draft model's guesses by their kinds: all, and from SURE on by eighths of its probability
SURE = 16

Distribution = tuple[NDArray[np.int64], NDArray[np.float64]]  # ids, rising, and their probabilities


@dataclass(frozen=True)
class Guess:
    """Tokens that may come next, and by what `Odds` count them; with `drawn`, each was drawn from this distribution."""

    tokens: tuple[int, ...] = ()
    kinds: tuple[int, ...] = ()
    drawn: tuple[Distribution, ...] | None = None


NOTHING = Guess()


@dataclass
class Trust:
    """What is known of one sequence's guesses."""

    odds: Odds
    repeats: Repeats = field(default_factory=Repeats)
    drafts: bool = False  # the draft model reads along


class Drafting:
    """A draft model's guess under way: its likeliest tokens, or some `drawn` as the request draws."""

    def __init__(self, s: Answer, draws: bool) -> None:
        self.tokens: list[int] = []
        self._kinds: list[int] = []
        self._chance = 1.0
        self._kind = SURE
        sampling = s.request.sampling
        shape = Sampling(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
        self._sampler = Sampler(shape, s.n_tokens) if draws else None
        self._drawn: list[Distribution] = []

    def look(self, logits: NDArray[np.float32], odds: Odds) -> float:
        """The chance that the next token will be right, and all before it: by how sure the draft model is, not by what is drawn."""
        self._kind = SURE + int(8 / float(np.exp(logits - logits.max()).sum()))
        return self._chance * odds(self._kind)

    def take(self, logits: NDArray[np.float32], odds: Odds) -> None:
        """The next token."""
        self._chance *= odds(self._kind)
        self._kinds.append(self._kind)
        if self._sampler is None:
            self.tokens.append(int(logits.argmax()))
        else:
            q = self._sampler.distribution(logits.copy())
            self._drawn.append(q)
            self.tokens.append(self._sampler.draw(*q))

    @property
    def guess(self) -> Guess:
        """What was taken."""
        return Guess(tuple(self.tokens), tuple(self._kinds), tuple(self._drawn) or None)


class Speculation:
    """Decides what to guess, and how many tokens of it, by measured odds and costs; a ledger of seconds bounds the loss.

    A forward has `few_rows` rows at most then, so that no kernel rounds otherwise than without guesses.
    """

    def __init__(
        self, few_rows: int, draft: Draft | None = None, *, may_draw: bool = True, costs: Costs | None = None
    ) -> None:
        self.draft = draft
        self._few_rows = few_rows
        self._may_draw = may_draw  # guesses from the draft model's distribution; else always its likeliest token
        self._costs = costs or Costs()
        self._odds = Odds(memory=500)
        self._trust: WeakKeyDictionary[Answer, Trust] = WeakKeyDictionary()
        self._balance = 0.0  # seconds earned by right guesses, less those that wrong ones and the search for them took
        self._thought = 0.0  # seconds since the last step
        self._invested = 0.0  # of them, for prompts that the draft model has read
        self._owed = 0.0  # seconds for such prompts that right guesses have not earned back
        self._asked = False  # whether an answer of this step may have guesses
        self._rests = False  # until lost seconds are earned back; known beforehand, for steps shorter than a search
        self._since: dict[int, int] = {}  # by answers in a step: steps with guesses since the last without

    def guess(self, answers: Sequence[Answer]) -> dict[Answer, Guess]:
        """What may follow each of these answers, which the next step continues; those left out get no guess."""
        n = len(answers)
        room = self._few_rows - n
        self._asked = any(s.request.speculate for s in answers)
        if not self._asked or self._rests or room <= 0:
            return {}
        if not self._costs.knows(n) or self._since.get(n, 0) >= STALE:
            return {}
        start = time.perf_counter()
        found = {s: guess for s in answers if (guess := self._repeated(s, room)).tokens}
        chances = {s: self._chances(s, guess) for s, guess in found.items()}
        if self.draft:
            asked = [s for s in answers if self._prefers_draft(s, chances.get(s))]
            for s, guess in self._drafted(self.draft, n, asked, room).items():
                found[s], chances[s] = guess, self._chances(s, guess)
        guesses = self._worth(n, room, found, chances, time.perf_counter() - start)
        self._thought = time.perf_counter() - start
        return guesses

    def judge(self, s: Answer, guess: Guess, n_right: int) -> None:
        """The model has confirmed the first `n_right` tokens of a guess, and not the next."""
        s.drafted += len(guess.tokens)
        s.accepted += n_right
        odds = self._of(s).odds
        for i, kind in enumerate(guess.kinds[: n_right + 1]):
            odds.learn(kind, i < n_right)
            if kind >= SURE:
                odds.learn(DRAFTED, i < n_right)

    def learn(self, n: int, rows: int, n_tokens: int, seconds: float) -> None:
        """A step that continued `n` answers by `n_tokens` tokens had so many rows and took so long."""
        self._costs.learn(rows, seconds - self._thought)
        plain = self._costs(n)
        if rows == n:
            self._since[n] = 0
            earned = ALLOWANCE * seconds * self._asked - self._thought
        else:
            self._since[n] = self._since.get(n, 0) + 1
            earned = plain * n_tokens / n - seconds
        earned += self._invested
        repaid = min(max(earned, 0) / 2, self._owed)
        self._owed += self._invested - repaid
        self._balance = min(self._balance + earned - repaid, RESERVE * plain)
        self._rests = self._balance < -2 * plain
        self._thought = self._invested = 0.0

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

    def _prefers_draft(self, s: Answer, chances: list[float] | None) -> bool:
        if s.request.speculate not in ("auto", "draft") or s.longest - len(s.tokens) <= 1:
            return False
        return chances is None or chances[0] < self._of(s).odds(DRAFTED)

    def _drafted(self, draft: Draft, n: int, answers: list[Answer], room: int) -> dict[Answer, Guess]:
        """What the draft model says, as far ahead as pays by what is known of it: all answers in one of its forwards."""
        answers = [s for s in answers if len(s.tokens) + room < draft.context_length and self._follows(draft, n, s)]
        depth = self._depth(draft, n, answers, room)
        if not depth:
            return {}
        start = time.perf_counter()
        n_behind = sum(map(draft.lag, answers))
        logits = draft.follow(answers)
        if n_behind > LONGEST_LAG:
            self._invested += time.perf_counter() - start
        drafts = {s: Drafting(s, self._draws(s)) for s in logits}
        for i in range(depth):
            going = {
                s: row for s, row in logits.items() if drafts[s].look(row, self._of(s).odds) > LEAST_CHANCE or not i
            }
            for s, row in going.items():
                drafts[s].take(row, self._of(s).odds)
            ahead = {
                s: drafts[s].tokens[-1]
                for s in going
                if len(s.tokens) + i + 2 < s.longest and i + 1 < s.request.max_draft
            }
            if i + 1 == depth or not ahead:
                break
            logits = draft.go_on(ahead)
        return {s: d.guess for s, d in drafts.items()}

    def _follows(self, draft: Draft, n: int, s: Answer) -> bool:
        """Whether the draft model reads along: it begins no long prompt while it owes much for others."""
        trust = self._of(s)
        trust.drafts = trust.drafts or self._owed <= CREDIT * self._costs(n) or draft.lag(s) <= LONGEST_LAG
        return trust.drafts

    def _draws(self, s: Answer) -> bool:
        """Whether guesses are drawn: with a seed they are not, because how far ahead depends on measured seconds."""
        return self._may_draw and s.request.sampling.temperature > 0 and s.request.sampling.seed is None

    def _depth(self, draft: Draft, n: int, answers: list[Answer], room: int) -> int:
        """How many tokens ahead the draft model is to guess for each of these answers; 0 where that does not pay."""
        m = len(answers)
        if not m or m > room:
            return 0
        odds = [self._of(s).odds(DRAFTED) for s in answers]
        behind = sum(map(draft.lag, answers))
        seconds = draft.costs(min(behind, m + LONGEST_LAG))
        best, rate, tokens = 0, n / self._costs(n), float(n)
        for k in range(1, room // m + 1):
            tokens += sum(p**k for p in odds)
            if tokens / (self._costs(n + m * k) + seconds) > rate:
                best, rate = k, tokens / (self._costs(n + m * k) + seconds)
            seconds += draft.costs(m)
        if not best and self._balance > 0 and behind < m + LONGEST_LAG:
            best = 1
        return best

    def _worth(
        self, n: int, room: int, found: dict[Answer, Guess], chances: dict[Answer, list[float]], spent: float
    ) -> dict[Answer, Guess]:
        """As much of each guess as gives most tokens a second; where none does, one now and then, to learn.

        What was drawn is kept whole: whether a token is judged must not depend on which one was drawn.
        """
        kept = {s: guess for s, guess in found.items() if guess.drawn}
        n_kept = sum(len(guess.tokens) for guess in kept.values())
        ranked = sorted(
            ((c, -i, s) for s, cs in chances.items() if s not in kept for i, c in enumerate(cs)), key=lambda x: x[:2]
        )[::-1]
        tokens = n + sum(sum(chances[s]) for s in kept)
        best, rate = 0, tokens / (self._costs(n + n_kept) + spent)
        for k, (chance, _, _) in enumerate(ranked[: room - n_kept], 1):
            tokens += chance
            if tokens / (self._costs(n + n_kept + k) + spent) > rate:
                best, rate = k, tokens / (self._costs(n + n_kept + k) + spent)
        if not best and not kept and self._balance > 0:
            best = 1
        counts = Counter(s for _, _, s in ranked[:best])
        return kept | {s: Guess(found[s].tokens[:k], found[s].kinds[:k]) for s, k in counts.items()}


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
