"""How good a model is: perplexity on a text, how far its predictions are from another's, how far its tensors are.

Perplexity is computed as llama-perplexity does: disjoint chunks of 512 tokens, of which the second half is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import ConfigError
from qtransformers.kernels.cpu import Pool
from qtransformers.machine import usable_cores
from qtransformers.quantize.passes import CHUNK, Ints, logits, new_cache, side_by_side, slices, text_chunks
from qtransformers.settings import Settings
from qtransformers.tensor import QTensor

if TYPE_CHECKING:
    from qtransformers.load import Loaded

F64 = NDArray[np.float64]
Progress = Callable[[int, int], None]
LOGITS_BYTES = 64 << 20  # of logits in memory at a time, for each of two models


@dataclass(frozen=True)
class Perplexity:
    """Of a text, with the standard error of the mean over its scored tokens."""

    nats: float  # a token
    error: float  # of `nats`
    n_tokens: int  # scored

    @property
    def value(self) -> float:
        """exp(nats)."""
        return float(np.exp(self.nats))

    @property
    def value_error(self) -> float:
        """Standard error of `value`, to first order."""
        return self.value * self.error


@dataclass(frozen=True)
class Divergence:
    """How a model's predictions differ from a base model's. Kullback-Leibler divergences KL(base || model) in nats a token."""

    mean: float
    error: float  # standard error of the mean
    median: float
    p99_9: float
    largest: float
    same_top: float  # part of the tokens at which both have the same favourite
    rms_dp: float  # root mean square change of the probability of the text's own next token
    log_ratio: float  # of the perplexities, model over base
    log_ratio_error: float  # its standard error, token by token (paired)
    model: Perplexity
    base: Perplexity
    each: F64 = field(repr=False, compare=False)  # of every scored token

    def against(self, other: Divergence) -> tuple[float, float]:
        """How much more than another model's on the same text the mean is, and the standard error of that, token by token (paired)."""
        more = self.each - other.each
        return float(more.mean()), _error(more)


def perplexity(model: Loaded, text: str, *, chunk: int = CHUNK, encode_special: bool = False, n_chunks: int | None = None, progress: Progress | None = None) -> Perplexity:  # fmt: skip
    """Of a language model on `text`, in chunks of `chunk` tokens, at most `n_chunks` of them.

    ConfigError where the text has fewer than two chunks, or the model is an encoder.
    """
    rows = _rows(model, text, chunk, encode_special, n_chunks)
    surprise = [-_own(log_p, targets) for log_p, targets in _scored(model, rows, progress)]
    return _perplexity(np.concatenate(surprise))


def divergence(model: Loaded, base: Loaded, text: str, *, chunk: int = CHUNK, encode_special: bool = False, n_chunks: int | None = None, progress: Progress | None = None) -> Divergence:  # fmt: skip
    """Of `model` from `base` on `text`. Both run side by side; logits of a few chunks are in memory at a time.

    ConfigError where they have different vocabularies.
    """
    (found,) = divergences(
        [model], base, text, chunk=chunk, encode_special=encode_special, n_chunks=n_chunks, progress=progress
    )
    return found


def divergences(models: Sequence[Loaded], base: Loaded, text: str, *, chunk: int = CHUNK, encode_special: bool = False, n_chunks: int | None = None, progress: Progress | None = None) -> list[Divergence]:  # fmt: skip
    """As `divergence`, of several models from one base, which runs once."""
    rows = _rows(base, text, chunk, encode_special, n_chunks)
    for model in models:
        if not np.array_equal(rows, _rows(model, text, chunk, encode_special, n_chunks)):
            raise ConfigError(f"{model.plan.file} and {base.plan.file} make different tokens of the text: they are no two forms of one model.")  # fmt: skip
    parts: list[list[tuple[F64, ...]]] = [[] for _ in models]
    for (p, targets), *others in zip(_scored(base, rows, progress), *(_scored(m, rows) for m in models), strict=True):
        weight, of_p, favourite = np.exp(p), _own(p, targets), p.argmax(1)
        for model, mine, (q, _) in zip(models, parts, others, strict=True):
            if p.shape != q.shape:
                raise ConfigError(f"{model.plan.file} has {q.shape[-1]} logits, {base.plan.file} {p.shape[-1]}: they are no two forms of one model.")  # fmt: skip
            kl = np.einsum("tv,tv->t", weight, p - q, dtype=np.float64)
            mine.append((kl, _own(q, targets), of_p, (favourite == q.argmax(1)).astype(np.float64)))
    return [_divergence(*map(np.concatenate, zip(*mine, strict=True))) for mine in parts]


