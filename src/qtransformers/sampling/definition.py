"""Choosing a token in plain NumPy: the definition, of which the kernels are a faster form.

What is in the race is one array: logits in float64 by token id, minus infinity for what is out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import QTransformersError
from qtransformers.sampling.settings import Sampling

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Ids = NDArray[np.int64]
MOST_PENALTY = 1e9  # of DRY: far beyond any logit, and finite


@dataclass(frozen=True)
class Breaks:
    """Where no repetition goes on: at these tokens, and at the end of these runs of tokens."""

    tokens: NDArray[np.bool_] | None = None  # [n_tokens]
    runs: tuple[tuple[int, ...], ...] = ()

    def limit(self, tokens: Sequence[int]) -> int:
        """How many tokens stand after the last run."""
        most = len(tokens)
        for run in self.runs:
            ends = (n for n in range(most) if n + len(run) <= len(tokens) and tuple(tokens[len(tokens) - n - len(run) : len(tokens) - n]) == run)  # fmt: skip
            most = min(most, next(ends, most))
        return most


# The logits of tokens that the settings name, then of those that the history holds


@dataclass(frozen=True)
class Named:
    """`logit_bias`, `allowed_tokens` and `banned_tokens` as arrays."""

    biased: Ids
    biases: F32
    allowed: Ids | None
    banned: Ids

    @classmethod
    def of(cls, s: Sampling) -> Named:
        """Those of `s`."""
        ids, values = zip(*s.logit_bias, strict=True) if s.logit_bias else ((), ())
        allowed = None if s.allowed_tokens is None else np.array(s.allowed_tokens, np.int64)
        return cls(np.array(ids, np.int64), np.array(values, np.float32), allowed, np.array(s.banned_tokens, np.int64))

    def change(self, logits: F32) -> None:
        """Add the biases; minus infinity for what is banned or not allowed."""
        if len(self.biased):
            logits[self.biased] += self.biases
        if self.allowed is not None:
            kept = logits[self.allowed]
            logits.fill(-np.inf)
            logits[self.allowed] = kept
        if len(self.banned):
            logits[self.banned] = -np.inf


def penalise(logits: F32, s: Sampling, tokens: Sequence[int], n_prompt: int) -> None:
    """Repetition penalty (arXiv:1909.05858, negative logits multiplied), then frequency and presence (OpenAI's)."""
    start = 0 if s.penalty_range < 0 else max(0, len(tokens) - s.penalty_range)
    for token in {int(t) for t in tokens[start:]}:
        count = sum(int(t) == token for t in tokens[max(start, n_prompt) :])
        x = float(logits[token])
        v = x / s.repetition_penalty if x > 0 else x * s.repetition_penalty
        v -= count * s.frequency_penalty + (count > 0) * s.presence_penalty
        logits[token] = _bounded(v) if math.isfinite(x) else v


def dry(logits: F32, s: Sampling, tokens: Sequence[int], breaks: Breaks = Breaks()) -> None:
    """Don't repeat yourself (oobabooga/text-generation-webui#5677): the longer a repetition, the dearer its next token."""
    h = [int(t) for t in (tokens if s.dry_range < 0 else tokens[max(0, len(tokens) - s.dry_range) :])]
    stops = set() if breaks.tokens is None else set(np.flatnonzero(breaks.tokens).tolist())
    limit = breaks.limit(tokens)
    longest: dict[int, int] = {}
    for i in range(len(h) - 1):  # the token at i is where the repetition ends, the one after it went on
        n = 0
        while n <= i and n < limit and h[i - n] == h[len(h) - 1 - n] and h[i - n] not in stops:
            n += 1
        if n >= s.dry_allowed_length and h[i + 1] not in stops:
            longest[h[i + 1]] = max(n, longest.get(h[i + 1], 0))
    for token, n in longest.items():
        try:
            penalty = s.dry_multiplier * math.pow(s.dry_base, n - s.dry_allowed_length)
        except OverflowError:
            penalty = MOST_PENALTY
        x = float(logits[token])
        logits[token] = _bounded(x - min(MOST_PENALTY, penalty)) if math.isfinite(x) else x


def _bounded(v: float) -> float:
    most = float(np.finfo(np.float32).max)
    return min(max(v, -most), most)


# What stays in the race


def _order(x: F64) -> Ids:
    """Who is in the race, likeliest first, ties by id."""
    order = np.argsort(-x, kind="stable")
    return order[: np.count_nonzero(x > -np.inf)]


def _log_z(x: F64) -> float:
    return float(x.max() + np.log(np.exp(x - x.max()).sum()))


def _entropy(x: F64) -> float:
    """Of the softmax, in nats."""
    log_p = x[x > -np.inf] - _log_z(x)
    return float(-(np.exp(log_p) * log_p).sum())


def _only(x: F64, ids: Ids) -> F64:
    left = np.full_like(x, -np.inf)
    left[ids] = x[ids]
    return left


def _until(x: F64, order: Ids, p: float) -> F64:
    """The beginning of an order whose probabilities reach `p`, the token that crosses it included."""
    reached = np.cumsum(np.exp(x[order] - _log_z(x))) >= p
    return _only(x, order[: int(np.argmax(reached)) + 1 if reached.any() else len(order)])


def _top_n_sigma(x: F64, s: Sampling, coin: float) -> F64:
    """Keep what is within so many standard deviations of the largest logit (arXiv:2411.07641)."""
    d = x[x > -np.inf] - x.max()
    return np.where(x >= x.max() - s.top_n_sigma * d.std(), x, -np.inf) if s.top_n_sigma else x


def _top_k(x: F64, s: Sampling, coin: float) -> F64:
    """Keep the `top_k` likeliest (arXiv:1805.04833)."""
    return _only(x, _order(x)[: s.top_k]) if s.top_k else x


def _typical_p(x: F64, s: Sampling, coin: float) -> F64:
    """Keep the tokens whose surprise is nearest to the entropy, until their probabilities reach `typical_p` (arXiv:2202.00666)."""
    if s.typical_p >= 1:
        return x
    d = np.where(x > -np.inf, x - x.max(), 0)
    p = np.exp(x - x.max())
    centre = x.max() + (p * d).sum() / p.sum()  # the expected logit: its surprise is the entropy
    with np.errstate(over="ignore"):
        far = np.abs(x - centre).astype(np.float32)
    return _until(x, np.argsort(far, kind="stable")[: np.count_nonzero(x > -np.inf)], s.typical_p)


def _top_p(x: F64, s: Sampling, coin: float) -> F64:
    """Keep the likeliest until their probabilities reach `top_p`, the token that crosses it included (arXiv:1904.09751)."""
    return _until(x, _order(x), s.top_p) if s.top_p < 1 else x


def _min_p(x: F64, s: Sampling, coin: float) -> F64:
    """Keep what is at least `min_p` times as likely as the likeliest (arXiv:2407.01082)."""
    return np.where(x >= x.max() + np.log(s.min_p), x, -np.inf) if s.min_p else x


def _xtc(x: F64, s: Sampling, coin: float) -> F64:
    """By chance, leave out all that reach the threshold but the least likely of them (oobabooga/text-generation-webui#6335)."""
    if coin >= s.xtc_probability:
        return x
    with np.errstate(divide="ignore"):
        above = np.flatnonzero((x >= np.log(s.xtc_threshold) + _log_z(x)) & (x > -np.inf))
    left = x.copy()
    left[above] = -np.inf
    if len(above):
        least = above[np.argmin(x[above])]  # of equals the first
        left[least] = x[least]
    return left


STAGES: tuple[Callable[[F64, Sampling, float], F64], ...] = (_top_n_sigma, _top_k, _typical_p, _top_p, _min_p, _xtc)


def temperature(x: F64, s: Sampling) -> float:
    """What logits are divided by: more where the model knows less, if it is dynamic."""
    if not s.dynatemp_range:
        return s.temperature
    n = np.count_nonzero(x > -np.inf)
    unclear = min(1.0, max(0.0, _entropy(x) / math.log(n))) if n > 1 else 0.0
    low = max(0.0, s.temperature - s.dynatemp_range)
    return low + (s.temperature + s.dynatemp_range - low) * unclear**s.dynatemp_exponent


def weights(logits: F32, s: Sampling, coin: float = 1.0, mu: float = 0.0) -> tuple[Ids, F64, float]:
    """The ids that can be drawn, rising; what their probabilities are proportional to; what part of the mass mirostat left."""
    best = int(np.argmax(logits))
    if not np.isfinite(logits[best]):  # argmax finds a NaN before any number
        raise broken(logits, best)
    if s.temperature == 0:
        return np.array([best]), np.ones(1), 1.0
    x = logits.astype(np.float64)
    for stage in STAGES:
        x = stage(x, s, coin)
    t = temperature(x, s)
    with np.errstate(
        over="ignore", divide="ignore", invalid="ignore"
    ):  # near zero the others' exponents are -inf, which is right
        y = np.where(x == x.max(), 0.0, (x - x.max()) * min(1 / t if t else np.inf, np.finfo(np.float64).max))
    w = np.where(y < -700, 0, np.exp(y))
    part = 1.0
    if s.mirostat_tau:  # arXiv:2007.14966, algorithm 2; the likeliest stays in any case
        z = w.sum()
        x[(y < math.log(z) - mu * math.log(2)) & (y < 0)] = -np.inf
        w[x == -np.inf] = 0
        part = w.sum() / z
    ids = np.flatnonzero(x > -np.inf)
    return ids, w[ids], part


def pick(ids: Ids, w: F64, u: float) -> int:
    """The id that `u` in [0, 1) draws: they divide [0, 1) among them by their weights `w`, in their order."""
    cumulative = np.cumsum(w)
    drawn = np.searchsorted(cumulative, u * cumulative[-1], side="right")
    return int(ids[min(drawn, np.flatnonzero(w)[-1])])


def draw(logits: F32, s: Sampling, u: float, coin: float = 1.0, mu: float = 0.0) -> int:
    """The token that `u` in [0, 1) draws."""
    return pick(*weights(logits, s, coin, mu)[:2], u)


def logprobs(logits: F32, token: int, n_top: int) -> tuple[float, Ids, F64]:
    """Log-softmax at `token`, and the ids and values of the `n_top` largest, ties by id."""
    x = logits.astype(np.float64)
    log_p = x - _log_z(x)
    ids = _order(x)[:n_top]
    return float(log_p[token]), ids, log_p[ids]


def broken(logits: F32, token: int) -> QTransformersError:
    """The error for a logit that is no finite number."""
    return QTransformersError(
        f"the model's logits hold {logits[token]} at token {token}. The weights are damaged, or a kernel is wrong: "
        "try cache='f32', and compare the file's checksum."
    )
