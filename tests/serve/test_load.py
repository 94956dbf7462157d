"""A server that has much to do: queues, limits, deadlines, clients that leave, an end that lets answers finish."""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import httpx2 as httpx
import pytest

from qtransformers.cli.command import main
from qtransformers.cli.serve import greeting, setting_of
from qtransformers.serve import guard, run
from qtransformers.serve.config import ServerConfig, hashed, read_keys
from qtransformers.serve.errors import HTTPError
from qtransformers.serve.guard import Rates
from servers import running

KEY = "k" * 24
LONG = {"prompt": "Once", "max_tokens": 900, "stream": True, "min_tokens": 900}


def settled(entry):
    """Whether nothing is under way any more, soon."""
    for _ in range(500):
        usage = entry.loaded.usage
        if not (entry.answers or entry.users or usage.running or usage.waiting):
            return usage
        time.sleep(0.01)
    raise AssertionError((entry, usage))


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


def test_slow_clients_are_let_go(served, monkeypatch):
    monkeypatch.setattr(run, "HEADERS_SECONDS", 0.2)
    host, port = served[0].removeprefix("http://").split(":")
    for sent in (b"", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-"):
        with socket.create_connection((host, int(port)), timeout=5) as s:
            s.sendall(sent)
            assert s.recv(100) == b""
    with socket.create_connection((host, int(port)), timeout=5) as s:  # one that keeps its connection is not disturbed
        for _ in range(2):
            s.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert s.recv(4096).startswith(b"HTTP/1.1 200")
            time.sleep(0.3)


def test_a_body_that_does_not_come(demo):
    with running([demo], ServerConfig(body_timeout=0.2)) as (url, _):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as s:
            s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
            found = s.recv(4096)
            assert found.startswith(b"HTTP/1.1 408")
            assert b"0.2 seconds" in found


def connected(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def ends(s, sending=b""):
    """What is read until the server ends the connection, `sending` a byte now and then."""
    found, s_end = b"", time.monotonic() + 10
    s.settimeout(0.05)
    while time.monotonic() < s_end:
        try:
            s.sendall(sending)
            part = s.recv(65536)
            if not part:
                return found
            found += part
        except TimeoutError:
            pass
        except ConnectionError:
            return found
    raise AssertionError("still open")


REFUSED = b"POST /v1/completions HTTP/1.1\r\nHost: %s\r\nContent-Length: 1000\r\n\r\n"


def test_a_refused_request_does_not_stay(served, monkeypatch):
    monkeypatch.setattr(run, "LINGER_SECONDS", 0.3)
    with connected(served[0]) as s:
        s.sendall(REFUSED % b"evil.example")
        assert ends(s, b" ").startswith(b"HTTP/1.1 403")
    with connected(served[0]) as s:  # one that ends its body may go on
        s.sendall(REFUSED % b"evil.example")
        assert s.recv(4096).startswith(b"HTTP/1.1 403")
        s.sendall(b" " * 1000)
        time.sleep(0.5)
        s.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert s.recv(4096).startswith(b"HTTP/1.1 200")


def test_empty_lines_are_no_request(served, monkeypatch):
    monkeypatch.setattr(run, "HEADERS_SECONDS", 0.3)
    with connected(served[0]) as s:
        s.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert s.recv(4096).startswith(b"HTTP/1.1 200")
        assert ends(s, b"\r\n") == b""


def test_a_peer_has_a_share_of_the_connections(demo, monkeypatch):
    with running([demo]) as (url, _):
        monkeypatch.setattr(run, "SHARE", 2)
        ask = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with connected(url) as a, connected(url) as b:
            for s in (a, b):
                s.sendall(ask)
                assert s.recv(4096).startswith(b"HTTP/1.1 200")
            with connected(url) as c:
                assert ends(c, ask) == b""
        for _ in range(100):
            with connected(url) as d, suppress(ConnectionError):
                d.sendall(ask)
                if d.recv(4096).startswith(b"HTTP/1.1 200"):
                    return
            time.sleep(0.02)
        raise AssertionError("those that have ended still count")


def test_peers_of_one_network():
    assert run._peer("2001:db8::1") == run._peer("2001:db8::ffff") != run._peer("2001:db8:0:1::1")
    assert run._peer("::ffff:10.0.0.1") == run._peer("10.0.0.1") != run._peer("::ffff:10.0.0.2")


def test_an_answer_that_is_not_read(demo, monkeypatch):
    lost = threading.Event()
    end, begin = run.Patient.connection_lost, run.Patient.connection_made

    def connection_made(self, transport):  # the system shall not take all of the answer
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        begin(self, transport)

    def connection_lost(self, exc):
        end(self, exc)
        lost.set()

    monkeypatch.setattr(run.Patient, "connection_lost", connection_lost)
    monkeypatch.setattr(run.Patient, "connection_made", connection_made)
    body = json.dumps({"prompt": "a " * 100_000, "return_token_strs": True}).encode()
    head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    roomy = replace(
        demo, options={**demo.options, "context_length": 65536, "cache": "q4"}
    )  # a text of so many bytes could fit
    with running([roomy], ServerConfig(stall=1.0)) as (url, _):
        host, port = url.removeprefix("http://").split(":")

        def asking(s):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            s.connect((host, int(port)))
            s.sendall(head + body)

        with socket.socket() as s:
            asking(s)
            assert lost.wait(30)
        with socket.socket() as s:  # one that reads gets all of it, however long it takes in all
            asking(s)
            found = b""
            while b"\r\n\r\n" not in found:
                found += s.recv(4096)
            n = int(re.search(rb"content-length: (\d+)", found)[1]) + found.index(b"\r\n\r\n") + 4
            got = len(found)
            while got < n:
                part = s.recv(1 << 16)
                assert part
                got += len(part)
                time.sleep(0.1)
            assert got == n


def test_who_hangs_up_amid_a_body_is_no_defect(served, caplog):
    with caplog.at_level("INFO"):
        with connected(served[0]) as s:
            s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
            time.sleep(0.1)
        for _ in range(200):
            told = [json.loads(r.message) for r in caplog.records if r.message.startswith("{")]
            if told:
                break
            time.sleep(0.02)
    assert told[-1]["ended"] == "disconnected"
    assert not [r for r in caplog.records if r.levelname == "ERROR"]


def test_who_hangs_up_with_more_requests_waiting_is_no_longer_computed(served):
    entry = served[1].models.entries[0]
    before = entry.meters.counters["generation_tokens"]._value.get()
    body = json.dumps(LONG).encode()
    with connected(served[0]) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        s.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert s.recv(100)
    settled(entry)
    assert entry.meters.counters["generation_tokens"]._value.get() - before < 900


def test_bodies_are_bounded_in_all(demo, monkeypatch):
    monkeypatch.setattr(guard, "BODIES", 1)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 190000\r\n\r\n"
    ask = {"prompt": "A", "max_tokens": 1}
    with running([demo], ServerConfig(max_body=200_000)) as (url, _), httpx.Client(base_url=url) as http:
        with connected(url) as a, connected(url) as b:
            for s in (a, b):
                s.sendall(head + b" " * 180_000)
                time.sleep(0.2)
            large = http.post("/v1/completions", content=b" " * 190_000)
            assert large.status_code == 503
            assert "200,000 bytes" in large.json()["error"]["message"]
            assert int(large.headers["retry-after"]) >= 1
            assert http.post("/v1/completions", json=ask).status_code == 200, "short ones pass"
        for _ in range(200):
            found = http.post("/v1/completions", content=b" " * 190_000).status_code
            if found == 400:
                break
            time.sleep(0.02)
        assert found == 400, "it is no JSON, and was read"


@pytest.fixture
def command(data, tmp_path):
    """The command, listening: its process and URL."""
    words = ["serve", str(data / "demo-Q8_0.gguf"), "--port", "0", "--alias", "demo", "--threads", "1"]
    env = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "QTRANSFORMERS_API_KEY": KEY}
    process = subprocess.Popen(
        [sys.executable, "-m", "qtransformers", *words], stderr=subprocess.PIPE, text=True, env=env
    )
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"listening at (\S+)", line):
            break
    threading.Thread(target=lambda: said.extend(process.stderr), daemon=True).start()
    yield process, found[1], said
    process.kill()
    process.wait()


