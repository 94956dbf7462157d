"""Choosing a token in plain NumPy: the definition, of which the kernels are a faster form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import QTransformersError
from qtransformers.sampling.settings import Sampling

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Ids = NDArray[np.int64]


@dataclass
class Candidates:
    """Tokens still in the race, likeliest first and ties by id; in the order of ids where no stage cuts."""

    ids: Ids  # [n]
    logits: F64  # [n]
    log_z: float | None = None  # log of the sum of exp(logit) of all in the race, where these are only its head

    @property
    def probabilities(self) -> F64:
        """Softmax over the tokens in the race."""
        return np.exp(self.logits - (_log_sum_exp(self.logits) if self.log_z is None else self.log_z))


def weights(logits: F32, s: Sampling) -> tuple[Ids, F64]:
    """The ids that can be drawn, rising, and what their probabilities are proportional to."""
    best = int(np.argmax(logits))
    if not np.isfinite(logits[best]):  # argmax finds a NaN before any number
        raise broken(logits, best)
    if s.temperature == 0:
        return np.array([best]), np.ones(1)
    candidates = _head(logits, s)
    for stage in STAGES:
        candidates = stage(candidates, s)
    order = np.argsort(candidates.ids)
    with np.errstate(over="ignore"):  # near zero the others' exponents are -inf, which is right
        x = (candidates.logits[order] - candidates.logits.max()) / s.temperature
    return candidates.ids[order], np.where(x < -700, 0, np.exp(x))


def pick(ids: Ids, p: F64, u: float) -> int:
    """The id that `u` in [0, 1) draws: they divide [0, 1) among them by their probabilities `p`, in their order."""
    cumulative = np.cumsum(p)
    return int(ids[min(int(np.searchsorted(cumulative, u * cumulative[-1], side="right")), len(p) - 1)])


def draw(logits: F32, s: Sampling, u: float) -> int:
    """The token that `u` in [0, 1) draws."""
    return pick(*weights(logits, s), u)


def broken(logits: F32, token: int) -> QTransformersError:
    """The error for a logit that is no finite number."""
    return QTransformersError(
        f"the model's logits hold {logits[token]} at token {token}. The weights are damaged, or a kernel is wrong: "
        "try cache='f32', and compare the file's checksum."
    )


def _top_k(c: Candidates, s: Sampling) -> Candidates:
    """Keep the `top_k` likeliest."""
    if not s.top_k:
        return c
    return Candidates(c.ids[: s.top_k], c.logits[: s.top_k])


def _top_p(c: Candidates, s: Sampling) -> Candidates:
    """Keep the likeliest until their probabilities reach `top_p`, the token that crosses it included (arXiv:1904.09751)."""
    if s.top_p >= 1:
        return c
    reached = np.cumsum(c.probabilities) >= s.top_p
    n = int(np.argmax(reached)) + 1 if reached.any() else len(c.ids)
    return Candidates(c.ids[:n], c.logits[:n], c.log_z)


def _min_p(c: Candidates, s: Sampling) -> Candidates:
    """Keep what is at least `min_p` times as likely as the likeliest (arXiv:2407.01082)."""
    if s.min_p <= 0:
        return c
    n = int(np.count_nonzero(c.logits >= c.logits[0] + np.log(s.min_p)))
    return Candidates(c.ids[:n], c.logits[:n], c.log_z)


STAGES: tuple[Callable[[Candidates, Sampling], Candidates], ...] = (_top_k, _top_p, _min_p)


def _head(logits: F32, s: Sampling) -> Candidates:
    """The tokens that can survive the stages, sorted; sorting a whole vocabulary of 150,000 would cost milliseconds."""
    if s.top_k:
        return _sorted(_largest(logits, s.top_k), logits)
    if s.top_p < 1:
        log_z = _log_sum_exp(logits.astype(np.float64))
        n = 256
        while n < len(logits):
            head = _sorted(_largest(logits, n), logits, log_z)
            if head.probabilities.sum() >= s.top_p:
                return head
            n *= 8
        return _sorted(np.arange(len(logits)), logits, log_z)
    if s.min_p > 0:
        return _sorted(np.flatnonzero(logits >= logits.max() + np.log(s.min_p)), logits)
    return Candidates(np.arange(len(logits)), logits.astype(np.float64))  # nothing to cut, so nothing to sort


def _largest(x: F32, n: int) -> Ids:
    """Indices of the `n` largest of `x`, in order; among equals at the edge the first."""
    if n >= len(x):
        return np.arange(len(x))
    edge = np.partition(x, len(x) - n)[len(x) - n]
    above = np.flatnonzero(x > edge)
    return np.sort(np.concatenate([above, np.flatnonzero(x == edge)[: n - len(above)]]))


def _sorted(ids: Ids, logits: F32, log_z: float | None = None) -> Candidates:
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    return Candidates(ids, logits[ids].astype(np.float64), log_z)


def _log_sum_exp(x: F64) -> float:
    top = x.max()
    return float(top + np.log(np.exp(x - top).sum()))
