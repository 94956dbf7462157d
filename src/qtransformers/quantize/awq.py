"""Scales for columns that matter, searched against the types the weights will have (AWQ, arXiv:2306.00978).

Columns that meet loud inputs are enlarged before rounding, and what makes those inputs is made smaller alike (folds.py). How much is
tried out: `s = x^a`, or `x^a / w^(1 - a)`, of how loud inputs x and weights w are, and no scales at all. What counts is the error of
the products over the inputs seen, with weights encoded as they will be stored, importance included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qtransformers.quants import dequantize, quantize
from qtransformers.types import QuantType

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
STEPS = 10  # exponents tried, of each form
SAMPLE = 1 << 19  # values of a weight that are tried,
ROWS = 512  # in at most so many rows: each costs the square of its width
LEAST = 1e-4  # of a scale before it is centred


@dataclass(frozen=True, eq=False)
class Candidate:
    """A weight that reads what is scaled: its values `[out, in]`, the type it will have, and which scale each column has."""

    values: F32
    type: QuantType
    index: NDArray[np.intp] | None = None
    product: F64 | None = None  # the mean of x x^T over its inputs, where each reader has its own


def search(readers: Sequence[Candidate], n: int, product: F64 | None, size: F64) -> F32:
    """The best scales `[n]` for weights that read the same inputs, of which `product [in, in]` is the mean of x x^T, `size [in]` that of |x|.

    `product` None: each reader has its own, and `size [n]` is that of the scales.

    Ones where no scales are better than none. Each reader's error counts relative to what it is without scales.
    """
    sampled = [_sampled(reader) for reader in readers if reader.type.is_quantized]
    if not sampled:
        return np.ones(n, np.float32)
    inputs = [(product if reader.product is None else reader.product) for reader in sampled]
    known = [h.astype(np.float32) for h in inputs if h is not None]
    plain = [_error(reader, np.ones(n, np.float32), h) for reader, h in zip(sampled, known, strict=True)]
    best, least = np.ones(n, np.float32), float(sum(e > 0 for e in plain))
    for s in candidates(sampled, n, size):
        total = sum(_error(reader, s, h) / e for reader, h, e in zip(sampled, known, plain, strict=True) if e > 0)
        if total < least:
            best, least = s, total
    return best


def candidates(readers: Sequence[Candidate], n: int, size: F64) -> Iterator[F32]:
    """Scales to try, their extremes as far above 1 as below."""
    x = size if len(size) == n else by_scale(size, readers[0].index, n)
    w = np.mean([by_scale(_loudness(reader), reader.index, n) for reader in readers], 0)
    for i in range(STEPS + 1):
        a = i / STEPS
        for s in (x**a, x**a / (w ** (1 - a) + LEAST)):
            s = np.maximum(s, LEAST)
            s = s / np.sqrt(s.max() * s.min())
            if np.isfinite(s).all():
                yield s.astype(np.float32)


def _sampled(reader: Candidate) -> Candidate:
    step = -(-len(reader.values) // max(1, min(ROWS, SAMPLE // reader.values.shape[1])))
    return replace(reader, values=np.ascontiguousarray(reader.values[::step]))


def _loudness(reader: Candidate) -> F64:
    """How large the weights of each column are in their blocks, `[in]`."""
    block = reader.type.block_size
    size = np.abs(reader.values).astype(np.float64)
    blocks = size.reshape(len(size), -1, block)
    loud: F64 = (blocks / np.maximum(blocks.max(-1, keepdims=True), 1e-12)).reshape(size.shape).mean(0)
    return loud


def by_scale(columns: F64, index: NDArray[np.intp] | None, n: int) -> F64:
    """Means over the columns that share a scale, `[n]`."""
    if index is None:
        return columns
    return np.bincount(index, columns, n) / np.maximum(1, np.bincount(index, minlength=n))


def _error(reader: Candidate, s: F32, h: F32) -> float:
    """Of the product over the inputs, with the weights scaled, encoded and scaled back."""
    columns = s if reader.index is None else s[reader.index]
    importance = np.maximum(h.diagonal() / np.square(columns), 0)
    scaled = np.ascontiguousarray(reader.values * columns)
    back = dequantize(
        quantize(scaled, reader.type, importance=np.ascontiguousarray(importance, np.float32)), reader.type
    )
    off = back.reshape(scaled.shape) / columns - reader.values
    return float(np.einsum("oi,oi->", off @ h, off, dtype=np.float64))
