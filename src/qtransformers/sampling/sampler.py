"""The state of a request's sampling, and log-probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from qtransformers.checks import whole
from qtransformers.errors import ConfigError, QTransformersError
from qtransformers.kernels import kernels_for
from qtransformers.sampling.definition import F32, F64, Breaks, Ids, Named, broken, pick
from qtransformers.sampling.settings import Sampling

History = Sequence[int] | NDArray[np.int32]
STAGE_FIELDS = (
    "temperature", "top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc_probability", "xtc_threshold", "dynatemp_range", "dynatemp_exponent"
)  # fmt: skip
NAMING_TOKENS = ("logit_bias", "banned_tokens", "allowed_tokens")
EVERYTHING = 2**63 - 1
UNSURE = 1e-5  # of probability: sums in another order may fall on the other side of top-p


class Sampler:
    """A request's state: its settings, its random numbers and mirostat's bound, shared with nobody.

    A row of logits `[n_tokens]` is the caller's to give: it may be changed. `tokens` are the ids of prompt and answer so far,
    the first `n_prompt` of them the prompt's. `breaks` (see `breaks_of`) is what `dry_breakers` mean to the tokenizer.
    ConfigError for a token that there is not, or none that may be drawn.
    """

    def __init__(self, sampling: Sampling, n_tokens: int, breaks: Breaks | None = None) -> None:
        from qtransformers.kernels.cpu import Stages  # the extension

        s = self.sampling = sampling
        self.n_tokens = n_tokens
        _check_ids(s, n_tokens)
        if s.dry_multiplier and s.dry_breakers and breaks is None:
            raise ConfigError("dry_breakers are texts, and this sampler was not told the tokens of them (breaks). Give it breaks_of(...), or set dry_breakers=().")  # fmt: skip
        self._breaks = breaks if breaks is not None and s.dry_breakers else Breaks()
        self._penalises = bool(s.repetition_penalty != 1 or s.frequency_penalty or s.presence_penalty)
        self._named = Named.of(s)
        self._edits = self._penalises or bool(s.dry_multiplier or any(getattr(s, name) for name in NAMING_TOKENS))
        self._stages, self._after_top_p = (
            Stages(*(getattr(t, name) for name in STAGE_FIELDS), mirostat=bool(t.mirostat_tau))
            for t in (s, replace(s, top_p=1.0))
        )
        self._rng = np.random.Generator(np.random.PCG64(s.seed))
        self._mu = 2 * s.mirostat_tau
        self._part = 1.0  # of the mass that mirostat left of the last distribution

    def __call__(self, logits: F32, tokens: History = (), n_prompt: int = 0) -> int:
        """The next token; QTransformersError when a logit is NaN or infinite, or none is above minus infinity."""
        return self._sampled(self._edited(logits, tokens, n_prompt), self._stages)

    def among(self, logits: F32, total: float) -> int:
        """A call on the largest of a row's logits alone, where `total` is the logarithm of the sum of all their exponentials.

        The number of one of them; -1, and nothing is drawn, where it takes all logits to say which may be drawn.
        """
        s = self.sampling
        if not self.cuts:
            return -1
        order = np.argsort(-logits, kind="stable")  # ties by id, as ids rise
        p = np.exp(logits[order].astype(np.float64) - total)
        if s.top_p < 1:
            sums = np.cumsum(p)
            n = int(np.searchsorted(sums, s.top_p)) + 1
            if n >= len(p) or np.abs(sums - s.top_p).min() < UNSURE:
                return -1
        else:
            n = len(p)
            if not p[-1] < s.min_p * p[0]:
                return -1
        kept = np.sort(order[:n])
        return int(kept[self._sampled(np.ascontiguousarray(logits[kept]), self._after_top_p)])

    def _sampled(self, logits: F32, stages: Any) -> int:
        s = self.sampling
        coin = self.uniform() if s.temperature and s.xtc_probability else 1.0
        u = self.uniform() if s.temperature else 0.0
        token, bits = kernels_for(logits).sample(logits, stages, u, coin, self._mu)
        if token < 0:
            raise self._nothing(logits, -1 - token)
        if s.mirostat_tau and s.temperature:
            self._mu -= s.mirostat_eta * (bits - s.mirostat_tau)
        return token

    @property
    def greedy(self) -> bool:
        """Whether a call gives the largest logit's id, whatever came before."""
        return not (self.sampling.temperature or self._edits)

    @property
    def n_candidates(self) -> int:
        """How many of the largest logits a call looks at; 0: all of them, or they change before."""
        s = self.sampling
        return 0 if self._edits or s.mirostat_tau or s.top_n_sigma else s.top_k

    @property
    def cuts(self) -> bool:
        """Whether a call gives one of the likeliest by their probabilities alone: `among` may do then."""
        s = self.sampling
        whole = self._edits or s.mirostat_tau or s.top_n_sigma or s.typical_p < 1 or s.top_k
        return bool(s.temperature and not whole and (s.top_p < 1 or s.min_p))

    def distribution(self, logits: F32, tokens: History = (), n_prompt: int = 0) -> tuple[Ids, F64]:
        """The ids that a call could give, rising, and their probabilities; draws nothing. XTC's chance is part of them."""
        logits = self._edited(logits, tokens, n_prompt)
        chance = self.sampling.xtc_probability if self.sampling.temperature else 0.0
        kernel = kernels_for(logits).distribution
        ids, p, self._part = kernel(logits, self._stages, 0.0 if chance == 1 else 1.0, self._mu)
        if ids[0] < 0:
            raise self._nothing(logits, -1 - int(ids[0]))
        if 0 < chance < 1:
            fewer, of_fewer, _ = kernel(logits, self._stages, 0.0, self._mu)
            p *= 1 - chance
            p[np.searchsorted(ids, fewer)] += chance * of_fewer
        return ids, p

    def accepted(self, token: int, p: float) -> None:
        """A token was taken by the last `distribution`, where its probability was `p`. Calls know of their own tokens."""
        s = self.sampling
        if s.mirostat_tau and s.temperature:
            self._mu -= s.mirostat_eta * (-np.log2(p * self._part) - s.mirostat_tau)

    def uniform(self) -> float:
        """The request's next random number, in [0, 1)."""
        return float(self._rng.random())

    def draw(self, ids: Ids, p: F64) -> int:
        """One of `ids` by weights `p`, which need not sum to 1."""
        return pick(ids, p, self.uniform())

    @property
    def state(self) -> float:
        """What `restore` needs to come back to this point. Random numbers go on, penalties depend on the history alone."""
        return self._mu

    def restore(self, state: float) -> None:
        """Forget the tokens taken since `state` was asked for."""
        self._mu = state

    def _edited(self, logits: F32, tokens: History, n_prompt: int) -> F32:
        s = self.sampling
        if not self._edits:
            return logits
        logits = np.require(logits, np.float32, ["C", "W"])
        self._named.change(logits)
        if not self._penalises and not s.dry_multiplier:
            return logits
        history = np.ascontiguousarray(tokens, np.int32)
        kernels = kernels_for(logits)
        if self._penalises:
            width = EVERYTHING if s.penalty_range < 0 else s.penalty_range
            kernels.penalise(
                logits, history, n_prompt, width, s.repetition_penalty, s.frequency_penalty, s.presence_penalty
            )
        if s.dry_multiplier:
            limit = self._breaks.limit(history.tolist()) if self._breaks.runs else EVERYTHING
            width = EVERYTHING if s.dry_range < 0 else s.dry_range
            kernels.dry(
                logits, history, self._breaks.tokens, limit, width, s.dry_multiplier, s.dry_base, s.dry_allowed_length
            )
        return logits

    def _nothing(self, logits: F32, token: int) -> QTransformersError:
        named = [name for name in NAMING_TOKENS if getattr(self.sampling, name)]
        if named and logits[token] == -np.inf:
            return ConfigError(
                f"{' and '.join(named)} leave no token to draw here: all the others are impossible as well."
            )
        return broken(logits, token)


