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
        # Of the CPU's operations, in order: pinned memory of what they take and give, and whether that is a list.
        self._rehearsed: list[tuple[list[Any], list[Tensor], bool]] = []
        self._n = 0  # of them captured

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
                    if self._graph is not None:  # one that failed to end has ended
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
            pinned = [_mapped(a, self._room_for) for a in args]
            self._rehearsed.append((pinned, [_pinned_like(x) for x in _listed(result)], isinstance(result, list)))
            return result
        pinned, back, several = self._rehearsed[self._n]
        self._n += 1
        for target, x in zip(_tensors(pinned), _tensors(args), strict=True):
            if x.data_ptr() not in self._known:
                target.copy_(x, non_blocking=True)
        self._end()
        arrays = [_mapped(a, torch.Tensor.numpy) for a in pinned]

        def compute() -> None:
            torch.cuda.current_stream(self._device).synchronize()
            for target, values in zip(back, _listed(operation(*arrays)), strict=True):
                target.numpy()[...] = values

        self._steps.append(compute)
        self._begin()
        there = [torch.empty_like(x, device=self._device).copy_(x, non_blocking=True) for x in back]
        return there if several else there[0]

    def _room_for(self, x: Tensor) -> Tensor:
        known = self._known.get(x.data_ptr())
        return _pinned_like(x) if known is None else torch.from_numpy(known)

    def _begin(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._graph.capture_begin(pool=self._pool, capture_error_mode="relaxed")

    def _end(self) -> None:
        graph, self._graph = self._graph, None
        graph.capture_end()
        self._steps.append(graph.replay)


def _mapped(x: Any, f: Callable[[Tensor], Any]) -> Any:
    """What `f` makes of a tensor, or of those in a list; anything else as it is."""
    if isinstance(x, Tensor):
        return f(x)
    return type(x)(_mapped(part, f) for part in x) if isinstance(x, (list, tuple)) else x


def _tensors(x: Any) -> list[Tensor]:
    """Those in a list, in order."""
    found: list[Tensor] = []
    _mapped(x, found.append)
    return found


def _pinned_like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)


def _listed(x: Any) -> Sequence[Any]:
    return x if isinstance(x, (list, tuple)) else (x,)
