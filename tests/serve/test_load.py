"""A server that has much to do: queues, limits, deadlines, clients that leave."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx2 as httpx
import pytest

from qtransformers.serve.config import ServerConfig, hashed
from qtransformers.serve.errors import HTTPError
from qtransformers.serve.guard import Rates
from servers import LONG, running, settled


def data(line):
    return json.loads(line.removeprefix("data: "))


@pytest.fixture(scope="module")
def small(demo):
    """A server for one answer at a time, and one that waits."""
    with running([replace(demo, options={"threads": 1, "parallel": 1})], ServerConfig(queue=1)) as found:
        yield found


def test_one_too_many_is_told_when_to_come_back(small):
    url, server = small
    entry = server.models.entries[0]
    with httpx.Client(base_url=url, timeout=60) as http, ThreadPoolExecutor(1) as pool:
        with http.stream("POST", "/v1/completions", json=LONG) as first:
            lines = first.iter_lines()
            next(lines)
            second = pool.submit(http.post, "/v1/completions", json={"prompt": "A", "max_tokens": 2})
            while entry.answers < 2:
                time.sleep(0.001)
            third = http.post("/v1/completions", json={"prompt": "A", "max_tokens": 2})
            assert third.status_code == 503
            assert int(third.headers["retry-after"]) >= 1
            assert third.json()["error"]["code"] == "overloaded"
            assert "--queue" in third.json()["error"]["message"]
            assert http.get("/health").status_code == 200, "a full queue is no illness"
        assert second.result().status_code == 200, "the first has left, so its turn came"
    settled(entry)


def test_who_hangs_up_is_no_longer_computed(served):
    url, server = served
    entry = server.models.entries[0]
    free = settled(entry).free_pages
    with httpx.Client(base_url=url) as http:
        for stream in (True, False):
            before = entry.meters.counters["generation_tokens"]._value.get()
            try:
                with http.stream("POST", "/v1/completions", json=LONG | {"stream": stream}, timeout=0.2) as found:
                    for _ in zip(range(6), found.iter_lines(), strict=False):
                        pass
            except httpx.ReadTimeout:
                assert not stream
            assert settled(entry).free_pages == free
            assert entry.meters.counters["generation_tokens"]._value.get() - before < 900


def test_many_at_once_and_some_leave_or_err(served):
    url, server = served
    model = server.models.entries[0].loaded
    prompts = [f"The {word} said" for word in ("fox", "duck", "owl", "crow", "dog", "cat", "bear", "hare")]
    expected = {p: model.generate(p, max_tokens=30, temperature=0).text for p in prompts}

    def one(i):
        prompt = prompts[i % len(prompts)]
        ask = {"prompt": prompt, "max_tokens": 30, "temperature": 0}
        with httpx.Client(base_url=url, timeout=60) as http:
            if i % 4 == 1:  # leaves
                with http.stream("POST", "/v1/completions", json=LONG) as found:
                    next(found.iter_lines())
                return True
            if i % 4 == 2:  # errs
                return http.post("/v1/completions", json=ask | {"regex": "("}).status_code == 400
            return http.post("/v1/completions", json=ask).json()["choices"][0]["text"] == expected[prompt]

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(one, range(48)))
    settled(server.models.entries[0])


def test_an_answer_that_takes_too_long(demo):
    with running([demo], ServerConfig(timeout=0.3)) as (url, server), httpx.Client(base_url=url) as http:
        with http.stream("POST", "/v1/completions", json=LONG) as found:
            lines = [line for line in found.iter_lines() if line]
        assert found.status_code == 200
        assert len(lines) > 1
        assert data(lines[-1])["error"]["code"] == "timeout"
        late = http.post("/v1/completions", json=LONG | {"stream": False})
        assert (late.status_code, late.headers["x-should-retry"]) == (504, "false")
        assert "--timeout" in late.json()["error"]["message"]
        settled(server.models.entries[0])


def test_silence_is_filled(demo):
    with running([demo], ServerConfig(ping=0.02)) as (url, server), httpx.Client(base_url=url) as http:
        engine = server.models.entries[0].loaded._engine
        ask = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
        # as if a long prompt were computed
        with engine._exclusive(), http.stream("POST", "/v1/chat/completions", json=ask) as found:
            lines = found.iter_lines()
            pings = [line for line in (next(lines) for _ in range(8)) if line.startswith(":")]
        assert len(pings) >= 3


def test_limits_of_a_key(demo):
    keys = {"ann": hashed("a" * 20), "ben": hashed("b" * 20)}
    with running([demo], ServerConfig(keys=keys, per_key=1)) as (url, server), httpx.Client(base_url=url) as http:
        ann, ben = ({"authorization": f"Bearer {c * 20}"} for c in "ab")
        ask = {"prompt": "A", "max_tokens": 1}
        with (
            server.models.entries[0].loaded._engine._exclusive(),
            http.stream("POST", "/v1/completions", json=LONG, headers=ann),
        ):
            found = http.post("/v1/completions", json=ask, headers=ann)
            assert (found.status_code, found.json()["error"]["code"]) == (429, "concurrency")
            assert http.post("/tokenize", json={"prompt": "A"}, headers=ben).status_code == 200
        settled(server.models.entries[0])
        assert http.post("/v1/completions", json=ask, headers=ann).status_code == 200


def test_rates_refill():
    now = [0.0]
    rates = Rates(None, 2, clock=lambda: now[0])
    for _ in range(2):
        rates.enter("a")
    with pytest.raises(HTTPError, match="30 seconds") as e:
        rates.enter("a")
    assert (e.value.status, e.value.headers["retry-after"]) == (429, "30")
    rates.enter("b")
    now[0] = 30.0
    rates.enter("a")
    with pytest.raises(HTTPError):
        rates.enter("a")


def test_prompts_of_other_keys_are_not_to_be_found_in_the_cache(demo):
    keys = {"ann": hashed("a" * 20), "ben": hashed("b" * 20)}
    ask = {
        "prompt": "The lantern of the lighthouse keeper burned all night, and the ships came home. " * 8,
        "max_tokens": 1,
    }
    with running([demo], ServerConfig(keys=keys)) as (url, _), httpx.Client(base_url=url) as http:

        def cached(key, **more):
            found = http.post("/v1/completions", json=ask | more, headers={"x-api-key": key * 20}).json()
            return found["usage"]["prompt_tokens_details"]["cached_tokens"]

        assert [cached("a"), cached("b"), cached("a", cache_salt="x")] == [0, 0, 0]
        assert min(cached("a"), cached("b"), cached("a", cache_salt="x")) > 50


def test_a_model_that_answers_nothing_is_broken(demo, monkeypatch):
    with running([demo]) as (url, server), httpx.Client(base_url=url) as http:
        ask = {"prompt": "A", "max_tokens": 1}
        entry = server.models.entries[0]
        engine = entry.loaded._engine
        parts = engine._parts

        def fails(*args):
            raise RuntimeError("no such device")

        engine._parts = replace(parts, forward=fails)
        for n in range(3):
            assert http.get("/health").status_code == 200, n
            assert http.post("/v1/completions", json=ask).status_code == 500
        assert http.get("/health").json() == {"status": "broken"}
        assert http.get("/health").status_code == 503
        engine._parts = parts
        assert http.post("/v1/completions", json=ask).status_code == 200, "it may get well again"
        assert http.get("/health").json() == {"status": "ready"}
