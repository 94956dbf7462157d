"""All texts through a model side by side, weight by weight.

Each text's forward runs in a thread of its own, of which one runs at a time, and stops whenever inputs come to a weight. When all
have come there, what they bring is known, the weight is replaced, and they go on: what comes to later weights has passed the new
ones. In memory are what the forwards hold between two weights, and nothing of the layers behind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import Semaphore, Thread
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np
from numpy.typing import NDArray

from qtransformers.cache import States
from qtransformers.errors import QTransformersError
from qtransformers.kernels.cpu import Pool
from qtransformers.machine import usable_cores
from qtransformers.quantize.observe import Site, watched
from qtransformers.quantize.passes import Ints, logits, one_layer_cache, side_by_side, slices
from qtransformers.settings import Settings

if TYPE_CHECKING:
    from qtransformers.load import Loaded

F32 = NDArray[np.float32]
PER_LANE = 4  # texts
MOMENTS_BYTES = 4 << 30  # of all experts of a weight; beyond that they share one matrix


@dataclass(eq=False)
class Moments:
    """What is known of the inputs of a weight: sums over them, for each of its matrices."""

    products: NDArray[np.float64]  # [n, in, in], of x x^T; n is 1 where experts share
    squares: NDArray[np.float64]  # [n, in]
    sizes: NDArray[np.float64]  # [n, in], of |x|
    counts: NDArray[np.int64]  # [n]

    @classmethod
    def empty(cls, n: int, n_in: int) -> Moments:
        """For `n` matrices."""
        shared = 1 if 8 * n * n_in * n_in > MOMENTS_BYTES else n
        return cls(np.zeros((shared, n_in, n_in)), np.zeros((n, n_in)), np.zeros((n, n_in)), np.zeros(n, np.int64))

    def add(self, x: F32, which: Ints | None) -> None:
        """Take inputs `x [T, in]` in, each for the matrix `which [T]` names."""
        for e in (0,) if which is None else np.unique(which).tolist():
            own = x if which is None else x[which == e]
            self.products[min(e, len(self.products) - 1)] += own.T @ own
            self.squares[e] += np.einsum("ti,ti->i", own, own, dtype=np.float64)
            self.sizes[e] += np.abs(own).sum(0, dtype=np.float64)
            self.counts[e] += len(own)

    def of_all(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The mean of x x^T `[in, in]` and of |x| `[in]` over the inputs of all matrices."""
        return self._mean, self.sizes.sum(0) / max(1, self.counts.sum())

    def mean_product(self, e: int = 0, pull: float = 64.0) -> NDArray[np.float64]:
        """The mean of x x^T for matrix `e`; an expert that met few inputs is drawn to the mean of all, as by `pull` more."""
        if len(self.products) == 1:
            return self._mean
        mixed: NDArray[np.float64] = (self.products[e] + pull * self._mean) / (self.counts[e] + pull)
        return mixed

    @cached_property
    def _mean(self) -> NDArray[np.float64]:
        """Of x x^T over all, asked for when all have come."""
        summed = self.products[0] if len(self.products) == 1 else self.products.sum(0)
        mean: NDArray[np.float64] = summed / max(1, self.counts.sum())
        return mean


@dataclass(eq=False)
class Lane:
    """One forward on its way."""

    thread: Thread
    go: Semaphore = field(default_factory=lambda: Semaphore(0))
    stopped: Semaphore = field(default_factory=lambda: Semaphore(0))
    site: Site | None = None  # where it waits
    x: F32 | None = None  # and with what
    which: Ints | None = None
    done: bool = False
    failure: BaseException | None = None


class _Ended(BaseException):
    """Raised in a lane that nobody waits for any more."""


# (site, its moments) -> the weight that forwards go on with
Replace = Callable[[Site, Moments], Any]


def relay(model: Loaded, rows: Ints, step: Replace, *, progress: Callable[[int, int], None] | None = None, total: int = 0) -> None:  # fmt: skip
    """Run the texts `rows [n, chunk]` side by side; `step` is called once for each weight, in the order of the forward pass.

    The forwards end at the output. What `step` raises ends all and is raised.
    """
    shared = one_layer_cache(model, PER_LANE, rows.shape[1])
    pool = Pool(Settings.from_env().threads or usable_cores(), Settings.from_env().isa or "")
    settled: dict[tuple[int | None, str], Any] = {}
    ending = False

    def forward(lane: Lane, part: Ints) -> None:
        def arrive(site: Site, x: F32, which: Ints | None) -> Any:
            if site.place not in settled:
                lane.site, lane.x, lane.which = site, x, which
                lane.stopped.release()
                lane.go.acquire()
                lane.x = lane.which = None
                if ending or site.place == (None, "output"):
                    raise _Ended
            return settled[site.place]

        cache = replace(shared, states=States(model.spec.states(model.hparams)))
        lane.go.acquire()
        try:
            if not ending:
                with pool:
                    logits(model, side_by_side(part), cache, watched(model, arrive))
        except _Ended:
            pass
        except BaseException as e:
            lane.failure = e
        lane.done, lane.site = True, None
        lane.stopped.release()

    lanes: list[Lane] = []
    for piece in slices(len(rows), PER_LANE):
        lane = Lane(Thread(daemon=True))
        lane.thread = Thread(target=forward, args=(lane, rows[piece]), daemon=True)
        lane.thread.start()
        lanes.append(lane)

    def run(lane: Lane) -> None:
        lane.go.release()
        lane.stopped.acquire()
        if lane.failure:
            raise lane.failure

    before: tuple[Any, Moments] | None = None  # what came last, and what it summed to
    try:
        while True:
            for lane in lanes:
                run(lane)
            if all(lane.done for lane in lanes):
                return
            site = lanes[0].site
            if site is None or any(lane.site is None or lane.site.place != site.place for lane in lanes):
                raise QTransformersError(
                    "texts took different ways through the model. This is a defect of qtransformers."
                )
            if before is None or before[0]() is not lanes[0].x:
                moments = Moments.empty(site.n_matrices, site.tensor.shape[-1])
                for lane in lanes:
                    assert lane.x is not None
                    moments.add(lane.x, lane.which)
                before = ref(lanes[0].x), moments
            for place in [place for place in settled if place[0] != site.place[0]]:
                settled[place] = None  # no forward comes back to another layer
            settled[site.place] = step(site, before[1])
            if progress:
                progress(len(settled), total)
    finally:
        ending = True
        for lane in lanes:
            while not lane.done and lane.thread.is_alive():
                lane.go.release()
                lane.stopped.acquire()
