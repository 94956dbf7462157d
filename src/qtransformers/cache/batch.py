"""What one forward pass computes: tokens of one or many sequences, prefill and decode mixed.

Arrays are NumPy's, or with `on(device)` torch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Batch:
    """T rows of S sequences. Rows of a sequence are consecutive, and its positions too."""

    tokens: Ints  # [T]
    positions: Ints  # [T], 0-based within the sequence
    starts: Ints  # [S + 1], sequence s has rows starts[s]..starts[s + 1]
    page_tables: Ints  # [S, P], pages of sequence s in order, -1 beyond its end
    output_rows: Ints  # [R], the rows whose logits are wanted
    rows: int = 0  # the most that a sequence has; 0: not known
    states: Ints | None = None  # [S, 2], on a device: addresses of 64 bits of what recurrent layers remember

    @classmethod
    def single(
        cls, tokens: Sequence[int] | Ints, past: int, pages: Sequence[int] | Ints, outputs: int | None = 1
    ) -> Batch:
        """One sequence with `past` cached tokens; logits of its last `outputs` rows (None: of all)."""
        n = len(tokens)
        first = 0 if outputs is None else n - min(outputs, n)
        return cls(
            tokens=np.asarray(tokens, np.int32),
            positions=np.arange(past, past + n, dtype=np.int32),
            starts=np.array([0, n], np.int32),
            page_tables=np.asarray(pages, np.int32)[None, :],
            output_rows=np.arange(first, n, dtype=np.int32),
        )

    @classmethod
    def over(cls, flat: Any, shapes: Sequence[tuple[int, ...]], rows: int) -> Batch:
        """Arrays of these shapes that lie in `flat [n] int32`, NumPy's or torch's; see `room`."""
        places = zip(_offsets(shapes), shapes, strict=False)
        tokens, positions, starts, tables, outputs, *more = (
            flat[i : i + prod(shape)].reshape(shape) for i, shape in places
        )
        return cls(tokens, positions, starts, tables, outputs, rows, *more)

    def on(self, device: Any) -> Batch:
        """The same as tensors on a torch device, by one copy."""
        import torch

        shapes = [part.shape for part in self.arrays]
        flat = np.zeros(room(shapes), np.int32)
        for place, part in zip(Batch.over(flat, shapes, 0).arrays, self.arrays, strict=True):
            place[...] = part
        rows = int(np.diff(self.starts).max(initial=0))
        return Batch.over(torch.from_numpy(flat).to(device), shapes, rows)

    @property
    def arrays(self) -> tuple[Any, ...]:
        """All of them, in their order."""
        arrays = self.tokens, self.positions, self.starts, self.page_tables, self.output_rows
        return arrays if self.states is None else (*arrays, self.states)

    @classmethod
    def join(cls, parts: Sequence[Batch]) -> Batch:
        """The sequences of several batches in one, in their order; output rows too."""
        if len(parts) == 1:
            return parts[0]
        ends = np.cumsum([len(part.tokens) for part in parts])
        firsts = np.concatenate([[0], ends[:-1]])
        tables = np.full(
            (sum(len(part.page_tables) for part in parts), max(part.page_tables.shape[1] for part in parts)),
            -1,
            np.int32,
        )
        row = 0
        for part in parts:
            tables[row : row + len(part.page_tables), : part.page_tables.shape[1]] = part.page_tables
            row += len(part.page_tables)
        return cls(
            tokens=np.concatenate([part.tokens for part in parts]),
            positions=np.concatenate([part.positions for part in parts]),
            starts=np.concatenate(
                [[0], *(first + part.starts[1:] for first, part in zip(firsts, parts, strict=True))],
                dtype=np.int32,
                casting="unsafe",
            ),
            page_tables=tables,
            output_rows=np.concatenate(
                [first + part.output_rows for first, part in zip(firsts, parts, strict=True)],
                dtype=np.int32,
                casting="unsafe",
            ),
        )


def room(shapes: Sequence[tuple[int, ...]]) -> int:
    """Numbers in which arrays of these shapes find place one after the other."""
    return _offsets(shapes)[-1]


def _offsets(shapes: Sequence[tuple[int, ...]]) -> list[int]:
    """Where each begins, at multiples of 16 bytes as kernels like it, and the end."""
    return [0, *np.cumsum([-(-prod(shape) // 4) * 4 for shape in shapes]).tolist()]
