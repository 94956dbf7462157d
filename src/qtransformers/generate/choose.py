"""The next token of a sequence, from a row of logits in main memory or on a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import ConfigError
from qtransformers.generate.sequence import Sequence
from qtransformers.generate.speculative import Guess, settle
from qtransformers.sampling import logprobs

F32 = NDArray[np.float32]
MOST_CANDIDATES = 1024  # that come from a device instead of all logits


class Row(Protocol):
    """A row of logits on a device."""

    def best(self) -> int:
        """The id of the largest, the first of equals; -1 where that cannot be said."""

    def largest(self, n: int) -> tuple[NDArray[np.int64], F32] | None:
        """Ids, rising, and values, among them the `n` largest and all that equal the last of these; None where that cannot be said."""

    def total(self) -> float:
        """The logarithm of the sum of exponentials of all logits."""

    def values(self) -> F32:
        """All of it."""


def choose(s: Sequence, logits: Any, guess: Guess, i: int, n_tokens: int, unused: NDArray[np.int64]) -> None:
    """Give a sequence its next token by a row of logits, `[vocab_size]` or a `Row`; place `i` of a guess, if there is one.

    Ids from `n_tokens` on, and `unused` ones, are never drawn. ConfigError for a hook that gives no logits.
    """
    request, history = s.request, s.history
    if not isinstance(logits, np.ndarray):  # a row on a device
        token = _among_few(s, logits) if s.free and i >= len(guess.drawn or ()) else -1
        if token >= 0:
            s.accept(token)
            return
        logits = logits.values()
    logits = logits[:n_tokens]
    if len(unused):
        logits[unused] = -np.inf
    raw = logits.copy() if request.logprobs is not None else None
    for hook in request.hooks:
        logits = _hooked(hook, history, logits)
    s.restrict(logits)
    if s.ended:
        return
    if guess.drawn and i < len(guess.drawn):
        token = settle(s.sampler, logits, history, s.n_prompt, guess.tokens[i], guess.drawn[i])
    else:
        token = s.sampler(logits, history, s.n_prompt)
    s.accept(token, None if raw is None else logprobs(raw, token, request.logprobs or 0))


def _among_few(s: Sequence, row: Row) -> int:
    """The next token by a few logits of a row, where they decide; -1 where all have to be seen."""
    if s.sampler.greedy:
        return row.best()
    n = s.sampler.n_candidates
    if n > MOST_CANDIDATES or (n == 0 and not s.sampler.cuts):
        return -1
    found = row.largest(n or MOST_CANDIDATES)
    if found is None:
        return -1
    ids, values = found
    i = s.sampler(values, s.history, s.n_prompt) if n else s.sampler.among(values, row.total())
    return int(ids[i]) if i >= 0 else -1


def _hooked(hook: Callable[[NDArray[np.int32], F32], Any], tokens: NDArray[np.int32], logits: F32) -> F32:
    """Logits as a user's function leaves them; ConfigError where they are none."""
    seen = tokens.view()
    seen.flags.writeable = False
    changed = hook(seen, logits.copy())
    if not isinstance(changed, np.ndarray) or changed.shape != logits.shape or changed.dtype.kind != "f":
        found = f"{changed.dtype} {list(changed.shape)}" if isinstance(changed, np.ndarray) else type(changed).__name__
        raise ConfigError(f"a hook returned {found}; expected logits as it was given, float32 {list(logits.shape)}.")
    top = changed.max()  # NaN where there is one
    if not np.isfinite(top):
        raise ConfigError(f"a hook returned logits of which the largest is {top}; expected numbers, or -inf for what may not follow.")  # fmt: skip
    return np.ascontiguousarray(changed, np.float32)
