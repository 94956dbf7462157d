"""Streams beside an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from threading import Condition, Thread
from types import TracebackType
from typing import Any

from qtransformers.generate.engine import Engine
from qtransformers.generate.sequence import Chunk, Completion
from qtransformers.generate.stream import Stream

Loop = asyncio.AbstractEventLoop
SHORT = 0.004  # seconds of a step that may hold up an event loop
RECENT = 0.25  # share of the latest step in how long they take
PATIENCE = 0.02  # seconds without a step after which a loop does something else


class Driver:
    """Computes an engine's steps while streams of event loops are under way: on a thread of its own, which else there is not,
    or between the callbacks of the loop that reads all of them, where steps are so short that handing over takes longer.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = Condition()
        self._streams: dict[Stream, Loop] = {}  # under way
        self._waiting: dict[asyncio.Future[None], Stream] = {}
        self._thread: Thread | None = None
        self._guest: Loop | None = None  # computes instead of the thread
        self._late: Loop | None = None  # has not come when it was to
        self._steps = 0  # that guests have computed
        self._seconds = 0.0  # of a step that only continues answers, of late

    async def wait(self, stream: Stream) -> None:
        """Until the stream has a chunk or an end; what the forward raises, it raises here."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._turn:
            self._streams[stream] = loop
            self._waiting[future] = stream
            if self._thread is None:
                self._thread = Thread(target=self._run, name="qtransformers", daemon=True)
                self._thread.start()
            if self._guest is not loop:
                self._turn.notify()
        try:
            await future
        finally:
            with self._turn:
                self._waiting.pop(future, None)

    def wake(self) -> None:
        """There is room for more of a stream's chunks."""
        with self._turn:
            if self._guest is None:
                self._turn.notify()

    def _run(self) -> None:
        worked, error = True, None
        while True:
            with self._turn:
                self._tell(error)
                self._lend()
                while self._streams and not worked and not self._waiting:
                    self._turn.wait()
                    worked = True  # or so it may be now
                    self._tell()
                if not self._streams:
                    self._thread = None
                    return
            worked, error = self._step()

    def _step(self, *, wait: bool = True) -> tuple[bool, BaseException | None]:
        start, answers = time.perf_counter(), self._engine.only_answers
        try:
            return self._engine.step(wait=wait), None
        except BaseException as e:
            return False, e
        finally:
            if answers:
                self._seconds += RECENT * (time.perf_counter() - start - self._seconds)

    def _lend(self) -> None:
        """Let the loop that reads all streams compute while its steps are short and it comes to compute them."""
        loop = self._short()
        if loop is None:
            return
        self._guest = loop
        with suppress(RuntimeError):  # it has been closed
            loop.call_soon_threadsafe(_soon, loop, self._visit, loop)
        while self._guest is loop:
            steps = self._steps
            if not self._turn.wait(PATIENCE) and self._steps == steps:
                self._guest, self._late = None, loop  # it does something else, or has ended

    def _short(self) -> Loop | None:
        """The loop that reads all streams, where the next step will be short."""
        loops = set(self._streams.values())
        if self._seconds >= SHORT or len(loops) != 1 or not self._engine.only_answers:
            return None
        return None if self._late in loops else loops.pop()

    def _visit(self, loop: Loop) -> None:
        """A step on the thread of an event loop."""
        with self._turn:
            self._late = None if self._late is loop else self._late
            if self._guest is not loop:
                return
        worked, error = self._step(wait=False)
        with self._turn:
            self._steps += 1
            self._late = None if self._late is loop else self._late  # it has, if slowly
            self._tell(error, loop)
            if self._guest is loop and worked and self._short() is loop:
                _soon(loop, self._visit, loop)
            else:
                self._guest = None
                self._turn.notify()
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise error

    def _tell(self, error: BaseException | None = None, here: Loop | None = None) -> None:
        """Wake up who has something to read, or everybody with an error. `here` is the loop that runs this."""
        ready: dict[Loop, list[asyncio.Future[None]]] = {}
        for future, stream in list(self._waiting.items()):
            if stream.news or error is not None:
                del self._waiting[future]
                ready.setdefault(future.get_loop(), []).append(future)
        for loop, futures in ready.items():
            if loop is here:
                _settle(futures, error)
                continue
            with suppress(RuntimeError):  # it has been closed
                loop.call_soon_threadsafe(_settle, futures, error)  # one call into the system for all of them
        self._streams = {} if error is not None else {s: loop for s, loop in self._streams.items() if not s.ended}


class AsyncStream(AsyncIterator[Chunk]):
    """A `Stream` whose forwards run beside the event loop."""

    def __init__(self, stream: Stream, driver: Driver) -> None:
        self._stream = stream
        self._driver = driver

    async def __anext__(self) -> Chunk:
        try:
            ended = self._stream.ended  # before it looks, as `Stream` does
            while (chunk := self._stream.ready()) is None:
                if ended:
                    raise StopAsyncIteration
                await self._driver.wait(self._stream)
                ended = self._stream.ended
        except BaseException:
            self._stream.close()
            raise
        if self._stream.has_room_again:
            self._driver.wake()
        return chunk

    async def read(self) -> Completion:
        """Run to the end."""
        async with self:
            async for _ in self:
                pass
        return self._stream.completion

    @property
    def completion(self) -> Completion:
        """The answer so far; all of it once the stream has ended."""
        return self._stream.completion

    def cancel(self) -> None:
        """End the answer after the token under way; the last chunk has `finish_reason` "cancelled"."""
        self._stream.cancel()

    async def aclose(self) -> None:
        """End without another chunk and free the pages."""
        self._stream.close()
        self._driver.wake()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._stream.close()
        self._driver.wake()  # who knows the stream, too


def _settle(futures: list[asyncio.Future[None]], error: BaseException | None) -> None:
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


def _soon(loop: Loop, function: Callable[..., Any], *args: Any) -> None:
    """After the next turn of the loop: who was woken up before has come to read and write then."""
    loop.call_soon(loop.call_soon, function, *args)
