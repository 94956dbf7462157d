"""Who computes for streams of event loops: a thread, or the loop itself while steps are short."""

import asyncio
import threading
import time
from contextlib import suppress

import pytest

from generate.remember import Remember, continuation, engine, random_prompt, stream
from qtransformers.generate import asynchronous
from qtransformers.generate.asynchronous import AsyncStream, Driver


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A busy machine makes no step long, and no loop late."""
    monkeypatch.setattr(asynchronous, "SHORT", 60.0)
    monkeypatch.setattr(asynchronous, "PATIENCE", 5.0)


class Watched(Remember):
    """A forward that tells which threads compute it; `amid` is called with how many there were."""

    def __init__(self, amid=lambda n: None):
        super().__init__()
        self.threads, self.amid = [], amid
        self.engine = engine(forward=self)
        self.driver = Driver(self.engine)

    def __call__(self, batch, cache):
        self.threads.append(threading.get_ident())
        self.amid(len(self.threads))
        return super().__call__(batch, cache)

    def stream(self, seed, n=40, **given):
        return AsyncStream(stream(self.engine, random_prompt(seed, 30), n, **given), self.driver)


async def texts(streams):
    return [done.tokens for done in await asyncio.gather(*(s.read() for s in streams))]


def expected(seeds, n=40):
    return [continuation(random_prompt(seed, 30), n) for seed in seeds]


def test_short_steps_are_computed_by_the_loop_that_reads():
    w = Watched()
    assert asyncio.run(texts([w.stream(i) for i in range(4)])) == expected(range(4))
    here = threading.get_ident()
    assert w.threads[0] != here, "prompts never hold a loop up"
    assert w.threads.count(here) > 30


def test_long_steps_are_not(monkeypatch):
    monkeypatch.setattr(asynchronous, "SHORT", 0.0)
    w = Watched()
    assert asyncio.run(texts([w.stream(i) for i in range(4)])) == expected(range(4))
    assert threading.get_ident() not in w.threads


def test_a_hook_never_runs_on_the_loop():
    """It may wait for what the loop has to do."""
    w = Watched()

    async def run():
        loop = asyncio.get_running_loop()

        def hook(tokens, logits):
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(10)
            return logits

        return await texts([w.stream(1, hooks=(hook,)), w.stream(2)])

    assert asyncio.run(run()) == expected([1, 2])


def test_a_loop_that_does_something_else_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(asynchronous, "PATIENCE", 0.2)
    more = threading.Event()
    w = Watched(lambda n: n > 50 and more.set())

    async def run():
        async with w.stream(3, 100) as chunks:
            async for _ in chunks:
                assert more.wait(5), "it is waited for, once or before every step"
            return chunks.completion.tokens

    assert asyncio.run(run()) == expected([3], 100)[0]
    assert threading.get_ident() not in w.threads[:50]
    assert threading.get_ident() in w.threads, "it comes again"


def test_two_loops_at_a_time():
    w = Watched()
    found = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: asyncio.run(texts([w.stream(i), w.stream(i + 10)]))}))
        for i in range(3)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
    assert found == {i: expected([i, i + 10]) for i in range(3)}


def test_a_loop_that_has_ended_is_followed_by_another(monkeypatch):
    monkeypatch.setattr(asynchronous, "PATIENCE", 0.01)
    w = Watched()
    kept = []

    async def leave():
        kept.append(w.stream(1, 1000))
        await anext(kept[0])

    asyncio.run(leave())
    assert asyncio.run(texts([w.stream(2)])) == expected([2])
    asyncio.run(kept[0].aclose())
    w.engine.step()  # after the one under way
    assert w.engine.usage.running == 0


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_what_a_step_raises_reaches_all_who_wait(error):
    def amid(n):
        if n == 10:
            raise error

    w = Watched(amid)
    told = []

    async def one(s):
        try:
            await s.read()
        except error as e:
            told.append(e)

    async def run():
        tasks = [asyncio.ensure_future(one(w.stream(i))) for i in range(3)]
        await asyncio.wait(tasks)

    with suppress(KeyboardInterrupt):
        asyncio.run(run())
        assert error is ZeroDivisionError, "Ctrl-C ends the loop, too"
    assert w.threads[9] == threading.get_ident()
    assert len(told) == 3 or error is KeyboardInterrupt
    assert asyncio.run(texts([w.stream(5)])) == expected([5])


def test_a_step_that_would_have_to_wait_is_left_to_the_thread():
    w = Watched()
    with w.engine._exclusive():
        found = []
        other = threading.Thread(target=lambda: found.append(w.engine.step(wait=False)))
        other.start()
        other.join(10)
        assert found == [False]
    assert not w.threads


def test_what_arrives_amid_steps_of_a_loop_is_begun_by_the_thread():
    w = Watched()
    here, hooked = threading.get_ident(), []

    def hook(tokens, logits):
        hooked.append(threading.get_ident())
        return logits

    async def run():
        first = asyncio.ensure_future(w.stream(0, 300).read())
        found = []
        for i in range(1, 20):
            while here not in w.threads[-2:] and not first.done():
                await asyncio.sleep(0)
            for _ in range(i % 5):
                await asyncio.sleep(0)
            found.append(await w.stream(i, 3, hooks=(hook,)).read())
        return [done.tokens for done in (await first, *found)]

    assert asyncio.run(run()) == [*expected([0], 300), *expected(range(1, 20), 3)]
    assert here in w.threads and len(hooked) == 19 * 3
    assert here not in hooked


def test_a_loop_that_was_slow_once_computes_again(monkeypatch):
    monkeypatch.setattr(asynchronous, "PATIENCE", 0.02)
    here, slow = threading.get_ident(), []

    def amid(n):
        if not slow and threading.get_ident() == here:
            slow.append(n)
            time.sleep(0.2)

    w = Watched(amid)
    assert asyncio.run(texts([w.stream(1, 400)])) == expected([1], 400)
    assert here in w.threads[slow[0] :]


@pytest.mark.parametrize("beside", ["a thread", "a loop"])
def test_an_end_that_comes_while_one_looks_loses_nothing(beside):
    w = Watched()
    s = stream(w.engine, random_prompt(1, 30), 5)
    look, rest = s.ready, AsyncStream(s, w.driver) if beside == "a loop" else s

    def ready():
        found = look()
        while found is None and w.engine.step():
            pass  # what another thread may do just then
        return found

    s.ready = ready

    async def read():
        return [chunk async for chunk in rest]

    chunks = asyncio.run(read()) if beside == "a loop" else list(rest)
    assert tuple(token for chunk in chunks for token in chunk.tokens) == expected([1], 5)[0]
    assert chunks[-1].finish_reason == "length"
