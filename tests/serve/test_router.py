"""Several processes behind one address: shared out, streamed through, killed, started again."""

import asyncio
import json
import logging
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import pytest

pytest.importorskip("starlette")
import httpx2 as httpx

from qtransformers import Model
from qtransformers.errors import ConfigError
from qtransformers.serve.call import Call
from qtransformers.serve.config import ServerConfig, hashed
from qtransformers.serve.models import ModelSpec
from qtransformers.serve.replicas import _answer
from qtransformers.serve.router import SLACK, Router, marks_of, summed, together
from servers import PATIENCE, replicated, until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="socket files")
KEY, OTHER = "k" * 20, "o" * 20


@pytest.fixture(scope="module")
def spec(data):
    return ModelSpec(str(data / "demo-Q8_0.gguf"), ("demo",), {"threads": 1, "parallel": 2})


@pytest.fixture(scope="module")
def two(spec):
    with replicated([spec], queue=2, keys={"a": hashed(KEY), "b": hashed(OTHER)}) as found:
        yield found


@pytest.fixture
def http(two):
    with httpx.Client(base_url=two[0], timeout=PATIENCE, headers={"authorization": f"Bearer {KEY}"}) as client:
        yield client


def chat(text, **more):
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8, **more}


def lines_of(response):
    return [json.loads(x[6:]) for x in response.iter_lines() if x.startswith("data: ") and x != "data: [DONE]"]


def test_answers_are_those_of_the_model(http, data):
    with Model.load(data / "demo-Q8_0.gguf", threads=1) as model:
        expected = model.chat(chat("Tell me a story.")["messages"], temperature=0, max_tokens=8).text
    found = http.post("/v1/chat/completions", json=chat("Tell me a story."))
    assert found.status_code == 200 and found.json()["choices"][0]["message"]["content"] == expected
    with http.stream("POST", "/v1/chat/completions", json=chat("Tell me a story.", stream=True)) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "".join(x["choices"][0]["delta"].get("content") or "" for x in lines_of(response)) == expected
    assert [m["id"] for m in http.get("/v1/models").json()["data"]] == ["demo"]
    assert http.post("/v1/chat/completions", json={"messages": 3}).json()["error"]["param"] == "messages"
    assert http.get("/nowhere").status_code == 404


def test_keys_are_asked_for_once_for_all(two):
    url, _ = two
    assert httpx.get(f"{url}/health").json() == {"status": "ready", "replicas": ["ready", "ready"]}
    for headers in ({}, {"x-api-key": "wrong"}):
        assert httpx.post(f"{url}/v1/chat/completions", json=chat("Hi"), headers=headers).status_code == 401
        assert httpx.get(f"{url}/metrics", headers=headers).status_code == 401


def test_parts_pass_as_they_come(http):
    """The first tokens are there long before the answer is complete."""
    body = chat("Tell me a story.", stream=True, max_tokens=400, min_tokens=400)
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        parts = response.iter_lines()
        seen = [x for x in (next(parts) for _ in range(12)) if x.startswith("data: ")]
        metrics = http.get("/metrics").text
        assert len(seen) > 3 and running(metrics) == 1
        assert sum(1 for x in parts if x.startswith("data: ")) > 50


def running(metrics):
    return sum(float(x.split()[-1]) for x in metrics.splitlines() if x.startswith("vllm:num_requests_running{"))


def test_who_hangs_up_frees_the_replica(http, two):
    _, router = two
    body = chat("Tell me a story.", stream=True, max_tokens=900, min_tokens=900)
    with http.stream("POST", "/v1/chat/completions", json=body) as response:
        next(response.iter_lines())
    until(lambda: all(r.load == 0 for r in router.replicas))
    until(lambda: running(http.get("/metrics").text) == 0)


def test_the_log_tells_of_whole_answers(http, caplog):
    """A connection that is closed after its answer is no client that hung up before."""
    caplog.set_level(logging.INFO, "qtransformers.serve")
    for i in range(24):
        found = http.post("/v1/chat/completions", json=chat("Hi", stream=True), headers={"connection": "close"})
        assert len(lines_of(found)) > 1
        until(lambda n=i + 1: len(told_of(caplog)) == n)
    for told in told_of(caplog):
        assert "ended" not in told and (told["model"], told["finish"]) == ("demo", "length"), told


def told_of(caplog):
    told = [json.loads(r.message) for r in caplog.records if r.name == "qtransformers.serve" and r.message[0] == "{"]
    return [x for x in told if x["path"] == "/v1/chat/completions"]


