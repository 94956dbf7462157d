"""What one forward pass computes: tokens of one or many sequences, prefill and decode mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
