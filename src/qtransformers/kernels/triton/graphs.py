"""What a forward launches, captured once and replayed: CUDA graphs, and between them what the CPU computes.

Operations of `hybrid.py` that run on the CPU end a graph and begin the next. A capture computes nothing, so a rehearsal comes
first: the same forward, run as usual, which shows the shapes of what the CPU gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

Tensor = torch.Tensor
# Of the forward that this thread runs: operations are called by models, which know nothing of it.
RECORDING: ContextVar[Recording | None] = ContextVar("RECORDING", default=None)


class Recording:
    """The steps of a forward on one device: graphs, and the CPU's operations between them.

    `known` are arrays in main memory that hold what tensors hold, by the tensors' addresses.
    """

    def __init__(self, device: torch.device, pool: Any, known: Mapping[int, Any]) -> None:
        self._device = device
        self._pool = pool
        self._known = dict(known)
        self._stream = torch.cuda.Stream(device)
        self._steps: list[Callable[[], Any]] = []
        self._graph: Any = None  # under way
        self._given: list[
            tuple[bool, list[Tensor]]
        ] = []  # what the CPU gives, in order: whether a list, and of which shapes
        self._n = 0  # operations of the CPU captured

    @contextmanager
    def rehearse(self) -> Iterator[None]:
        """A forward that runs as usual."""
        token = RECORDING.set(self)
        try:
            yield
        finally:
            RECORDING.reset(token)

    @contextmanager
    def capture(self) -> Iterator[None]:
        """The same forward, captured: it must compute from and into the same memory at every replay."""
        torch.cuda.synchronize(self._device)
        token = RECORDING.set(self)
        try:
            with torch.cuda.stream(self._stream):
                self._begin()
                try:
                    yield
                finally:
                    self._end()
        finally:
            RECORDING.reset(token)

    def replay(self) -> None:
        """Compute once more. What it gives is there once the current stream has come so far."""
        for step in self._steps:
            step()

    @property
    def n_graphs(self) -> int:
        """Graphs that a replay launches."""
        return len(self._steps) - self._n

    def host(self, operation: Callable[..., Any], args: Sequence[Any], run: Callable[[], Any]) -> Any:
        """An operation of the CPU on tensors among `args`; `run` does it at once. Its results are tensors of the device."""
        if self._graph is None:
            result = run()
            self._given.append(
                (isinstance(result, list), [torch.empty_like(x, device="meta") for x in _listed(result)])
            )
            return result
        pinned = [_mapped(a, self._to_host) for a in args]
        self._end()
        several, like = self._given[self._n]
        back = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in like]
        self._n += 1

        def compute() -> None:
            torch.cuda.current_stream(self._device).synchronize()
            found = operation(*pinned)
            for target, values in zip(back, _listed(found), strict=True):
                target.numpy()[...] = values

        self._steps.append(compute)
        self._begin()
        there = [torch.empty_like(x, device=self._device).copy_(x, non_blocking=True) for x in back]
        return there if several else there[0]

    def _to_host(self, x: Tensor) -> Any:
        known = self._known.get(x.data_ptr())
        if known is not None and known.shape == x.shape:
            return known
        return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True).numpy()

    def _begin(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def _end(self) -> None:
        graph, self._graph = self._graph, None
        graph.capture_end()
        self._steps.append(graph.replay)


def _mapped(x: Any, f: Callable[[Tensor], Any]) -> Any:
    """What `f` makes of a tensor, or of those in a list; anything else as it is."""
    if isinstance(x, Tensor):
        return f(x)
    return type(x)(_mapped(part, f) for part in x) if isinstance(x, (list, tuple)) else x


def _listed(x: Any) -> Sequence[Any]:
    return x if isinstance(x, (list, tuple)) else (x,)
