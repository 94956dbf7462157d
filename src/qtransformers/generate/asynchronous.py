"""Streams beside an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from threading import Condition, Thread
from types import TracebackType

from qtransformers.generate.engine import Engine
from qtransformers.generate.sequence import Chunk, Completion
from qtransformers.generate.stream import Stream


class Driver:
    """Computes an engine's steps on a thread of its own while streams of event loops are under way; else there is none."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._turn = Condition()
        self._streams: set[Stream] = set()  # under way
        self._waiting: dict[asyncio.Future[None], Stream] = {}
        self._thread: Thread | None = None

    async def wait(self, stream: Stream) -> None:
        """Until the stream has a chunk or an end; what the forward raises, it raises here."""
        future = asyncio.get_running_loop().create_future()
        with self._turn:
            self._streams.add(stream)
            self._waiting[future] = stream
            if self._thread is None:
                self._thread = Thread(target=self._run, name="qtransformers", daemon=True)
                self._thread.start()
            self._turn.notify()
        try:
            await future
        finally:
            with self._turn:
                self._waiting.pop(future, None)

    def wake(self) -> None:
        """There is room for more of a stream's chunks."""
        with self._turn:
            self._turn.notify()

    def _run(self) -> None:
        worked, error = True, None
        while True:
            with self._turn:
                self._tell(error)
                while self._streams and not worked and not self._waiting:
                    self._turn.wait()
                    worked = True  # or so it may be now
                    self._tell()
                if not self._streams:
                    self._thread = None
                    return
            try:
                worked, error = self._engine.step(), None
            except BaseException as e:
                worked, error = False, e

    def _tell(self, error: BaseException | None = None) -> None:
        """Wake up who has something to read, or everybody with an error."""
        ready: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        for future, stream in list(self._waiting.items()):
            if stream.news or error is not None:
                del self._waiting[future]
                ready.setdefault(future.get_loop(), []).append(future)
        for loop, futures in ready.items():
            with suppress(RuntimeError):  # it has been closed
                loop.call_soon_threadsafe(_settle, futures, error)  # one call into the system for all of them
        self._streams = set() if error is not None else {s for s in self._streams if not s.ended}


class AsyncStream(AsyncIterator[Chunk]):
    """A `Stream` whose forwards run beside the event loop."""

    def __init__(self, stream: Stream, driver: Driver) -> None:
        self._stream = stream
        self._driver = driver

    async def __anext__(self) -> Chunk:
        try:
            while (chunk := self._stream.ready()) is None:
                if self._stream.ended:
                    raise StopAsyncIteration
                await self._driver.wait(self._stream)
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