def test_methods_are_those_of_one_process(http):
    for path in ("/health", "/metrics"):
        assert http.head(path).status_code == http.get(path).status_code == 200
        for method in ("POST", "DELETE", "PUT"):
            found = http.request(method, path)
            assert found.status_code == 405 and found.json()["error"]["code"] == "method_not_allowed"


def test_both_take_part_and_a_conversation_stays(http, two):
    """Long beginnings are computed once: the same replica has them in its cache."""
    _, router = two

    def counts():
        return [router_metric(router, r, "vllm:prompt_tokens_total") for r in router.replicas]

    before = counts()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda i: http.post("/v1/chat/completions", json=chat(f"{i} foxes?", max_tokens=60, min_tokens=60)), range(4)))  # fmt: skip
    assert all(b > a for a, b in zip(before, counts(), strict=True))
    messages = [{"role": "system", "content": "You like foxes and tell short stories about them. " * 12}]
    for turn in range(4):
        messages.append({"role": "user", "content": f"Tell me story number {turn}."})
        found = http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 8, "temperature": 0}).json()
        cached = found["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached > 100 or turn == 0
        messages.append(found["choices"][0]["message"])


def router_metric(router, replica, name):
    text = asyncio.run(replica.get("/metrics"))[1].decode()
    return sum(float(x.split()[-1]) for x in text.splitlines() if x.startswith(f"{name}{{"))


def test_too_many_at_once(http):
    """Two processes, each with two answers and two that wait: of 16 at once eight are answered at least, the others hear when to come again."""
    body = chat("Tell me a story.", max_tokens=100, min_tokens=100)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: http.post("/v1/chat/completions", json=body), range(16)))
    codes = [x.status_code for x in found]
    assert set(codes) == {200, 503} and codes.count(200) >= 8
    assert all(int(x.headers["retry-after"]) > 0 for x in found if x.status_code == 503)


def test_a_killed_replica(spec):
    """Answers that had begun end with an error; those that had not are given by the other; it is started again."""
    with replicated([spec]) as (url, router), httpx.Client(base_url=url, timeout=PATIENCE) as http:
        body = chat("Tell me a story.", stream=True, max_tokens=900, min_tokens=900)
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            for _ in range(8):
                next(lines)
            busy = next(r for r in router.replicas if r.load)
            # This one waits in the process that is killed, where its beginning is: nothing of it was sent.
            with ThreadPoolExecutor(1) as pool:
                waits = pool.submit(http.post, "/v1/chat/completions", json=chat("Tell me a story.", max_tokens=300, min_tokens=300))  # fmt: skip
                until(lambda: sum(r.load for r in router.replicas) == 2)
                os.kill(busy._process.pid, signal.SIGKILL)
                rest = [json.loads(x[6:]) for x in lines if x.startswith("data: {")]
                assert rest[-1]["error"]["code"] == "replica_lost"
                assert waits.result().status_code == 200
        assert http.post("/v1/chat/completions", json=chat("Hi")).status_code == 200
        until(lambda: busy.starts == 2 and busy.state == "ready")
        os.kill(router.replicas[1 - busy.number]._process.pid, signal.SIGKILL)
        until(lambda: router.replicas[1 - busy.number].state != "ready")
        assert http.post("/v1/chat/completions", json=chat("Hi")).status_code == 200