def test_ps_finds_it(command, tmp_path, capsys, monkeypatch):
    process, url, _ = command
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for _ in range(500):
        assert main(["ps", "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)
        if found["models"] and found["models"][0]["state"] == "ready":
            break
        time.sleep(0.02)
    assert (found["url"], found["pid"], found["models"][0]["name"]) == (url, process.pid, "demo")
    assert found["models"][0]["context_length"] == 1024
    (file,) = (tmp_path / "qtransformers" / "servers").iterdir()
    assert file.stat().st_mode & 0o077 == 0
    assert main(["ps"]) == 0
    assert re.search(rf"{url} +demo +ready +0 +0 +[0-9]", capsys.readouterr().out)
    with httpx.Client(base_url=url) as http:
        assert http.get("/v1/models").status_code == 401, "the key is not the token"
    process.kill()
    process.wait()
    assert main(["ps"]) == 1
    assert "qtransformers serve" in capsys.readouterr().err
    assert not file.exists()


def test_sigterm_lets_answers_finish(command):
    process, url, said = command
    with httpx.Client(base_url=url, timeout=60, headers={"x-api-key": KEY}) as http:
        for _ in range(500):
            if http.get("/health").status_code == 200:
                break
            time.sleep(0.02)
        with http.stream("POST", "/v1/completions", json=LONG | {"max_tokens": 500, "min_tokens": 500}) as found:
            lines = found.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            while (state := httpx.get(f"{url}/health", timeout=60)).status_code == 200:
                time.sleep(0.01)
            assert (state.status_code, state.json()) == (503, {"status": "draining"}), "who asks anew is told"
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert data(rest[-2])["choices"][0]["finish_reason"] == "length"
        assert process.wait(20) == 0
        with pytest.raises(httpx.ConnectError):
            http.get("/health")
    assert any("curl http" in line for line in said)
    assert any('"finish": "length"' in line for line in said)


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("awk")), reason="no curl or awk")
@pytest.mark.parametrize("source", ["file", "environment", None])
def test_the_printed_lines_run_as_printed(demo, tmp_path, source, monkeypatch):
    file = tmp_path / "keys of ours"
    file.write_text(f"# a remark\n\nalice {KEY} # hers\nbob {'b' * 20}\n")
    args = argparse.Namespace(api_key_file=str(file) if source == "file" else None)
    monkeypatch.delenv("QTRANSFORMERS_API_KEY", raising=False)
    if source == "environment":
        monkeypatch.setenv("QTRANSFORMERS_API_KEY", KEY)
    with running([demo], ServerConfig(keys=read_keys(file) if source else {})) as (url, _):
        said = greeting(url, "demo", setting_of(args, source is not None))
        lines, python = said.split("\n\n")[1:]
        found = subprocess.run(["sh", "-c", lines.replace("curl ", "curl -s ")], capture_output=True, text=True, check=True)  # fmt: skip
        assert json.loads(found.stdout)["choices"][0]["message"]["content"]
        if shell := [line for line in lines.splitlines() if "export" in line]:
            key = subprocess.run(["sh", "-c", f'{shell[0]}\nprintf %s "$QTRANSFORMERS_API_KEY"'], capture_output=True, text=True, check=True).stdout  # fmt: skip
            monkeypatch.setenv("QTRANSFORMERS_API_KEY", key)
        pytest.importorskip("openai")
        exec(textwrap.dedent(python), {"print": (told := []).append})
        assert told[0]


