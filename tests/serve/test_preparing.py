"""Long texts and busy clients keep nobody else waiting for a thread."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import pytest

from qtransformers.serve.config import ServerConfig, hashed
from qtransformers.serve.models import Entry
from qtransformers.serve.preparing import LONG, Lane, Preparing
from servers import running

ALICE, BOB = "a" * 24, "b" * 24


def run(scenario):
    gate = threading.Event()
    try:
        return asyncio.run(asyncio.wait_for(scenario(gate), 20))
    finally:
        gate.set()


async def begun(counts, n):
    while len(counts) < n:
        await asyncio.sleep(0.001)


def test_a_client_has_its_share_and_no_more():
    async def scenario(gate):
        lane, held = Lane(3, 2), []
        tasks = [asyncio.create_task(lane.run("a", lambda: held.append(gate.wait()))) for _ in range(5)]
        assert await lane.run("b", lambda: threading.current_thread().name) is not None
        assert not held
        gate.set()
        await asyncio.gather(*tasks)
        assert held == [True] * 5
        lane.close()

    run(scenario)


def test_clients_take_turns():
    async def scenario(gate):
        lane, order = Lane(1, 1), []
        first = asyncio.create_task(lane.run("a", gate.wait))
        await asyncio.sleep(0)
        names = ["a", "a", "a", "b", "b", "c"]
        rest = [asyncio.create_task(lane.run(name, order.append, name)) for name in names]
        await asyncio.sleep(0)
        gate.set()
        await asyncio.gather(first, *rest)
        assert order == ["a", "b", "c", "a", "b", "a"]

    run(scenario)


def test_who_leaves_just_before_its_turn_takes_nobody_s():
    async def scenario(gate):
        lane = Lane(1, 1)
        works = asyncio.create_task(lane.run("a", gate.wait))
        await asyncio.sleep(0)
        leaves = [asyncio.create_task(lane.run("b", gate.wait)) for _ in range(2)]
        stays = [asyncio.create_task(lane.run(name, str.upper, name)) for name in "bc"]
        await asyncio.sleep(0)
        gate.set()
        lane._threads.submit(int).result()  # the loop hears of the end of the first in its next turn,
        for task in leaves:
            task.cancel()  # and these behind that
        assert await works
        assert await asyncio.gather(*stays) == ["B", "C"]
        assert await lane.run("d", len, "four") == 4
        assert not lane._waiting and not lane._running
        lane.close()

    run(scenario)


def test_who_leaves_waits_no_more_and_gives_its_thread_back_when_that_has_ended():
    async def scenario(gate):
        lane, seen = Lane(1, 1), []
        works = asyncio.create_task(lane.run("a", lambda: (seen.append("works"), gate.wait())))
        await begun(seen, 1)
        waits = asyncio.create_task(lane.run("a", seen.append, "never"))
        last = asyncio.create_task(lane.run("b", seen.append, "last"))
        await asyncio.sleep(0)
        for task in (works, waits):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert seen == ["works"], "a thread cannot be taken back"
        gate.set()
        await last
        assert seen == ["works", "last"]

    run(scenario)


def test_an_error_frees_the_thread():
    async def scenario(gate):
        lane = Lane(1, 1)
        with pytest.raises(ZeroDivisionError):
            await lane.run("a", lambda: 1 // 0)
        assert await lane.run("a", lambda: 5) == 5
        lane.close()
        with pytest.raises(RuntimeError):
            await lane.run("a", lambda: 5)

    run(scenario)


def test_long_bodies_hold_up_long_ones_only():
    async def scenario(gate):
        lanes = Preparing()
        held = [asyncio.create_task(lanes.run(f"client {i}", LONG, gate.wait)) for i in range(9)]
        await asyncio.sleep(0)
        assert await lanes.run("client 0", LONG - 1, lambda: 5) == 5
        gate.set()
        await asyncio.gather(*held)

    run(scenario)


def test_big_bodies_of_a_key_stall_nobody(demo, monkeypatch):
    """Neither other keys nor its own short requests."""
    gate, entered = threading.Event(), []
    check = Entry.check_length

    def slow(self, name, text):
        if len(text) > LONG:
            entered.append(name)
            assert gate.wait(60)
        check(self, name, text)

    monkeypatch.setattr(Entry, "check_length", slow)
    config = ServerConfig(port=0, keys={"alice": hashed(ALICE), "bob": hashed(BOB)})
    with (
        running([demo], config) as (url, _),
        httpx.Client(base_url=url, timeout=20) as http,
        ThreadPoolExecutor(6) as pool,
    ):

        def ask(key, prompt):
            return http.post("/tokenize", json={"prompt": prompt}, headers={"x-api-key": key}).status_code

        try:
            big = [pool.submit(ask, ALICE, "a" * 2 * LONG) for _ in range(6)]
            while not entered:
                assert not any(task.done() for task in big)
            assert [ask(key, "a few words") for key in (BOB, ALICE)] == [200, 200]
            assert len(entered) == 1, "one at a time of a key"
        finally:
            gate.set()
        assert [task.result() for task in big] == [400] * 6, "more than the context holds"