def test_a_model_that_cannot_be_loaded_is_the_end(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    router = Router([ModelSpec(str(tmp_path / "m.gguf"))], ServerConfig(), 1)
    heard = []

    async def start():
        await router.replicas[0].supervise(heard.append)

    asyncio.run(asyncio.wait_for(start(), PATIENCE))
    assert len(heard) == 1 and "replica 0 ended with code 4 before it could answer" in str(heard[0])


def choosing(loads, parallel=4):
    router = Router([ModelSpec("demo", options={"parallel": parallel})], ServerConfig(), len(loads))
    router.replicas = [SimpleNamespace(number=i, load=n, state="ready", chosen=0) for i, n in enumerate(loads)]
    return router


def test_who_is_chosen():
    def body(text, **more):
        return json.dumps({**more, "messages": [{"role": "user", "content": text}]}).encode()

    router = choosing([0, 0, 0])
    assert [router.choose([]).number for _ in range(4)] == [0, 1, 2, 0]  # in turns, where all have as much to do
    long = "x" * 2000
    first = router.choose(marks_of("k", body(long))).number
    for more in ({}, {"seed": 3}, {"temperature": 1.0, "stream": True}):  # whatever else it says, in whatever order
        assert router.choose(marks_of("k", body(long + "and more", **more))).number == first
    router.replicas[first].load = 4 + SLACK
    assert router.choose(marks_of("k", body(long))).number != first  # it has too much to do
    assert marks_of("k", body(long)) != marks_of("other", body(long)), "keys share no caches"
    assert len(set(marks_of("k", body("y" * 2000)))) == len(marks_of("k", body("y" * 2000))) == 7
    assert marks_of("k", b"{") == marks_of("k", b"\xff") == marks_of("k", b"[" * 100_000) == []
    router.replicas[0].state = router.replicas[1].state = router.replicas[2].state = "gone"
    assert router.choose([]) is None


def test_who_paints():
    """One of them, whatever it has to do: another would load a pipeline of its own."""
    router = choosing([1, 0, 0])
    assert router.choose_painter().number == 1
    router.replicas[1].load = 9
    assert router.choose_painter().number == 1
    assert router.choose_painter([router.replicas[1]]).number == 2, "it was lost"
    router.replicas[2].state = "gone"
    assert router.choose_painter().number == 0
    with pytest.raises(ConfigError, match="Leave --replicas out"):
        Router([], ServerConfig(), 2)


def test_models_of_several_as_of_one(two):
    def said(state, running, memory, mapped):
        more = {"running": running, "waiting": 1, "context_length": 64 if state == "ready" else None}
        models = [
            {"id": "a", "state": state, "qtransformers": more},
            {"id": "p", "state": "unloaded", "qtransformers": {"kind": "diffusion"}},
        ]
        return {"object": "list", "data": models, "qtransformers": {"memory_bytes": memory, "mapped_bytes": mapped}}

    own = {"memory_bytes": 50, "mapped_bytes": 20}
    found = together([said("loading", 0, 100, 90), said("ready", 3, 300, 250)], own)
    assert found["qtransformers"] == {"memory_bytes": 30 + 10 + 50 + 250, "mapped_bytes": 250}
    assert [m["state"] for m in found["data"]] == ["ready", "unloaded"]
    assert found["data"][0]["qtransformers"] == {"running": 3, "waiting": 2, "context_length": 64}
    unknown = {"memory_bytes": None, "mapped_bytes": None}
    assert together([said("ready", 0, None, None)], unknown)["qtransformers"] == unknown

    url, router = two
    one = asyncio.run(router.replicas[0].get("/v1/models"))[1]
    both = httpx.get(f"{url}/v1/models", headers={"x-api-key": KEY}).json()
    assert [m["id"] for m in both["data"]] == ["demo"] and both["data"][0]["state"] == "ready"
    assert both["qtransformers"]["memory_bytes"] > json.loads(one)["qtransformers"]["memory_bytes"] > 0
    assert httpx.get(f"{url}/v1/models").status_code == 401


def test_replicas_know_who_asks(spec):
    """Their threads are shared out among clients: keys, or addresses where there are none."""
    found = []

    async def app(scope, receive, send):
        found.append(Call(scope, receive, send, ServerConfig()).client)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def run():
        router = Router([spec], ServerConfig(), 1)
        router.replicas[0].state = "ready"
        async with await asyncio.start_unix_server(partial(_answer, app), router.replicas[0]._path):
            for address, key in (("10.0.0.7", ""), ("10.0.0.8", ""), ("10.0.0.8", "bob")):
                messages = [{"type": "http.request", "body": b"{}"}]

                async def receive(messages=messages):
                    return messages.pop() if messages else await asyncio.Event().wait()

                async def send(message):
                    assert message.get("status", 200) == 200

                scope = {"type": "http", "method": "POST", "path": "/tokenize", "query_string": b"", "headers": [], "client": (address, 5), "qtransformers.key": key}  # fmt: skip
                await router(scope, receive, send)

    asyncio.run(run())
    assert found == ["10.0.0.7", "10.0.0.8", "bob"]


def test_metrics_of_several_as_of_one():
    a = '# HELP x_total Of.\n# TYPE x_total counter\nx_total{m="a b"} 2.0\nx_created{m="a b"} 7.0\nkv_perc 0.5\nh_bucket{le="+Inf"} 3.0\n'
    b = '# HELP x_total Of.\n# TYPE x_total counter\nx_total{m="a b"} 3.0\nx_created{m="a b"} 9.0\nkv_perc 0.1\nh_bucket{le="+Inf"} 4.0\ny 1.5\n'
    assert summed([a, b]).decode() == (
        '# HELP x_total Of.\n# TYPE x_total counter\nx_total{m="a b"} 5.0\nx_created{m="a b"} 7.0\nkv_perc 0.3\nh_bucket{le="+Inf"} 7.0\ny 1.5\n'
    )
