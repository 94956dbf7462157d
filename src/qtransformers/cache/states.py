"""What recurrent layers remember of each sequence, beside the keys and values of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from qtransformers.cache.batch import Batch
from qtransformers.errors import QTransformersError


class States:
    """Arrays of fixed size for each sequence. They belong to its first page: made at position 0, gone when it is given back."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], place: str = "cpu") -> None:
        self._shapes = dict(shapes)
        self._zeros: Callable[[tuple[int, ...]], Any] = lambda shape: np.zeros(shape, np.float32)
        if place != "cpu":
            from qtransformers.kernels.triton.device import floats

            self._zeros = lambda shape: floats(shape, place)
        self._known: dict[int, tuple[int, dict[str, Any]]] = {}  # first page -> tokens seen, arrays

    @property
    def nbytes(self) -> int:
        """Bytes of one sequence."""
        return state_bytes(self._shapes)

    def __len__(self) -> int:
        return len(self._known)

    @contextmanager
    def of(self, batch: Batch) -> Iterator[list[dict[str, Any]]]:
        """The arrays of the batch's sequences, to be updated in place while the block runs.

        QTransformersError where a sequence goes on from elsewhere than where it was left, also by a forward that failed.
        """
        pages, firsts, counts = batch.page_tables[:, 0], batch.positions[batch.starts[:-1]], np.diff(batch.starts)
        found = []
        for page, first in zip(pages.tolist(), firsts.tolist(), strict=True):
            if first == 0:
                self._known[page] = 0, {name: self._zeros(shape) for name, shape in self._shapes.items()}
            seen, arrays = self._known.get(page, (None, {}))
            if seen != first:
                raise QTransformersError(
                    f"the sequence of page {page} goes on at position {first}, but its recurrent state is of {'none' if seen is None else seen} tokens."
                )
            found.append(arrays)
        for page, arrays in zip(pages.tolist(), found, strict=True):
            self._known[page] = -1, arrays
        yield found
        for page, arrays, seen in zip(pages.tolist(), found, (firsts + counts).tolist(), strict=True):
            if page in self._known:  # a stream may be dropped amid a forward
                self._known[page] = seen, arrays

    def forget(self, pages: Iterable[int]) -> None:
        """Let go what belongs to these pages."""
        for page in pages:
            self._known.pop(page, None)


def state_bytes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of one sequence's arrays."""
    return 4 * sum(int(np.prod(shape)) for shape in shapes.values())
