"""A model whose layers are spread over processes, on one machine or several, joined by `torch.distributed` (gloo, and NCCL between GPUs).

The first stage has the engine: it tells the others each batch, activations go from one to the next, and the last sends logits back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from functools import partial
from threading import Event, Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.cache import Batch, PagedCache
from qtransformers.cache.batch import room
from qtransformers.checks import whole
from qtransformers.errors import ConfigError, LoadError, NetworkError, UnsupportedError
from qtransformers.generate.device import forward_of, pool_of
from qtransformers.generate.link import ARRIVAL, Link, Meeting, distributed, first_line, listens, wait_for
from qtransformers.load import Loaded
from qtransformers.load.stages import Part, mark
from qtransformers.nn.stages import Stage

F32 = NDArray[np.float32]
BEAT = 10.0  # seconds after which the first stage looks whether the others are there, when nothing is computed
HEADER = 8  # numbers that announce a message: what it is, and the sizes of its parts
NOTHING, STEP, END = range(3)
COPY, FORGET = range(2)


@dataclass(frozen=True, eq=False)
class Follower(PagedCache):
    """The first stage's cache, which also tells the others what becomes of pages between two forwards."""

    moves: list[tuple[int, int, int]] = field(default_factory=list)

    @classmethod
    def of(cls, cache: PagedCache) -> Follower:
        """The same pages."""
        return cls(**{f.name: getattr(cache, f.name) for f in fields(PagedCache)})

    def copy(self, source: int, target: int) -> None:
        """As ever, but when the next forward begins: one that Ctrl-C left may still write."""
        self.moves.append((COPY, source, target))

    def give_back(self, pages: list[int]) -> None:
        """As ever, and the others forget what recurrent layers remember of them."""
        super().give_back(pages)
        if self.states.nbytes:
            self.moves.extend((FORGET, page, 0) for page in pages)


class Pipeline:
    """The first stage: a forward as the engine calls it, computed by all."""

    def __init__(self, link: Link, loaded: Loaded, pool: AbstractContextManager[Any]) -> None:
        self._link, self._part = link, link.part
        self._vocab_size = loaded.hparams["vocab_size"]
        self._pool = pool  # for the thread that computes
        self.cache = Follower.of(loaded.new_cache())
        self._forward = forward_of(_joined(loaded, link))
        # One thread talks to the others, so that what Ctrl-C cuts short here still ends in step with them.
        self._talk = ThreadPoolExecutor(1, "pipeline")
        self._lost: NetworkError | None = None
        self._over = Event()
        self._beating = Thread(target=self._beats, daemon=True, name="pipeline-beats")
        self._beating.start()

    def __call__(self, batch: Batch, cache: PagedCache, adapters: Any = ()) -> F32:
        """Logits `[R, vocab_size]`; NetworkError once a stage is lost."""
        if adapters:
            raise UnsupportedError("lora: the layers of this model are in several processes, which know no adapters. Load it in one.")  # fmt: skip
        return self._talk.submit(self._step, batch).result()

    @property
    def lost(self) -> str:
        """Which stage is lost; "" while all are there."""
        return str(self._lost or "")

    def close(self) -> None:
        """Let the others end."""
        self._over.set()
        with suppress(RuntimeError):  # closed before
            self._talk.submit(self._end).result()
        self._beating.join()
        self._talk.shutdown()

    def _step(self, batch: Batch) -> F32:
        moves = tuple(self.cache.moves)
        self.cache.moves.clear()
        part = self._part
        self._tell(_message(STEP, batch, moves))
        try:
            _move(self.cache, moves)
            with self._pool:
                self._forward(_inner(batch, part), self.cache)
            logits = np.empty((len(batch.output_rows), self._vocab_size), np.float32)
            self._link.receive(logits, part.n - 1)
        except BaseException as e:
            lost = e if isinstance(e, NetworkError) else NetworkError(f"the first stage failed in a forward, and the others are not in step with it any more: {e}")  # fmt: skip
            self._lose(lost)
            raise
        return logits

    def _tell(self, message: tuple[NDArray[np.int64], NDArray[np.int32]]) -> None:
        if self._lost is not None:
            raise NetworkError(str(self._lost))
        try:
            for rank in range(1, self._part.n):
                for part in message:
                    if len(part):
                        self._link.send(part, rank)
        except NetworkError as e:
            self._lose(e)
            raise

    def _lose(self, error: NetworkError) -> None:
        self._lost = error
        self._over.set()
        self._link.close()  # so the other stages hear of it

    def _end(self) -> None:
        with suppress(NetworkError):
            self._tell(_message(END))
        self._link.close()

    def _beats(self) -> None:
        while not self._over.wait(BEAT):
            with suppress(RuntimeError, NetworkError):  # closed meanwhile; lost: the next step says so
                self._talk.submit(self._tell, _message(NOTHING)).result()


