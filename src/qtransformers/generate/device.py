"""A model's forward on GPUs: batches go there, answers' steps are replayed from captured graphs, logits come back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.cache import Batch, PagedCache
from qtransformers.cache.batch import room
from qtransformers.nn.adapted import adapted

FEWEST_PAGES = 8  # of a captured page table: contexts grow, and each width is a capture


class DeviceForward:
    """`forward(weights, hparams, batch, cache)` for batches of NumPy arrays: logits `[R, vocab_size]`, which the next call may overwrite.

    `exact`: batches of answers' steps are captured as they are, not filled up to a power of two: the CPU takes part.
    """

    def __init__(
        self, forward: Callable[..., Any], weights: Any, hparams: Any, device: str, *, parallel: int, exact: bool, captures: bool
    ) -> None:  # fmt: skip
        import torch

        from qtransformers.kernels.triton.device import torch_device

        self._forward, self._weights, self._hparams = forward, weights, hparams
        self._device = torch_device(device)
        self._parallel = parallel
        self._exact = exact
        self._captures = captures and self._device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if self._captures else None
        self._captured: dict[tuple[int, int], _Captured] = {}

    def __call__(self, batch: Batch, cache: PagedCache, adapters: Sequence[Any] = ()) -> NDArray[np.float32]:
        """Logits of a batch's output rows; `adapters` are (first row, end, updates, scale)."""
        steps = len(batch.tokens) == len(batch.starts) - 1 == len(batch.output_rows)
        if (
            not (self._captures and steps and not adapters and len(batch.tokens) <= self._parallel)
            or cache.states.nbytes
        ):
            weights = adapted(self._weights, adapters, batch.output_rows) if adapters else self._weights
            return _hosted(self._forward(weights, self._hparams, batch.on(self._device), cache))
        n = len(batch.tokens)
        rows = n if self._exact else 1 << (n - 1).bit_length()
        width = 1 << (max(FEWEST_PAGES, batch.page_tables.shape[1]) - 1).bit_length()
        captured = self._captured.get((rows, width))
        if captured is None:
            captured = self._captured[rows, width] = self._capture(rows, width, batch, cache)
        else:
            captured.fill(batch)
            captured.recording.replay()
        captured.wait()
        return captured.logits[:n]

    def _capture(self, rows: int, width: int, batch: Batch, cache: PagedCache) -> _Captured:
        """Compute a batch, and capture how, for batches of as many rows and pages."""
        import torch

        from qtransformers.kernels.triton.graphs import Recording

        shapes = ((rows,), (rows,), (rows + 1,), (rows, width), (rows,))
        pinned = torch.zeros(room(shapes), dtype=torch.int32, pin_memory=True)
        flat = torch.empty_like(pinned, device=self._device)
        host, there = Batch.over(pinned.numpy(), shapes, 1), Batch.over(flat, shapes, 1)
        host.output_rows[:] = np.arange(rows)
        known = {x.data_ptr(): here for x, here in zip(there.arrays, host.arrays, strict=True)}
        recording = Recording(self._device, self._pool, known)
        logits: Any = None

        def run() -> None:
            nonlocal logits
            flat.copy_(pinned, non_blocking=True)
            found = self._forward(self._weights, self._hparams, there, cache)
            if logits is None:
                logits = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
            logits.copy_(found, non_blocking=True)

        fill(host, batch)
        with recording.rehearse():
            run()
        with recording.capture():
            run()
        return _Captured(recording, host, logits.numpy(), self._device)


@dataclass
class _Captured:
    """A step of answers for so many rows."""

    recording: Any
    host: Batch  # in pinned memory, from where the graph reads
    logits: NDArray[np.float32]  # to where it writes
    device: Any

    def fill(self, batch: Batch) -> None:
        """Set what the next replay computes."""
        fill(self.host, batch)

    def wait(self) -> None:
        """Until all is computed."""
        import torch

        torch.cuda.current_stream(self.device).synchronize()


def fill(host: Batch, batch: Batch) -> None:
    """Write a batch into a wider one; rows and pages beyond it belong to no sequence."""
    n, width = batch.page_tables.shape
    host.tokens[:n] = batch.tokens
    host.tokens[n:] = 0
    host.positions[:n] = batch.positions
    host.positions[n:] = 0
    host.starts[: n + 1] = batch.starts
    host.starts[n + 1 :] = n
    host.page_tables[...] = -1
    host.page_tables[:n, :width] = batch.page_tables


def _hosted(x: Any) -> NDArray[np.float32]:
    return x.cpu().numpy() if not isinstance(x, np.ndarray) else x
