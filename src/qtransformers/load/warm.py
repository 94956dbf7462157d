"""Weights on their way from disk into memory: read ahead in the background, read before use, locked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Event, Thread
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from qtransformers import machine
from qtransformers.errors import InsufficientMemoryError
from qtransformers.gguf import GGUFFile
from qtransformers.load.files import memory_text

STEP = 32 << 20  # bytes between two looks at whether to go on

Views = Sequence[NDArray[np.uint8]]
Progress = Callable[[int, int], None]  # (bytes, bytes in all)


def preload(gguf: GGUFFile, progress: Progress = lambda done, total: None, views: Views | None = None) -> None:
    """Bring a model, or `views` of it, into memory, in file order; what is there already costs next to nothing."""
    _populate(gguf.views() if views is None else views, progress, Event())


def in_background(gguf: GGUFFile, views: Views | None = None) -> Callable[[], None]:
    """`preload` beside other work; the function returned ends it and waits for its end."""
    stop = Event()
    found = gguf.views() if views is None else views
    thread = Thread(target=_populate, args=(found, lambda done, total: None, stop), daemon=True, name="weights")
    thread.start()

    def end() -> None:
        stop.set()
        thread.join()

    finalize(gguf, stop.set)
    return end


def lock(gguf: GGUFFile, views: Views | None = None) -> None:
    """Bring a model, or `views` of it, into memory and keep it there until it is closed; InsufficientMemoryError where that is refused."""
    found = gguf.views() if views is None else views
    for view in found:
        reason = machine.lock(view)
        if reason:
            limit = machine.lock_limit()
            allowed = "" if limit is None else f" (this process may lock {memory_text(limit)})"
            raise InsufficientMemoryError(
                f"mlock: {gguf.path}, {memory_text(sum(map(len, found)))}, cannot be locked in memory: {reason}{allowed}. Raise the limit "
                "(ulimit -l unlimited; docker run --ulimit memlock=-1; LimitMEMLOCK=infinity), or leave out mlock."
            )


def _populate(views: Views, progress: Progress, stop: Event) -> None:
    total, done = sum(len(v) for v in views), 0
    for view in views:
        for start in range(0, len(view), STEP):
            if stop.is_set():
                return
            part = view[start : start + STEP]
            if not machine.populate(part):
                _ = part[:: machine.PAGE_SIZE].max()  # touched page by page
            done += len(part)
            progress(done, total)