def lead(meeting: Meeting, loaded: Loaded, settings: Mapping[str, Any], threads: int | None) -> Pipeline:
    """Wait for the other stages of a model whose first is loaded. ConfigError where the port is taken, LoadError for what
    a stage cannot load, NetworkError where one does not come."""
    dist = distributed()
    try:
        store = dist.TCPStore(
            meeting.host, meeting.port, None, True, timedelta(seconds=ARRIVAL), wait_for_workers=False
        )
    except RuntimeError as e:
        raise ConfigError(
            f"stages: {meeting.host}:{meeting.port} cannot be listened on: {first_line(e)} Take another port."
        ) from None
    assert loaded.sources.gguf is not None  # it is open
    facts = {"n": meeting.n, "model": mark(loaded.plan, loaded.sources.gguf), "settings": dict(settings)}
    store.set("model", json.dumps(facts))
    kinds = [loaded.plan.main_device]
    for rank in range(1, meeting.n):
        wait_for(partial(store.check, [f"there/{rank}"]), f"stages: stage {rank} of {meeting.n} did not come")
        answer = json.loads(store.get(f"there/{rank}"))
        if "error" in answer:
            raise LoadError(f"stage {rank}: {answer['error']}")
        kinds.append(answer["device"])
    nccl = all(kind != "cpu" for kind in kinds)
    store.set("go", "nccl" if nccl else "gloo")
    link = Link(meeting, Part(0, meeting.n), store)
    if nccl:
        link.over_nccl()
    return Pipeline(link, loaded, pool_of(threads))


def follow(
    meeting: Meeting,
    rank: int,
    load: Callable[[Part, Mapping[str, Any]], Loaded],
    threads: int | None,
    say: Callable[[str], None],
) -> None:
    """Be one stage until the first ends: `load(part, settings)` gives its layers. NetworkError where another is lost."""
    dist = distributed()
    where = f"{meeting.host}:{meeting.port}"
    wait_for(lambda: listens(meeting), f"stages: nobody listens on {where}")
    store = dist.TCPStore(meeting.host, meeting.port, None, False, timedelta(seconds=ARRIVAL), wait_for_workers=False)
    facts = json.loads(store.get("model"))
    part = Part(whole("rank", rank, 1, facts["n"] - 1), facts["n"])
    if store.add(f"taken/{rank}", 1) > 1:
        raise ConfigError(f"rank={rank}: another stage at {where} has this rank. Each has its own.")
    try:
        loaded = load(part, facts["settings"])
        assert loaded.sources.gguf is not None  # it is open
        if mark(loaded.plan, loaded.sources.gguf) != facts["model"]:
            raise LoadError(f"{loaded.plan.file} is another model than that of the first stage at {where}. Give all stages copies of one file.")  # fmt: skip
    except BaseException as e:
        store.set(f"there/{rank}", json.dumps({"error": str(e) or type(e).__name__}))
        raise
    store.set(f"there/{rank}", json.dumps({"device": loaded.plan.main_device}))
    assert loaded.layers is not None  # of a part
    say(f"stage {rank} of {part.n}: layers {loaded.layers.start} to {loaded.layers.stop - 1}")
    wait_for(lambda: store.check(["go"]), f"stages: the first stage at {where} did not begin")
    link = Link(meeting, part, store)
    if store.get("go") == b"nccl":
        link.over_nccl()
    try:
        with pool_of(threads):
            _work(link, loaded)
    finally:
        link.close()


def _work(link: Link, loaded: Loaded) -> None:
    """Compute what the first stage says, until it says that it is over."""
    part, cache, forward = link.part, loaded.new_cache(), forward_of(_joined(loaded, link))
    header = np.zeros(HEADER, np.int64)
    while True:
        link.receive(header, 0)
        if header[0] == END:
            return
        if header[0] == STEP:
            batch, moves = _heard(header, lambda numbers: link.receive(numbers, 0))
            _move(cache, moves)
            logits = forward(_inner(batch, part), cache)
            if part.is_last:
                link.send(np.ascontiguousarray(logits, np.float32), 0)


def _joined(loaded: Loaded, link: Link) -> Loaded:
    """The layers of a stage, with their neighbours."""
    part, layers = link.part, loaded.layers
    assert layers is not None  # of a part
    loaded.weights.stage = Stage(
        layers.start,
        (lambda x: link.receive(x, part.rank - 1)) if part.rank else None,
        None if part.is_last else lambda x: link.send(x, part.rank + 1),
    )
    return loaded


def _inner(batch: Batch, part: Part) -> Batch:
    """A batch for a stage: only the last gives logits, the others one row at which nobody looks."""
    return batch if part.is_last else replace(batch, output_rows=np.zeros(1, np.int32))


def _shapes(header: Any) -> list[tuple[int, ...]]:
    _, tokens, sequences, pages, outputs, *_ = (int(n) for n in header)
    return [(tokens,), (tokens,), (sequences + 1,), (sequences, pages), (outputs,)]


def _message(
    kind: int, batch: Batch | None = None, moves: tuple[Any, ...] = ()
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """A header, and what it announces."""
    header = np.zeros(HEADER, np.int64)
    header[0] = kind
    if batch is None:
        return header, np.zeros(0, np.int32)
    header[1:6] = len(batch.tokens), *batch.page_tables.shape, len(batch.output_rows), len(moves)
    shapes = _shapes(header)
    flat = np.zeros(room(shapes) + 3 * len(moves), np.int32)
    for place, array in zip(Batch.over(flat, shapes, 0).arrays, batch.arrays, strict=True):
        place[...] = array
    flat[room(shapes) :] = np.array(moves, np.int32).reshape(-1)
    return header, flat


def _heard(header: NDArray[np.int64], receive: Callable[[NDArray[np.int32]], None]) -> tuple[Batch, list[Any]]:
    shapes = _shapes(header)
    flat = np.zeros(room(shapes) + 3 * int(header[5]), np.int32)
    receive(flat)
    return Batch.over(flat, shapes, 0), flat[room(shapes) :].reshape(-1, 3).tolist()


def _move(cache: PagedCache, moves: Any) -> None:
    for what, page, target in moves:
        if what == COPY:
            PagedCache.copy(cache, page, target)
        else:
            cache.states.forget([page])
