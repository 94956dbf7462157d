"""Clients that are slow, send too much, read nothing or hang up: no connection stays, and nothing is kept."""

import json
import re
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace

import httpx2 as httpx

from qtransformers.serve import guard, run
from qtransformers.serve.config import ServerConfig
from servers import LONG, running, settled


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
