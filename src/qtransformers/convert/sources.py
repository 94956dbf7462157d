"""Where a tensor's values come from: rows of a file as they lie, or as a function changes them.

A source is a matrix `[n_rows, width]`, whatever its shape: of a vector the values are the rows, so that a bias can be
reordered like the rows of its matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qtransformers import machine
from qtransformers.load.checkpoint import Stored
from qtransformers.quants import dequantize
from qtransformers.tensor import QTensor
from qtransformers.types import QuantType

Values = NDArray[np.float32]
Rows = slice | NDArray[np.intp]  # which rows: start and stop, or one by one


class Source(Protocol):
    """Rows of a tensor, decoded when they are asked for."""

    @property
    def name(self) -> str:
        """As the file that has it calls it."""

    @property
    def file(self) -> str:
        """The name of that file, for messages."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical, row-major."""

    @property
    def type(self) -> QuantType | None:
        """The type that holds its values without loss; None where there is none."""

    def rows(self, rows: Rows) -> Values:
        """Values `[n, width]`."""

    def blocks(self, rows: Rows, to: QuantType) -> NDArray[np.uint8] | None:
        """Bytes of rows in type `to` where they need no encoding anew, else None."""

    def forget(self, rows: Rows | None = None) -> None:
        """Let the system have the memory of rows that were read, of all without `rows`."""


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(rows, width) of a tensor of this shape."""
    width = shape[-1] if len(shape) > 1 else 1
    return math.prod(shape) // width if width else 0, width


@dataclass(frozen=True, eq=False)
class OfTensor:
    """A source with the name, file and shape of one stored tensor."""

    tensor: Stored | QTensor

    @property
    def name(self) -> str:
        """See Source."""
        return self.tensor.name

    @property
    def file(self) -> str:
        """See Source."""
        return self.tensor.file

    @property
    def shape(self) -> tuple[int, ...]:
        """See Source."""
        return self.tensor.shape


@dataclass(frozen=True, eq=False)
class OfSource:
    """A source that is made of another, whose name and file it has."""

    source: Source

    @property
    def name(self) -> str:
        """See Source."""
        return self.source.name

    @property
    def file(self) -> str:
        """See Source."""
        return self.source.file

    def forget(self, rows: Rows | None = None) -> None:
        """See Source."""
        self.source.forget()


@dataclass(frozen=True, eq=False)
class Lying(OfTensor):
    """A tensor in its file as it lies."""

    @property
    def type(self) -> QuantType:
        """See Source."""
        return self.tensor.type

    @cached_property
    def _matrix(self) -> NDArray[np.uint8]:
        """Bytes by row."""
        shape = self.shape if len(self.shape) > 1 or not self.type.is_quantized else (1, *self.shape)
        n, width = matrix_shape(shape)
        return self.tensor.data.reshape(n, self.type.row_bytes(width))

    def rows(self, rows: Rows) -> Values:
        """See Source."""
        raw = np.ascontiguousarray(self._matrix[rows])
        width = raw.shape[1] // self.type.block_bytes * self.type.block_size
        return dequantize(raw.reshape(-1), self.type).reshape(len(raw), width)

    def blocks(self, rows: Rows, to: QuantType) -> NDArray[np.uint8] | None:
        """See Source."""
        return np.ascontiguousarray(self._matrix[rows]).reshape(-1) if to is self.type else None

    def expect(self, rows: slice) -> None:
        """Have the system read rows ahead."""
        machine.expect(self._matrix[rows].reshape(-1))

    def forget(self, rows: Rows | None = None) -> None:
        """See Source."""
        part = self._matrix[rows] if isinstance(rows, slice) else self.tensor.data if rows is None else None
        if part is not None:
            machine.forget(part.reshape(-1))


@dataclass(frozen=True, eq=False)
class Changed(OfSource):
    """What a function makes of a tensor: matrix by matrix where there are several, else of all its values at once."""

    change: Callable[[Any], Any]
    shape: tuple[int, ...]  # of the result
    type: None = None

    def rows(self, rows: Rows) -> Values:
        """See Source."""
        n, width = matrix_shape(self.shape)
        wanted = np.arange(n)[rows]
        shape = self.source.shape
        # as many first indices as the wanted rows need, where one has nothing to do with another
        per = n // shape[0] if len(shape) == 3 and self.shape[0] == shape[0] else 0
        first, last = (int(wanted.min()) // per, int(wanted.max()) // per + 1) if per and wanted.size else (0, shape[0])
        inner = matrix_shape(shape)[0] // max(1, shape[0])
        values = self.source.rows(slice(first * inner, last * inner)).reshape(last - first, *shape[1:])
        changed = np.asarray(self.change(values), np.float32).reshape(-1, width)
        return np.ascontiguousarray(changed[wanted - first * per])

    def blocks(self, rows: Rows, to: QuantType) -> NDArray[np.uint8] | None:
        """See Source."""
        return None


@dataclass(frozen=True, eq=False)
class Picked(OfSource):
    """Some rows of a source, in an order of their own."""

    picks: NDArray[np.intp]
    shape: tuple[int, ...]  # of the result

    @property
    def type(self) -> QuantType | None:
        """See Source."""
        return self.source.type

    def rows(self, rows: Rows) -> Values:
        """See Source."""
        return self.source.rows(self.picks[rows])

    def blocks(self, rows: Rows, to: QuantType) -> NDArray[np.uint8] | None:
        """See Source."""
        return self.source.blocks(self.picks[rows], to)


@dataclass(frozen=True, eq=False)
class Factors:
    """What a tensor is multiplied by, and of a bias or parameter what is added then."""

    rows: Values | None = None  # [n_rows], or [n_rows, width] of a parameter, each value by its own
    columns: Values | None = None  # [width]
    add: Values | None = None  # as `rows`

    def __mul__(self, other: Factors) -> Factors:
        """One after the other."""
        added = None if self.add is None else _times(self.add, other.rows)
        add = other.add if added is None else added if other.add is None else added + other.add
        return Factors(_times(self.rows, other.rows), _times(self.columns, other.columns), add)

    def apply(self, values: Values, rows: Rows = slice(None)) -> Values:
        """`values [n, width]`, some rows of the tensor, with its factors."""
        times, plus = (side if side is None or side.ndim > 1 else side[:, None] for side in (self.rows, self.add))
        out = values if times is None else values * times[rows]
        out = out if self.columns is None else out * self.columns
        return out if plus is None else out + plus[rows]


def _times(a: Values | None, b: Values | None) -> Values | None:
    return b if a is None else a if b is None else a * b


@dataclass(frozen=True, eq=False)
class OfValues(OfSource):
    """A source that is encoded anew from values of another, whose shape it has."""

    @property
    def shape(self) -> tuple[int, ...]:
        """See Source."""
        return self.source.shape

    @property
    def type(self) -> QuantType | None:
        """See Source: none, but what is plain may be written as it was."""
        kind = self.source.type
        return kind if kind is not None and not kind.is_quantized else None


@dataclass(frozen=True, eq=False)
class Scaled(OfValues):
    """A source with factors."""

    factors: Factors

    def rows(self, rows: Rows) -> Values:
        """See Source."""
        return np.ascontiguousarray(self.factors.apply(self.source.rows(rows), rows), np.float32)

    def blocks(self, rows: Rows, to: QuantType) -> NDArray[np.uint8] | None:
        """See Source."""
        return None

    def forget(self, rows: Rows | None = None) -> None:
        """See Source."""
        self.source.forget(rows)
