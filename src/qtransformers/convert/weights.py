"""Weights on their way into a file: which rows, which bytes, a slab at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qtransformers.convert.sources import Lying, Rows, Source, Values, matrix_shape
from qtransformers.errors import LoadError
from qtransformers.quants import quantize
from qtransformers.types import QuantType

SLAB = 64 << 20  # bytes of f32 in flight


def encoded(
    source: Source,
    to: QuantType,
    order: NDArray[np.intp] | None = None,
    importance: Values | None = None,
    force: bool = False,
) -> Iterator[NDArray[np.uint8]]:
    """The bytes of a tensor in type `to`, slab by slab of whole rows; `order` permutes the rows.

    `importance` is `[width]`, or `[n_matrices, width]` with a row for each of as many equal parts of the tensor. LoadError for a
    value that is not finite, or becomes so in F16; with `force` it becomes 0, with a warning.
    """
    n, width = (len(order) if order is not None else matrix_shape(source.shape)[0]), matrix_shape(source.shape)[1]
    parts = 1 if importance is None or importance.ndim == 1 else len(importance)
    each, zeroed = n // parts, 0
    step = max(1, SLAB // (4 * max(1, width)))
    for part in range(parts):
        weights = importance if importance is None or importance.ndim == 1 else importance[part]
        for start in range(part * each, (part + 1) * each, step):
            stop = min(start + step, (part + 1) * each)
            rows: Rows = slice(start, stop) if order is None else order[start:stop]
            if order is None:
                expect(source, slice(stop, stop + step))
            raw = source.blocks(rows, to)
            if raw is None or to.family == "float":  # blocks are as good as their file; plain floats are looked at
                values = source.rows(rows)
                bad = not_finite(values, source, start, force)
                zeroed += bad
                raw = _bytes(values, to, weights, source) if raw is None or bad else raw
            yield raw
            source.forget(rows)
    source.forget()
    if zeroed:
        warnings.warn(
            f"{source.file}: {source.name}: {zeroed} values that are not finite are written as 0", stacklevel=2
        )


def first_rows(source: Source) -> slice:
    """Rows of the first slab."""
    return slice(0, max(1, SLAB // (4 * max(1, matrix_shape(source.shape)[1]))))


def expect(source: Source, rows: slice) -> None:
    """Have rows read from disk while others are worked on, where they lie together in a file."""
    if isinstance(source, Lying):
        source.expect(rows)


def _bytes(values: Values, to: QuantType, importance: Values | None, source: Source) -> NDArray[np.uint8]:
    out = quantize(values, to, importance=importance) if to.is_quantized else quantize(values.reshape(-1), to)
    if to.name == "F16":
        check_finite(out.view(np.float16), source, " in F16. Convert to BF16 or F32")
    return out


def not_finite(values: Values, source: Source, first_row: int, force: bool) -> int:
    """How many values are not finite, which become 0 with `force`; LoadError naming the first without."""
    bad = ~np.isfinite(values)
    count = int(np.count_nonzero(bad))
    if count and not force:
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise LoadError(
            f"{source.file}: {source.name} holds {values[row, column]} in row {first_row + row}, column {column} ({count} such values "
            "there and nearby). The checkpoint is damaged: download it again, or write zeros instead with --force."
        )
    if count:
        values[bad] = 0
    return count


def check_finite(values: NDArray[np.floating], source: Source, remedy: str) -> None:
    """LoadError when a value is NaN or infinite."""
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise LoadError(f"{source.file}: {source.name} holds {values[bad[0]]}{remedy}.")
