"""What may follow at each step of an answer."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qtransformers.constrain.sources import Kind, summary
from qtransformers.constrain.vocabulary import Vocabulary
from qtransformers.errors import ConstraintError

if TYPE_CHECKING:
    import llguidance

MAX_FORCED = 128  # tokens to look ahead
MAX_BRANCHES = 256  # tokens that may follow, for one of them to be a question of how the same text is cut
Bools = NDArray[np.bool_]


class Grammar:
    """A compiled grammar, shared by the requests that use it. `broken` where one of them exceeded its limits."""

    def __init__(
        self, kind: Kind, start: llguidance.LLMatcher, vocabulary: Vocabulary, warnings: Sequence[str] = ()
    ) -> None:
        self.kind = kind
        self.vocabulary = vocabulary
        self.warnings = tuple(warnings)  # what of the source constrains nothing
        self.broken = False  # states are shared too: what is too much for one matcher is for the others
        self.empty = False  # it allows the empty text and no other
        self._start = start

    def matcher(self) -> Matcher:
        """A matcher at the beginning of an answer."""
        return Matcher(self, self._start.deep_copy())


class Matcher:
    """How far one answer has come in its grammar. For one thread at a time."""

    def __init__(self, grammar: Grammar, state: llguidance.LLMatcher) -> None:
        self._grammar = grammar
        self._vocabulary = grammar.vocabulary
        self._state = state
        self._tokens: list[int] = []
        self._ended = False  # by EOS, which the state is not told
        self._mask: Bools | None = None
        self._coming: Future[Bools] | None = None

    @property
    def complete(self) -> bool:
        """Whether the answer may end here: exactly then EOS is allowed."""
        self._settle()
        return self._ended or self._state.is_accepting()

    @property
    def finished(self) -> bool:
        """Whether the answer is complete and nothing but EOS can follow."""
        return self.complete and (self._ended or self._state.is_stopped() or (not self._tokens and self._grammar.empty))

    @property
    def ready(self) -> bool:
        """Whether it is known what may follow, so that nothing has to wait."""
        return self._mask is not None or (self._coming is not None and self._coming.done())

    def prepare(self) -> None:
        """Begin to compute, in another thread, what may follow; everything else waits for it."""
        if self._mask is None and self._coming is None:
            try:
                self._coming = self._vocabulary.workers.submit(self._compute)
            except RuntimeError:  # the threads have ended: `allowed` computes it
                self._coming = None

    def allowed(self) -> Bools:
        """Whether each token `[n_tokens]` may follow; EOS tokens exactly where the answer is complete.

        ConstraintError where none may: the grammar leads nowhere with this vocabulary, or exceeds llguidance's limits.
        """
        self._settle()
        if self._mask is None:
            self._mask = self._compute()
        return self._mask

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Forbid in `logits [n_tokens]` what may not follow: -inf, in place.

        ConstraintError as of `allowed`, and where other settings forbid all that may follow.
        """
        mask = self.allowed()
        np.copyto(logits[: len(mask)], -np.inf, where=~mask)
        logits[len(mask) :] = -np.inf
        if logits.max() == -np.inf:
            raise ConstraintError(
                "grammar: other settings (logit_bias, banned tokens, a hook) forbid every token that may follow. Loosen one."
            )

    def accept(self, token: int) -> None:
        """Go on by one token; ConstraintError, and no change, for one that may not follow."""
        self._settle()
        if token in self._vocabulary.eos_ids and self.complete and not self._ended:
            self._ended = True
        elif self._ended or not self._in_range(token) or not self._state.try_consume_tokens([token]):
            self._check(self._state)
            raise ConstraintError(f"grammar: token {token} may not follow here.")
        self._tokens.append(token)
        self._mask = None

    def rollback(self, n: int) -> None:
        """Take the last `n` tokens back; ConstraintError for more than were accepted."""
        self._settle()
        if not 0 <= n <= len(self._tokens):
            raise ConstraintError(f"grammar: rollback of {n} tokens, but {len(self._tokens)} were accepted.")
        if n > self._ended and not self._state.rollback(n - self._ended):
            self._check(self._state)
        if n:
            del self._tokens[-n:]
            self._ended, self._mask = False, None

    def valid_prefix(self, tokens: Sequence[int]) -> int:
        """How many of `tokens`, a draft of what comes, may follow one after the other. Nothing is accepted."""
        self._settle()
        if self._ended:
            return 0
        eos = self._vocabulary.eos_ids
        n = next((i for i, t in enumerate(tokens) if t in eos or not self._in_range(t)), len(tokens))
        head = [int(t) for t in tokens[:n]]
        valid: int = self._state.validate_tokens(head) if head else 0
        self._check(self._state)
        if valid == n < len(tokens) and tokens[n] in eos:
            after = self._state.deep_copy()
            valid += (not head or after.try_consume_tokens(head) == n) and after.is_accepting()
        return valid

    def forced(self) -> list[int]:
        """The tokens that follow in any case, cut as the tokenizer cuts, so that none need be drawn; often none.

        A last token that could turn out longer is left out. Nothing is accepted.
        """
        if self._ended or self.finished:
            return []
        pieces, no_text = self._vocabulary.tokens, self._vocabulary.special
        ahead, mask = self._state.deep_copy(), self.allowed()
        found = b""
        for _ in range(MAX_FORCED):
            ids = np.flatnonzero(mask).tolist() if np.count_nonzero(mask) <= MAX_BRANCHES else []
            if not ids or not no_text.isdisjoint(ids):
                break
            common = _common_start([pieces[i] for i in ids])
            step = max((i for i in ids if common.startswith(pieces[i])), key=lambda i: len(pieces[i]), default=None)
            if not common or step is None or not ahead.try_consume_tokens([step]):
                break
            found += pieces[step]
            if ahead.is_stopped():
                break
            try:
                mask = self._bits(ahead)
            except ConstraintError:  # further than the limits reach
                break
        return self._cut(found)

    def copy(self) -> Matcher:
        """Another matcher that has come as far."""
        self._settle()
        other = Matcher(self._grammar, self._state.deep_copy())
        other._tokens, other._ended, other._mask = [*self._tokens], self._ended, self._mask
        return other

    def _cut(self, found: bytes) -> list[int]:
        """Text that is forced as the tokens that a tokenizer makes of it, whatever comes after."""
        if not found:
            return []
        ids, _ = self._vocabulary.native.tokenize_partial(found, recent_tokens=self._tokens[-1:])
        return ids[: self._state.validate_tokens(ids)] if ids else []

    def _compute(self) -> Bools:
        if self._ended:
            mask = np.zeros(self._vocabulary.n_tokens, np.bool_)
            mask[list(self._vocabulary.eos_ids)] = True
            return mask
        return self._bits(self._state)

    def _bits(self, state: llguidance.LLMatcher) -> Bools:
        bits = np.frombuffer(state.compute_bitmask(), np.uint8)
        self._check(state)
        mask: Bools = np.unpackbits(bits, count=self._vocabulary.n_tokens, bitorder="little").view(np.bool_)
        return mask

    def _settle(self) -> None:
        """Wait for the other thread: llguidance lets only one at a matcher."""
        if self._coming is not None:
            coming, self._coming = self._coming, None
            self._mask = coming.result()

    def _check(self, state: llguidance.LLMatcher) -> None:
        if state.is_error():
            self._grammar.broken = True
            raise ConstraintError(f"grammar: {summary(state.get_error())}.")

    def _in_range(self, token: int) -> bool:
        return 0 <= token < self._vocabulary.n_tokens


def _common_start(texts: Sequence[bytes]) -> bytes:
    first, last = min(texts), max(texts)  # what these two share, all share
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]
