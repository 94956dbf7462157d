"""A model's forward on GPUs: batches go there, steps of answers are replayed from captured graphs, logits stay there until they are looked at."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.cache import Batch, PagedCache
from qtransformers.cache.batch import room
from qtransformers.errors import InsufficientMemoryError
from qtransformers.machine import usable_cores
from qtransformers.nn.adapted import adapted
from qtransformers.settings import Settings

if TYPE_CHECKING:
    import torch

    from qtransformers.load import Loaded

F32 = NDArray[np.float32]
FEWEST_PAGES = 8  # of a captured page table: contexts grow, and each width is a capture
EQUALS = 64  # logits beside the largest that are looked at, for those that equal the last
MOST_ROWS = 32  # of a captured step: larger ones compute longer than they take to launch


class DeviceForward:
    """`forward(weights, hparams, batch, cache)` for batches of NumPy arrays: `Rows`, good until the next call.

    Steps of answers are captured, filled up to powers of two; with `exact` as they are, because the CPU takes part. Captures
    are of the cache that was used last. Ids from `n_tokens` on, and `unused`, are padding of the vocabulary.
    InsufficientMemoryError where the device is full, with what `planned` says; captures are freed then.
    """

    def __init__(
        self, forward: Callable[..., Any], weights: Any, hparams: Any, device: str, *,
        n_tokens: int, unused: Iterable[int] = (), exact: bool = False, captures: bool = True, planned: str = "",
    ) -> None:  # fmt: skip
        import torch

        from qtransformers.kernels.triton.device import torch_device

        self._forward, self._weights, self._hparams = forward, weights, hparams
        self._device = torch_device(device)
        self._n_tokens = n_tokens
        self._unused: torch.Tensor | None = None
        if ids := [i for i in unused if i < n_tokens]:
            self._unused = torch.zeros(hparams["vocab_size"], dtype=torch.bool)
            self._unused[ids] = True
            self._unused = self._unused.to(self._device)
        self._exact = exact
        self._captures = captures and self._device.type == "cuda"
        self._name, self._planned = device, planned
        self._capturing: tuple[Any, Any] = _capturing(self._device) if self._captures else (None, None)
        self._captured: dict[tuple[int, ...], _Captured] = {}
        self._cache: Callable[[], PagedCache | None] = lambda: None  # to which the captures write
        self._logits: torch.Tensor | None = None  # of captured steps, which share the memory

    def __call__(self, batch: Batch, cache: PagedCache, adapters: Sequence[Any] = ()) -> Rows:
        """Logits of a batch's output rows; `adapters` are (first row, end, updates, scale)."""
        from qtransformers.kernels.triton.device import current, is_out_of_memory

        try:
            with current(self._device), cache.states.placed(batch) as placed:
                return self._computed(placed, cache, adapters)
        except RuntimeError as e:
            if not is_out_of_memory(e):
                raise
            said = str(e).splitlines()[0]
        self._forget()  # here nothing holds what the forward had made
        raise self._out_of_memory(len(batch.tokens), said)

    def _forget(self) -> None:
        """Free what captures hold, and what torch keeps for later."""
        from qtransformers.kernels.triton.device import give_back

        self._captured.clear()
        self._logits = None
        gc.collect()
        give_back()

    def _out_of_memory(self, n: int, said: str) -> InsufficientMemoryError:
        return InsufficientMemoryError(
            f"{self._name}: memory ran out in a forward of {n} tokens, and what that had made was freed. {self._planned}"
            f"Others may have taken what was free: {said} Lower prefill_chunk, parallel or context_length, or keep some layers on the CPU."
        )

    def _computed(self, batch: Batch, cache: PagedCache, adapters: Sequence[Any]) -> Rows:
        n = len(batch.tokens)
        step = n == len(batch.output_rows) and n <= MOST_ROWS
        if not (self._captures and step) or adapters:
            weights = adapted(self._weights, adapters, batch.output_rows) if adapters else self._weights
            return self._rows(self._forward(weights, self._hparams, batch.on(self._device), cache))
        if self._cache() is not cache:
            self._captured.clear()
            self._cache = weakref.ref(cache)
        key = self._key(batch)
        captured = self._captured.get(key)
        if captured is None:
            return self._capture(key, batch, cache)
        fill(captured.host, batch)
        captured.recording.replay()
        captured.wait()
        return Rows(captured.logits[:n], self._n_tokens, self._unused, captured.best)

    def _key(self, batch: Batch) -> tuple[int, ...]:
        """Tokens, sequences, the most tokens of one, and pages, of the capture that a batch fits in."""
        n, (sequences, width) = len(batch.tokens), batch.page_tables.shape

        def up(x: int) -> int:
            return x if self._exact else 1 << (x - 1).bit_length()

        return up(n), up(sequences), 1 if n == sequences else up(n), 1 << (max(FEWEST_PAGES, width) - 1).bit_length()

    def _rows(self, logits: torch.Tensor) -> Rows:
        return Rows(logits, self._n_tokens, self._unused)

    def _capture(self, key: tuple[int, ...], batch: Batch, cache: PagedCache) -> Rows:
        """Compute a batch, and capture how, for all that fit in as many tokens, sequences and pages."""
        import torch

        from qtransformers.kernels.triton.candidates import best
        from qtransformers.kernels.triton.graphs import Recording

        tokens, sequences, most, width = key
        shapes = [(tokens,), (tokens,), (sequences + 1,), (sequences, width), (tokens,)]
        shapes += [(sequences, 2)] if batch.states is not None else []
        pin = self._device.type == "cuda"
        pinned = torch.zeros(room(shapes), dtype=torch.int32, pin_memory=pin)
        flat = torch.empty_like(pinned, device=self._device)
        host = Batch.over(pinned.numpy(), shapes, most)
        there = Batch.over(flat, shapes, most)
        host.output_rows[:] = np.arange(tokens)
        known = {x.data_ptr(): here for x, here in zip(there.arrays, host.arrays, strict=True)}
        recording = Recording(self._device, *self._capturing, known)
        ids = torch.empty(tokens, dtype=torch.int32, pin_memory=pin)

        def run() -> torch.Tensor:
            flat.copy_(pinned, non_blocking=True)
            logits: torch.Tensor = self._forward(self._weights, self._hparams, there, cache)
            ids.copy_(best(logits, self._n_tokens, self._unused), non_blocking=True)
            if self._logits is None:
                self._logits = torch.empty(MOST_ROWS, logits.shape[1], dtype=logits.dtype, device=self._device)
            return self._logits[:tokens].copy_(logits)

        fill(host, batch)
        with recording.rehearse():
            found = run()
        try:
            with recording.capture():
                logits = run()
        except RuntimeError as e:
            self._captures = False
            warnings.warn(
                f"answers are computed without CUDA graphs, slower, because a capture failed: {e}", stacklevel=2
            )
        else:
            self._captured[key] = _Captured(recording, host, there, logits, ids.numpy(), self._device)
        return self._rows(found[: len(batch.tokens)])