def test_a_client_that_reads_nothing_is_let_go(demo):
    with running([demo], ServerConfig(stall=0.4, ping=0.1)) as (url, server):
        host, port = url.removeprefix("http://").split(":")
        ask = {"messages": [{"role": "user", "content": "Hi"}], "n": 16, "max_tokens": 800, "min_tokens": 800, "stream": True, "logprobs": True, "top_logprobs": 20}  # fmt: skip
        body = json.dumps(ask).encode()
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect((host, int(port)))
            s.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
                + body
            )
            entry = server.models.entries[0]
            while not entry.answers:
                time.sleep(0.01)
            settled(entry)
            counted = entry.meters.counters["generation_tokens"]._value.get()
            assert 0 < counted < 16 * 800
            refused = server.models.metrics.refused.labels("408", "stalled")._value.get()
            assert refused == 1


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


@pytest.mark.skipif(not hasattr(signal, "SIGBUS"), reason="there a file that is mapped cannot become shorter")
def test_a_model_that_is_written_over_is_named_in_the_end(data, tmp_path):
    path = shutil.copy(data / "demo-Q8_0.gguf", tmp_path / "written-over.gguf")
    command = [sys.executable, "-m", "qtransformers", "serve", str(path), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    url = next(line.split()[-1] for line in process.stderr if line.startswith("listening"))
    with httpx.Client(base_url=url, timeout=60) as http:
        while http.get("/health").status_code != 200:
            time.sleep(0.02)
        os.truncate(path, 4096)
        with suppress(httpx.HTTPError):
            http.post("/v1/completions", json={"prompt": "Once", "max_tokens": 20})
    assert process.wait(60) == -signal.SIGBUS
    assert f"qtransformers: {path} has become shorter" in process.stderr.read()
