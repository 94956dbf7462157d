"""What recurrent layers remember of each sequence, beside the keys and values of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from qtransformers.cache.batch import Batch
from qtransformers.errors import QTransformersError

# What a layer remembers, by name: of each sequence of a batch, in the form that the kernels of its device take.
Layer = Callable[[int], dict[str, Any]]


class States:
    """Arrays `[n_layers, ...]` for each sequence. They belong to its first page: made at position 0, gone when it is given back."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], place: str = "cpu") -> None:
        self._shapes = dict(shapes)
        self._place = place
        self._known: dict[int, tuple[int, Any]] = {}  # first page -> tokens seen, all its arrays in one

    @property
    def nbytes(self) -> int:
        """Bytes of one sequence."""
        return state_bytes(self._shapes)

    def __len__(self) -> int:
        return len(self._known)

    @contextmanager
    def of(self, batch: Batch) -> Iterator[Layer]:
        """What the layers remember of the batch's sequences, to be updated in place while the block runs: `layer(i)[name][s]`.

        On a device, of a batch that `placed` gave. QTransformersError as there.
        """
        if self._place != "cpu":
            yield self._addressed(batch.states)
            return
        with self._open(batch) as found:
            yield lambda i: {name: [m[at : at + n].reshape(shape) for m in found] for name, at, n, shape in self._at(i)}

    @contextmanager
    def placed(self, batch: Batch) -> Iterator[Batch]:
        """A batch of NumPy arrays that says where its sequences' arrays are, if on a device, while the block runs a forward.

        QTransformersError where a sequence goes on from elsewhere than where it was left, also by a forward that failed.
        """
        if self._place == "cpu" or not self._shapes:
            yield batch
            return
        with self._open(batch) as found:
            addresses = np.array([memory.data_ptr() for memory in found], np.int64)
            yield replace(batch, states=addresses.view(np.int32).reshape(-1, 2))

    @contextmanager
    def _open(self, batch: Batch) -> Iterator[list[Any]]:
        pages, firsts, counts = batch.page_tables[:, 0], batch.positions[batch.starts[:-1]], np.diff(batch.starts)
        found = []
        for page, first in zip(pages.tolist(), firsts.tolist(), strict=True):
            if first == 0:
                self._known[page] = 0, self._zeros()
            seen, memory = self._known.get(page, (None, None))
            if seen != first:
                raise QTransformersError(
                    f"the sequence of page {page} goes on at position {first}, but its recurrent state is of {'none' if seen is None else seen} tokens."
                )
            found.append(memory)
        for page, memory in zip(pages.tolist(), found, strict=True):
            self._known[page] = -1, memory
        yield found
        for page, memory, seen in zip(pages.tolist(), found, (firsts + counts).tolist(), strict=True):
            if page in self._known:  # a stream may be dropped amid a forward
                self._known[page] = seen, memory

    def _zeros(self) -> Any:
        shape = (self.nbytes // 4,)
        if self._place == "cpu":
            return np.zeros(shape, np.float32)
        from qtransformers.kernels.triton.device import floats

        return floats(shape, self._place)

    def _at(self, layer: int) -> Iterator[tuple[str, int, int, tuple[int, ...]]]:
        """Where a layer's arrays are among all: names, first numbers, how many, shapes."""
        first = 0
        for name, (n_layers, *shape) in self._shapes.items():
            n = int(np.prod(shape))
            if layer < n_layers:
                yield name, first + layer * n, n, tuple(shape)
            first += n_layers * n

    def _addressed(self, addresses: Any) -> Layer:
        from qtransformers.kernels.triton.recurrent import Remembered

        return lambda i: {name: Remembered(addresses, at, shape) for name, at, _, shape in self._at(i)}

    def forget(self, pages: Iterable[int]) -> None:
        """Let go what belongs to these pages."""
        for page in pages:
            self._known.pop(page, None)


def state_bytes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Bytes of one sequence's arrays."""
    return 4 * sum(int(np.prod(shape)) for shape in shapes.values())
