"""Choosing the next token from logits.

Order, as llama.cpp's: top_k, top_p, min_p, temperature, draw. So the cuts are made on the model's own probabilities, and
temperature only shapes what is left of them. A temperature of 0 is greedy: the largest logit, ties to the smallest id.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.checks import flag, real, whole
from qtransformers.errors import ConfigError, QTransformersError
from qtransformers.kernels import kernels_for

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. The defaults are neutral: draw from the model's own distribution.

    ConfigError naming the field for a value of the wrong type or out of range.
    """

    temperature: float = 1.0  # 0 is greedy; below 1 sharper, above flatter
    top_k: int = 0  # only the k likeliest tokens; 0 is off
    top_p: float = (
        1.0  # the fewest likeliest tokens whose probabilities reach p, the one that crosses included; 1 is off
    )
    min_p: float = 0.0  # only tokens at least min_p times as likely as the likeliest; 0 is off
    seed: int | None = None  # the same seed gives the same tokens; None: another one each time

    def __post_init__(self) -> None:
        real("temperature", self.temperature, 0, 100)
        whole("top_k", self.top_k, 0, 2**31 - 1)
        real("top_p", self.top_p, 0, 1)
        real("min_p", self.min_p, 0, 1)
        if self.seed is not None:
            whole("seed", self.seed, 0, 2**64 - 1)

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any]) -> Sampling:
        """What a `generation_config.json` says: its fields over the neutral defaults; `do_sample: false` is greedy."""
        names = {field.name for field in fields(cls)} - {"seed"}
        given = {name: value for name, value in config.items() if name in names and value is not None}
        try:
            if config.get("do_sample") is not None and not flag("do_sample", config["do_sample"]):
                given["temperature"] = 0.0
            return cls(**given)
        except ConfigError as e:
            raise ConfigError(f"generation_config: {e}") from None

    def override(self, **given: Any) -> Sampling:
        """These settings with the ones that are not None replaced; TypeError for a name that is no field."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})


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


class Sampler:
    """A request's state: its settings and its random numbers, shared with nobody."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.rng = np.random.Generator(np.random.PCG64(sampling.seed))

    def __call__(self, logits: F32) -> int:
        """The next token by its logits `[n_tokens]`; QTransformersError when none of them is a number."""
        s = self.sampling
        u = self.rng.random() if s.temperature else 0.0
        found = kernels_for(logits).sample(logits, s.temperature, s.top_k, s.top_p, s.min_p, u)
        if found < 0:
            raise _broken(logits, -1 - found)
        return found


def draw(logits: F32, s: Sampling, u: float) -> int:
    """The token that `u` in [0, 1) draws: the definition, of which the kernels are a faster form.

    The tokens that the stages leave divide [0, 1) among them by their probabilities, in the order of their ids.
    """
    best = int(np.argmax(logits))
    if not np.isfinite(logits[best]):  # argmax finds a NaN before any number
        raise _broken(logits, best)
    if s.temperature == 0:
        return best
    candidates = _head(logits, s)
    for stage in STAGES:
        candidates = stage(candidates, s)
    order = np.argsort(candidates.ids)
    with np.errstate(over="ignore"):  # near zero the others' exponents are -inf, which is right
        x = (candidates.logits[order] - candidates.logits.max()) / s.temperature
    p = np.where(x < -700, 0, np.exp(x))
    cumulative = np.cumsum(p)
    drawn = np.searchsorted(cumulative, u * cumulative[-1], side="right")
    return int(candidates.ids[order][min(drawn, len(p) - 1)])


def _broken(logits: F32, token: int) -> QTransformersError:
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