@dataclass
class _Captured:
    """A step of answers for so many rows."""

    recording: Any
    host: Batch  # in pinned memory, from where the graph reads
    there: Batch  # on the device, where it copies that to: kept, or others would be given its memory
    logits: torch.Tensor  # on the device, to where it writes
    best: NDArray[np.int32]  # in pinned memory, likewise
    device: torch.device

    def wait(self) -> None:
        """Until all is computed."""
        import torch

        torch.cuda.current_stream(self.device).synchronize()


def _capturing(device: torch.device) -> tuple[Any, Any]:
    """A stream and a pool of memory for all captures of a model."""
    import torch

    make: Any = torch.cuda.Stream  # it is untyped
    return make(device), torch.cuda.graph_pool_handle()


def fill(host: Batch, batch: Batch) -> None:
    """Write a batch into a wider one; rows and pages beyond it belong to no sequence."""
    n, (sequences, width) = len(batch.tokens), batch.page_tables.shape
    for wide, narrow in ((host.tokens, batch.tokens), (host.positions, batch.positions)):
        wide[:n] = narrow
        wide[n:] = 0
    host.starts[: sequences + 1] = batch.starts
    host.starts[sequences + 1 :] = n
    host.page_tables[...] = -1
    host.page_tables[:sequences, :width] = batch.page_tables
    if host.states is not None and batch.states is not None:
        host.states[:sequences] = batch.states


