"""Weights from a mapping to a device, as they are or decoded, through two pinned buffers that take turns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qtransformers.errors import InsufficientMemoryError
from qtransformers.kernels.staging import CHUNK, Progress, staging
from qtransformers.kernels.triton.dequantise import check_bytes, dequantise
from qtransformers.machine import usable_cores
from qtransformers.types import QuantType

COPIERS = 8  # threads that fill one, at most: reads of a mapping keep a core busy long before the bus


class Upload:
    """Brings weights to a device, in the order of its current stream; a context, at whose end all has arrived and the buffers are free.

    `progress` is called after each chunk; `total` is what it is to count up to, in bytes of the file.
    `kernels.staging` says what it takes for itself. InsufficientMemoryError, with the numbers, where a tensor does not fit.
    """

    def __init__(
        self, device: torch.device | str, total: int = 0, progress: Progress | None = None, chunk: int = CHUNK
    ) -> None:
        self.device = torch.device(device)
        self.chunk = chunk
        self.total = total
        self.done = 0  # bytes that were sent
        self._progress = progress
        self._start = perf_counter()
        self._cuda = self.device.type == "cuda"
        self._threads = min(usable_cores(), COPIERS)
        self._pool = ThreadPoolExecutor(self._threads)
        self._buffers: list[torch.Tensor] = []
        self._staged: torch.Tensor | None = None  # on the device, for blocks that are decoded there
        self._sent: list[Any] = [torch.cuda.Event() for _ in range(2)] if self._cuda else []
        self._turn = 0

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *error: object) -> None:
        for event in self._sent:
            event.synchronize()
        self._pool.shutdown()
        self._buffers, self._staged = [], None
        if self._cuda and error[0] is not None:
            torch.cuda.empty_cache()

    def blocks(self, data: NDArray[np.uint8]) -> torch.Tensor:
        """Bytes `[nbytes]` as they are."""
        out = self._new((data.size,), torch.uint8, "weights")
        for part, piece in self._pieces(data, self.chunk):
            out[part].copy_(piece, non_blocking=True)
        return out

    def floats(
        self, data: NDArray[np.uint8], type: QuantType, shape: Sequence[int], dtype: torch.dtype
    ) -> torch.Tensor:
        """Blocks `[nbytes]` as floats `[*shape]` of `dtype`, decoded there chunk by chunk; the errors of `dequantise`."""
        check_bytes(data.size, type, shape)
        out = self._new(tuple(shape), dtype, "weights")
        size, nbytes = type.block_size, type.block_bytes
        if self._staged is None:
            self._staged = self._new((self.chunk,), torch.uint8, "blocks that wait")
        for part, piece in self._pieces(data, self.chunk // nbytes * nbytes):
            first, last = part.start // nbytes * size, part.stop // nbytes * size
            staged = self._staged[: len(piece)].copy_(piece, non_blocking=True)
            dequantise(staged, type, (last - first,), dtype, out.view(-1)[first:last])
        return out

    def _pieces(self, data: NDArray[np.uint8], step: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """Places of `data` in turn, and their bytes in a buffer that is free again when its copy has been sent."""
        if not self._buffers:
            self._buffers = [self._new((self.chunk,), torch.uint8, "a buffer", pinned=self._cuda) for _ in range(2)]
        for start in range(0, data.size, step):
            part = slice(start, min(start + step, data.size))
            if self._cuda:
                self._sent[self._turn].synchronize()
            piece = self._buffers[self._turn][: part.stop - start]
            self._fill(piece.numpy(), data[part])
            yield part, piece
            if self._cuda:
                self._sent[self._turn].record(torch.cuda.current_stream(self.device))
            self._turn = 1 - self._turn
            self.done += len(piece)
            if self._progress is not None:
                speed = self.done / max(perf_counter() - self._start, 1e-9) / 1e9
                self._progress(self.done, max(self.total, self.done), speed)

    def _fill(self, buffer: NDArray[np.uint8], data: NDArray[np.uint8]) -> None:
        step = max(-(-data.size // self._threads), 1 << 20)
        parts = [slice(at, at + step) for at in range(0, data.size, step)]
        for _ in self._pool.map(lambda part: np.copyto(buffer[part], data[part]), parts):
            pass

    def _new(self, shape: tuple[int, ...], dtype: torch.dtype, what: str, pinned: bool = False) -> torch.Tensor:
        buffer = pinned or what == "a buffer"
        try:
            return torch.empty(shape, dtype=dtype, device="cpu" if buffer else self.device, pin_memory=pinned)
        except RuntimeError as error:  # torch.OutOfMemoryError is one, and so is what its other allocators raise
            own = staging(self._staged is not None, self.chunk)
            free = f", where {torch.cuda.mem_get_info(self.device)[0]:,} are free" if self._cuda and not buffer else ""
            raise InsufficientMemoryError(
                f"{prod(shape) * dtype.itemsize:,} bytes for {what} do not fit into {'main memory' if buffer else self.device}{free}. "
                f"{self.done:,} of {max(self.total, self.done):,} bytes of the file had been sent, through {own.pinned:,} bytes of "
                f"pinned memory and {own.device:,} on the device. Keep more layers on the CPU, take a smaller type, or free memory."
            ) from error
