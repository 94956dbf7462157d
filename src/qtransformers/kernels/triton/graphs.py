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

    It is captured on `stream`: each stream has a workspace of the vendor's library, so all recordings of a model share one.
    `known` are arrays in main memory that hold what tensors hold, by the tensors' addresses.
    """

    def __init__(self, device: torch.device, stream: Any, pool: Any, known: Mapping[int, Any]) -> None:
        self._device = device
        self._stream = stream
        self._pool = pool
        self._known = dict(known)
        self._steps: list[Callable[[], Any]] = []
        self._graph: Any = None  # under way
        self.n_graphs = 0  # that a replay launches
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

    def host(
        self, operation: Callable[..., Any], args: Sequence[Any], run: Callable[[], tuple[Any, Any]],
        beside: Callable[[], Any] | None = None,
    ) -> tuple[Any, Any]:  # fmt: skip
        """An operation of the CPU on tensors among `args`, and what `beside()` gives: tensors of the device; `run` does both at once.

        In a replay, `beside` is a graph of its own, launched before the CPU begins.
        """
        if self._graph is None:
            n = len(self._rehearsed)
            self._rehearsed.append(([], [], False))  # `beside` may have such operations, which come after
            result, more = run()
            pinned = [mapped(a, self._room_for) for a in args]
            self._rehearsed[n] = pinned, [pinned_like(x) for x in _listed(result)], isinstance(result, list)
            return result, more
        pinned, back, several = self._rehearsed[self._n]
        self._n += 1
        for target, x in zip(_tensors(pinned), _tensors(args), strict=True):
            if x.data_ptr() not in self._known:
                target.copy_(x, non_blocking=True)
        self._end()
        arrays = [mapped(a, torch.Tensor.numpy) for a in pinned]
        arrived: list[Callable[[], None]] = []
        self._steps.append(lambda: arrived.append(mark(self._device)))
        more = None
        if beside is not None:
            self._begin()
            more = beside()
            self._end()

        def compute() -> None:
            arrived.pop()()
            for target, values in zip(back, _listed(operation(*arrays)), strict=True):
                target.numpy()[...] = values

        self._steps.append(compute)
        self._begin()
        there = [torch.empty_like(x, device=self._device).copy_(x, non_blocking=True) for x in back]
        return there if several else there[0], more

    def _room_for(self, x: Tensor) -> Tensor:
        known = self._known.get(x.data_ptr())
        return pinned_like(x) if known is None else torch.from_numpy(known)

    def _begin(self) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._graph.capture_begin(pool=self._pool, capture_error_mode="relaxed")

    def _end(self) -> None:
        graph, self._graph = self._graph, None
        graph.capture_end()
        self._steps.append(graph.replay)
        self.n_graphs += 1


def mark(device: torch.device) -> Callable[[], None]:
    """Waits until all that is launched on a device's current stream by now is done."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event.synchronize


def mapped(x: Any, f: Callable[[Tensor], Any]) -> Any:
    """What `f` makes of a tensor, or of those in a list; anything else as it is."""
    if isinstance(x, Tensor):
        return f(x)
    return type(x)(mapped(part, f) for part in x) if isinstance(x, (list, tuple)) else x


def _tensors(x: Any) -> list[Tensor]:
    """Those in a list, in order."""
    found: list[Tensor] = []
    mapped(x, found.append)
    return found


def pinned_like(x: Tensor) -> Tensor:
    """Main memory for a copy of a tensor, pinned where that comes from a GPU."""
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)


def _listed(x: Any) -> Sequence[Any]:
    return x if isinstance(x, (list, tuple)) else (x,)