class Rows:
    """Logits `[R, vocab_size]` on a device, of which little comes to main memory: best ids, the largest, or whole rows where they are asked for."""

    def __init__(
        self, there: torch.Tensor, n_tokens: int, unused: torch.Tensor | None = None, best: NDArray[np.int32] | None = None
    ) -> None:  # fmt: skip
        self._there, self._n_tokens, self._unused = there, n_tokens, unused
        self._best = best
        self._largest: tuple[NDArray[np.int64], F32] | None = None
        self._totals: F32 | None = None

    def __len__(self) -> int:
        return len(self._there)

    def __getitem__(self, part: slice) -> list[Row]:
        return [Row(self, i) for i in range(*part.indices(len(self)))]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self._there.cpu().numpy()

    def best(self) -> NDArray[np.int32]:
        """The id of each row's largest logit, -1 where there is none to be named."""
        if self._best is None:
            from qtransformers.kernels.triton.candidates import best

            self._best = best(self._there, self._n_tokens, self._unused).cpu().numpy()
        return self._best

    def largest(self, n: int) -> tuple[NDArray[np.int64], F32]:
        """Ids and values of each row's `n` largest logits or more, largest first."""
        if self._largest is None or self._largest[0].shape[1] < min(n, self._n_tokens):
            from qtransformers.kernels.triton.candidates import largest

            ids, values = largest(self._there, n, self._n_tokens, self._unused)
            self._largest = ids.cpu().numpy(), values.cpu().numpy()
        return self._largest

    def totals(self) -> F32:
        """Of each row, the logarithm of the sum of its exponentials."""
        if self._totals is None:
            from qtransformers.kernels.triton.candidates import totals

            self._totals = totals(self._there, self._n_tokens, self._unused).cpu().numpy()
        return self._totals

    def values(self, i: int) -> F32:
        """A row, whole."""
        row: F32 = self._there[i].cpu().numpy()
        return row.copy() if self._there.device.type == "cpu" else row  # the caller may change it


@dataclass(frozen=True)
class Row:
    """One of `Rows`."""

    rows: Rows
    i: int

    def best(self) -> int:
        """The id of the largest, the first of equals; -1 where a logit is no number, or all are minus infinity."""
        return int(self.rows.best()[self.i])

    def largest(self, n: int) -> tuple[NDArray[np.int64], F32] | None:
        """Ids, rising, and values: the `n` largest and all that equal the last of them; None where too many do, or one is no number."""
        ids, values = (x[self.i] for x in self.rows.largest(n + EQUALS))
        if not np.isfinite(values[:n]).all() or (values[-1] == values[min(n, len(values)) - 1] and len(values) > n):
            return None
        order = np.argsort(ids)
        return ids[order], values[order]

    def total(self) -> float:
        """The logarithm of the sum of exponentials of all."""
        return float(self.rows.totals()[self.i])

    def values(self) -> F32:
        """All of it."""
        return self.rows.values(self.i)


def pool_of(threads: int | None) -> AbstractContextManager[Any]:
    """The threads that compute for whoever enters it: as many as are given, else the environment says, else cores."""
    from qtransformers.kernels.cpu import Pool  # the extension

    settings = Settings.from_env()
    return Pool(threads or settings.threads or usable_cores(), settings.isa or "")


def forward_of(loaded: Loaded) -> Callable[..., Any]:
    """The model's forward as the engine calls it, wherever its weights are."""
    plan = loaded.plan
    if not plan.devices:
        return partial(_forward, loaded.spec.forward, loaded.weights, loaded.hparams)
    return DeviceForward(
        loaded.spec.forward, loaded.weights, loaded.hparams, plan.main_device,
        n_tokens=min(loaded.tokenizer.n_tokens, loaded.hparams.vocab_size), unused=loaded.tokenizer.unused_ids,
        exact=not plan.only_on(plan.main_device), captures=len(plan.devices) == 1 and loaded.layers is None, planned=f"{plan.on_devices()}. ",
    )  # fmt: skip


def _forward(
    forward: Callable[..., Any], weights: Any, h: Any, batch: Any, cache: Any, adapters: Sequence[Any] = ()
) -> Any:
    """A forward in which some rows have adapters: (first row, end, updates, scale)."""
    return forward(adapted(weights, adapters, batch.output_rows) if adapters else weights, h, batch, cache)
