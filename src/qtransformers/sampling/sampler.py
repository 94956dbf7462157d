"""The state of a request's sampling, and log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qtransformers.kernels import kernels_for
from qtransformers.sampling.definition import F32, F64, Ids, broken, pick, weights
from qtransformers.sampling.settings import Sampling


class Sampler:
    """A request's state: its settings and its random numbers, shared with nobody.

    `tokens` are the ids of prompt and answer so far, the first `n_prompt` of them the prompt's.
    """

    def __init__(self, sampling: Sampling, n_tokens: int) -> None:
        self.sampling = sampling
        self.n_tokens = n_tokens
        self._rng = np.random.Generator(np.random.PCG64(sampling.seed))

    def __call__(self, logits: F32, tokens: Sequence[int] | NDArray[np.int32] = (), n_prompt: int = 0) -> int:
        """The next token by its logits `[n_tokens]`, which it may change; QTransformersError when none of them is a number."""
        s = self.sampling
        u = self.uniform() if s.temperature else 0.0
        found = kernels_for(logits).sample(logits, s.temperature, s.top_k, s.top_p, s.min_p, u)
        if found < 0:
            raise broken(logits, -1 - found)
        return found

    def distribution(
        self, logits: F32, tokens: Sequence[int] | NDArray[np.int32] = (), n_prompt: int = 0
    ) -> tuple[Ids, F64]:
        """The ids that a call could give, rising, and their probabilities; draws nothing. It may change `logits`."""
        ids, w = weights(logits, self.sampling)
        return ids, w / w.sum()

    def uniform(self) -> float:
        """The request's next random number, in [0, 1)."""
        return float(self._rng.random())

    def draw(self, ids: Ids, p: F64) -> int:
        """One of `ids` by weights `p` that need not sum to 1."""
        return pick(ids, p, self.uniform())

    def accepted(self, token: int, p: float) -> None:
        """A token was taken from the last `distribution`, where its probability was `p`; calls know of their own."""

    @property
    def state(self) -> float:
        """What `restore` needs to come back to this point; the random numbers go on."""
        return 0.0

    def restore(self, state: float) -> None:
        """Forget what was taken since `state`."""


class Logprob(NamedTuple):
    """A token, its natural log-probability by the model alone, and the likeliest ids with theirs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def logprobs(logits: F32, token: int, n_top: int = 0) -> Logprob:
    """Log-softmax of the model's logits `[n]` at `token`, and the `n_top` likeliest, ties by id."""
    x = logits.astype(np.float64)
    top = x.max()
    x -= top + np.log(np.exp(x - top).sum())
    ids = np.argsort(-x, kind="stable")[:n_top]
    return Logprob(token, float(x[token]), tuple((int(i), float(x[i])) for i in ids))
