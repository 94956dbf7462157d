"""Streams beside an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType

from qtransformers.generate.stream import Chunk, Completion, Stream


class AsyncStream(AsyncIterator[Chunk]):
    """A `Stream` whose forwards run in a worker thread."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def __anext__(self) -> Chunk:
        try:
            chunk = await asyncio.to_thread(next, self._stream, None)
        except asyncio.CancelledError:
            self._stream.close()
            raise
        if chunk is None:
            raise StopAsyncIteration
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
        """End the answer after the token under way; the next chunk is the last."""
        self._stream.cancel()

    async def aclose(self) -> None:
        """End without another chunk and free the pages."""
        self._stream.close()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
