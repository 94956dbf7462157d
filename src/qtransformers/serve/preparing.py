"""Threads that render, encode and compile for requests: clients take turns, and long texts keep no short ones waiting."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")
LONG = 1 << 16  # bytes of a body, from which on it is prepared beside the others


class Lane:
    """`threads` of which one client has at most `share`; who waits comes in turns, client by client. Of one event loop."""

    def __init__(self, threads: int, share: int) -> None:
        self._free, self._share = threads, share
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
        self._running: Counter[Hashable] = Counter()
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}  # whose turn comes first, first

    async def run(self, client: Hashable, function: Callable[..., T], *args: Any) -> T:
        """What `function` returns. Who leaves while it runs keeps the thread until it has ended."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        self._next()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it has just come
                self._leave(client)
            else:
                self._forget(client, turn)
            raise
        try:
            work = self._threads.submit(function, *args)
        except RuntimeError:  # the server has ended
            self._leave(client)
            raise
        work.add_done_callback(partial(self._ended, loop, client))
        return await asyncio.wrap_future(work)

    def close(self) -> None:
        """Begin nothing more."""
        self._threads.shutdown(wait=False)

    def _next(self) -> None:
        """Let begin who may."""
        for client in list(self._waiting):
            if not self._free:
                return
            if self._running[client] >= self._share:
                continue
            turns = self._waiting.pop(client)
            while turns:
                turn = turns.popleft()
                if not turn.cancelled():  # else who waited has left, and has not heard of it yet
                    self._free -= 1
                    self._running[client] += 1
                    turn.set_result(None)
                    break
            if turns:
                self._waiting[client] = turns  # behind the others

    def _forget(self, client: Hashable, turn: asyncio.Future[None]) -> None:
        turns = self._waiting.get(client, deque())
        if turn in turns:
            turns.remove(turn)
            if not turns:
                del self._waiting[client]

    def _ended(self, loop: asyncio.AbstractEventLoop, client: Hashable, work: Future[Any]) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._leave, client)

    def _leave(self, client: Hashable) -> None:
        self._free += 1
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
        self._next()


class Preparing:
    """A lane for short bodies and one for long ones."""

    def __init__(self) -> None:
        self._short, self._long = Lane(4, 3), Lane(2, 1)

    async def run(self, client: Hashable, size: int, function: Callable[..., T], *args: Any) -> T:
        """What `function` returns, computed in a thread for a `client` whose body has `size` bytes."""
        lane = self._long if size >= LONG else self._short
        return await lane.run(client, function, *args)

    def close(self) -> None:
        """Begin nothing more."""
        self._short.close()
        self._long.close()