def _divergence(kl: F64, of_q: F64, of_p: F64, same: F64) -> Divergence:
    ratio = of_p - of_q
    return Divergence(
        mean=float(kl.mean()), error=_error(kl), median=float(np.median(kl)), p99_9=float(np.quantile(kl, 0.999)),
        largest=float(kl.max()), same_top=float(same.mean()), rms_dp=float(np.sqrt(np.mean((np.exp(of_q) - np.exp(of_p)) ** 2))),
        log_ratio=float(ratio.mean()), log_ratio_error=_error(ratio), model=_perplexity(-of_q), base=_perplexity(-of_p), each=kl,
    )  # fmt: skip


def _rows(model: Loaded, text: str, chunk: int, encode_special: bool, n_chunks: int | None) -> Ints:
    if model.spec.kind != "language":
        raise ConfigError(f"{model.plan.file} is an encoder ({model.plan.architecture}); perplexity is of language models.")  # fmt: skip
    if not 4 <= chunk <= model.plan.context_length:
        raise ConfigError(f"chunk={chunk}; expected 4 to {model.plan.context_length} tokens (context_length).")
    rows = text_chunks(model.tokenizer, text, chunk, encode_special)
    return rows if n_chunks is None else rows[:n_chunks]


def _scored(model: Loaded, rows: Ints, progress: Progress | None = None) -> Iterator[tuple[NDArray[np.float32], Ints]]:
    """Log-probabilities `[R, vocab_size]` of the tokens scored, and which came `[R]`, some chunks at a time."""
    n = rows.shape[1]
    first = n // 2
    at_once = max(1, LOGITS_BYTES // (4 * (n - first) * model.hparams["vocab_size"]))
    at_once = min(at_once, max(1, 4 * CHUNK // n))
    cache = new_cache(model, at_once, n)
    pool = Pool(Settings.from_env().threads or usable_cores(), Settings.from_env().isa or "")
    for part in slices(len(rows), at_once):
        with pool:
            found = logits(model, side_by_side(rows[part], slice(first, n - 1)), cache)
        found -= found.max(1, keepdims=True)
        found -= np.log(np.exp(found).sum(1, dtype=np.float64, keepdims=True)).astype(np.float32)
        if progress:
            progress(part.stop, len(rows))
        yield found, np.ascontiguousarray(rows[part, first + 1 :]).reshape(-1)


def _own(log_p: NDArray[np.float32], targets: Ints) -> F64:
    return log_p[np.arange(len(targets)), targets].astype(np.float64)


def _perplexity(surprise: F64) -> Perplexity:
    return Perplexity(float(surprise.mean()), _error(surprise), len(surprise))


def _error(values: F64) -> float:
    return float(values.std() / np.sqrt(max(1, len(values) - 1)))


@dataclass(frozen=True)
class Difference:
    """How a tensor of one file differs from its namesake in another, which counts as the truth."""

    name: str
    types: tuple[str, str]  # ours, the other's
    shape: tuple[int, ...]
    bits: tuple[float, float]  # a weight
    rmse: float
    relative: float  # rmse over the root mean square of the other's values
    largest: float  # largest absolute difference

    @property
    def sqnr(self) -> float:
        """Signal to quantisation noise in decibels; infinite for equal tensors."""
        return float("inf") if self.relative == 0 else float(-20 * np.log10(self.relative))


def compare(ours: Mapping[str, QTensor], theirs: Mapping[str, QTensor]) -> Iterator[Difference]:
    """Each tensor that both files have, in the order of the first. ConfigError where shapes differ."""
    for name, a in ours.items():
        b = theirs.get(name)
        if b is None or a.type.family == "int" or b.type.family == "int":
            continue
        if a.shape != b.shape:
            raise ConfigError(f"{name} is {list(a.shape)} in {a.file} and {list(b.shape)} in {b.file}: they are no two forms of one model.")  # fmt: skip
        yield _difference(a, b)


def _difference(a: QTensor, b: QTensor) -> Difference:
    step = max(1, (1 << 22) // max(1, a.shape[-1] if a.shape else 1))
    power = noise = largest = 0.0
    for part in slices(a.n_rows, step):
        x, y = (t.rows(part.start, part.stop).astype(np.float64) for t in (a, b))
        noise += float(np.square(x - y).sum())
        power += float(np.square(y).sum())
        largest = max(largest, float(np.abs(x - y).max(initial=0)))
    n = max(1, a.n_values)
    relative = (noise / power) ** 0.5 if power else (0.0 if noise == 0 else float("inf"))
    return Difference(
        a.name, (a.type.name, b.type.name), a.shape, (8 * a.nbytes / n, 8 * b.nbytes / n), (noise / n) ** 0.5, relative, largest
    )  # fmt: skip