def _check_ids(s: Sampling, n_tokens: int) -> None:
    named = {"logit_bias": [id for id, _ in s.logit_bias], "banned_tokens": s.banned_tokens, "allowed_tokens": s.allowed_tokens}  # fmt: skip
    for name, ids in named.items():
        id = max(ids or (-1,))
        if id >= n_tokens:
            raise ConfigError(f"{name} names token {id}; expected ids below {n_tokens}, the size of the vocabulary.")
    left = n_tokens - len(s.banned_tokens) if s.allowed_tokens is None else len({*s.allowed_tokens} - {*s.banned_tokens})  # fmt: skip
    if not left:
        which = "allowed_tokens" if s.allowed_tokens else f"{n_tokens} tokens of the vocabulary"
        raise ConfigError(f"banned_tokens leave none of the {which}. Ban fewer.")


class Vocabulary(Protocol):
    """What `breaks_of` asks of a tokenizer."""

    n_tokens: int

    def token_bytes(self, i: int, /) -> bytes:
        """The bytes of a token."""

    def encode(self, text: str, add_bos: bool | None = None, /) -> list[int]:
        """The ids of a text."""


def breaks_of(texts: Iterable[str], vocabulary: Vocabulary) -> Breaks:
    """Where `dry_breakers` stand: tokens that hold one of the texts, and runs of tokens for a text that none holds.

    It reads the whole vocabulary (0.1 s for 150,000 tokens), so keep what it gives.
    """
    wanted = {text: text.encode() for text in texts}
    tokens = np.zeros(vocabulary.n_tokens, np.bool_)
    found = set()
    for i in range(vocabulary.n_tokens):
        piece = vocabulary.token_bytes(i)
        held = [text for text, b in wanted.items() if b in piece]
        tokens[i] = bool(held)
        found.update(held)
    runs = (tuple(vocabulary.encode(text, False)) for text in wanted if text not in found)
    return Breaks(tokens, tuple(run for run in runs if run))


class Logprob(NamedTuple):
    """A token, its natural log-probability by the model alone, and the likeliest ids with theirs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def logprobs(logits: F32, token: int, n_top: int = 0) -> Logprob:
    """Log-softmax of the model's logits `[n]` at `token`, and the `n_top` likeliest, ties by id.

    ConfigError for a token or count out of range, QTransformersError where a logit is NaN or infinite.
    """
    n = len(logits)
    token = whole("token", token, 0, n - 1)
    value, ids, values = kernels_for(logits).logprobs(logits, token, whole("n_top", n_top, 0, n))
    if len(ids) and ids[0] < 0:
        raise broken(logits, -1 - int(ids[0]))
    return Logprob(token, value, tuple(zip(ids.tolist(), values.tolist(), strict=True)))
