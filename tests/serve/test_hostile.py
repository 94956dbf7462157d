"""Whatever a request holds, the answer is an answer or an error of ours, soon, and the server goes on."""

import gc
import json
import socket
import time
import weakref

import httpx2 as httpx
import pytest
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from qtransformers.generate import engine
from qtransformers.serve import fields, run
from qtransformers.serve.config import ServerConfig
from qtransformers.serve.errors import KINDS
from qtransformers.serve.routes import ROWS
from servers import running

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
GOOD = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"prompt": "A fox", "max_tokens": 2},
    "/v1/embeddings": {"input": "A fox"},
    "/v1/images/generations": {"prompt": "A fox"},  # by a model that draws none: refused, and soon
    "/tokenize": {"prompt": "A fox"},
    "/detokenize": {"tokens": [5, 6]},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 2},
    "/v1/messages": CHAT,
    "/v1/messages/count_tokens": {"messages": CHAT["messages"]},
}
VALUES = [
    None, True, False, 0, -1, 1.5, 10**9, 2**63, -(2**63) - 1, 10**40, 1e308, -1e308, "", "x", "x" * 100_000, "\x00", "\u202e", "🦊",
    [], [None], [[]], [{}], [10**9], ["x"] * 2000, [-1.5], ["\x00"], {}, {"a": 1}, {"": None}, {"type": "x"}, {"x" * 5000: {"y": [0] * 100}},
]  # fmt: skip
BODIES = [row for row in ROWS if row.method == "POST"]


def checked(found, row):
    """The reply of an error is in the API's own shape and says something."""
    assert found.status_code in (200, *KINDS), found.text
    assert found.status_code != 500, found.text
    if found.status_code >= 400:
        error = found.json()["error"]
        assert error["type"] in {kinds[row.anthropic] for kinds in KINDS.values()}
        assert 10 < len(error["message"]) < 2000
        assert "Traceback" not in found.text
    return found


def test_every_route_has_a_good_request():
    assert {row.path for row in BODIES} <= set(GOOD)


@pytest.mark.parametrize("row", BODIES, ids=lambda row: row.path)
def test_bad_values_in_every_field(http, served, row):
    names = row.body.__struct_encode_fields__
    if row.path != "/v1/completions":  # which has them from the same class
        names = [name for name in names if name not in fields.SAMPLING]
    for name in names:
        for value in VALUES:
            if name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens") and value in (
                None,
                0,
            ):
                continue  # a long answer, and rightly so
            start = time.process_time()  # of client and server: what else the machine does is not in it
            checked(http.post(row.path, json=GOOD[row.path] | {name: value}), row)
            assert time.process_time() - start < 10, (name, value)
    assert http.get("/health").json() == {"status": "ready"}


@pytest.mark.parametrize("row", BODIES, ids=lambda row: row.path)
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"5", b"\xff\xfe", b'{"a": NaN}', b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"prompt": "\\ud800"}', b'{"prompt": "\xed\xa0\x80"}', b"[" * 100_000, b'{"messages": ' + b"[" * 50_000, b'{"metadata": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001,
        b'{"prompt": 1e999}', b'{"seed": 1' + b"0" * 5000 + b"}", b'{"prompt": "a", "prompt": "b", "nope": 1}', b'\xef\xbb\xbf{"prompt": "a"}',
        b'{"tools": [' + b'{"type":"function","function":{"parameters":' * 60 + b"1" + b"}}" * 60 + b"]}",
    ],
    ids=range(19),
)  # fmt: skip
def test_bodies_that_are_none(http, row, body):
    assert checked(http.post(row.path, content=body), row).status_code == 400


def test_deep_values_that_pass_the_parser(http):
    deep = "x"
    for _ in range(300):
        deep = [deep]
    for body in ({"tools": [{"a": deep}]}, {"chat_template_kwargs": {"a": deep}}, {"documents": [{"a": deep}]}):  # fmt: skip
        found = http.post("/v1/chat/completions", json=CHAT | body)
        assert found.status_code == 400, found.text


@pytest.mark.parametrize("size", [2_000, 20_000])
def test_bodies_that_are_too_large(demo, size):
    with running([demo], ServerConfig(max_body=1024)) as (url, _), httpx.Client(base_url=url) as http:
        found = http.post("/v1/completions", content=b" " * size)
        assert found.status_code == 413
        assert "1,024" in found.json()["error"]["message"]
        parts = iter([b" " * 600] * 30)  # whose length is not said
        assert http.post("/v1/completions", content=parts).status_code == 413
        assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize(
    "grammar",
    [
        {"json_schema": {"$ref": "#"}},
        {"json_schema": {"enum": list(range(100_000))}},
        {"json_schema": {"type": "string", "pattern": "(a{1,1000}){1,1000}"}},
        {"regex": "(" * 5000},
        {"regex": "(a|a)*" * 500},
        {"grammar": "root ::= " + "(" * 2000},
        {"grammar": 'root ::= root "a"'},
        {"json_schema": True, "regex": "a"},
    ],
    ids=range(8),
)
def test_grammars_that_cost_too_much(http, grammar):
    start = time.process_time()
    row = next(row for row in ROWS if row.path == "/v1/completions")
    checked(http.post("/v1/completions", json={"prompt": "a", "max_tokens": 3, **grammar}), row)
    assert time.process_time() - start < 20
    assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize("template", ["{{ lipsum.__globals__ }}", "{% for i in range(999999999) %}x{% endfor %}"])
def test_templates_of_requests_are_refused(http, template):
    found = http.post("/v1/chat/completions", json=CHAT | {"chat_template": template})
    assert found.status_code == 400
    assert "--allow-templates" in found.json()["error"]["message"]


@pytest.mark.parametrize(
    "url",
    ["http://169.254.169.254/latest", "file:///etc/passwd", "https://example.com/a.png", "data:image/png;base64,AAAA"],
)
def test_images_are_refused_and_nothing_is_fetched(http, url):
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    found = http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": parts}], "max_tokens": 2})
    assert found.status_code == 400
    assert "image_url" in found.json()["error"]["message"]


@pytest.mark.parametrize(
    "path", ["/../etc/passwd", "/page/../../config.py", "/page/%2e%2e%2f%2e%2e%2fconfig.py", "/page//etc/passwd", "/v1/models/..%2f..%2fetc", "/v1/models/%00", "/%ff", "//", "/v1/chat/completions/"]
)  # fmt: skip
def test_paths_lead_nowhere_else(served, path):
    host, port = served[0].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as s:
        s.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        found = b""
        while part := s.recv(65536):
            found += part
    assert found.split()[1] in (b"404", b"307", b"405"), found[:200]
    assert b"root:" not in found and b"dataclass" not in found


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "demo\x00", "x" * 10_000, "https://example.com/m.gguf", "user/repo:Q4_K_M"],
)
def test_models_and_adapters_of_requests_are_names_only(http, name):
    found = http.post("/v1/completions", json={"prompt": "a", "model": name})
    assert found.status_code == 404
    assert "passwd'" in found.text or "passwd" not in name
    found = http.post("/v1/completions", json={"prompt": "a", "lora": [{"name": name}]})
    assert found.status_code == 400
    assert "no adapter" in found.json()["error"]["message"]


@pytest.mark.parametrize(
    "raw",
    [
        b"GARBAGE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /health HTTP/1.1\r\n\r\n", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    ],
    ids=range(8),
)  # fmt: skip
def test_no_http(served, http, raw):
    host, port = served[0].removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as s:
        try:
            s.sendall(raw)
            s.shutdown(socket.SHUT_WR)
            found = s.recv(65536)
        except ConnectionError:
            found = b""
    assert not found or found.split()[1][:1] in (b"2", b"4"), found[:300]
    assert http.get("/health").status_code == 200


def connected(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def sent_until_closed(s, head, part, most):
    """How many bytes of `part` went out before the server closed, and what it said."""
    n, found = 0, b""
    try:
        s.sendall(head)
        while n < most:
            s.sendall(part)
            n += len(part)
    except ConnectionError:
        pass
    try:
        while part := s.recv(65536):
            found += part
    except ConnectionError:
        pass
    return n, found


GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
CHUNKS = b"POST /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "head, part",
    [(GET, b"a: b\r\n" * 1000), (GET + b"X: ", b"y" * 8192), (b"GET /", b"y" * 8192), (GET, b"y" * 8192), (CHUNKS + b"0\r\nX: ", b"y" * 8192), (CHUNKS + b"0\r\n", b"a: b\r\n" * 1000), (CHUNKS + b"1;", b"y" * 8192)],
    ids=["headers", "value", "path", "name", "trailer", "trailers", "extension"],
)  # fmt: skip
def test_headers_without_an_end(served, http, head, part):
    with connected(served[0]) as s:
        n, found = sent_until_closed(s, head, part, 64 << 20)
    assert n < 16 << 20, "what the system holds between the two, and not all of it"
    if not head.startswith(CHUNKS):
        assert not found or found.startswith(b"HTTP/1.1 431"), found[:300]
    assert http.get("/health").status_code == 200


@pytest.mark.parametrize("more, status", [(b"a: b\r\n" * 90, b"200"), (b"a: b\r\n" * 110, b"431"), (b"a: " + b"y" * 60_000 + b"\r\n", b"200"), (b"a: " + b"y" * 70_000 + b"\r\n", b"431")], ids=range(4))  # fmt: skip
def test_headers_have_a_bound(served, more, status):
    with connected(served[0]) as s:
        s.sendall(GET + more + b"\r\n")
        found = s.recv(65536)
    assert found.split()[1] == status
    if status == b"431":
        assert b"connection: close" in found
        assert b"65,536 bytes" in found


def test_requests_that_wait_on_a_connection(served, http):
    with connected(served[0]) as s:
        s.sendall((GET + b"\r\n") * 5)
        found = b""
        while found.count(b"HTTP/1.1 200") < 5:
            found += s.recv(65536)
    with connected(served[0]) as s:
        _, found = sent_until_closed(s, b"", (GET + b"\r\n") * 1000, len(GET + b"\r\n") * 20_000)
    assert found.count(b"HTTP/1.1 200") < 1000
    assert http.get("/health").status_code == 200


def test_nothing_is_kept_of_requests_that_waited(served):
    gc.collect()
    gc.disable()
    try:
        with connected(served[0]) as s:
            s.sendall((GET + b"\r\n") * 500)
            time.sleep(0.2)
        for _ in range(100):
            kept = sum(isinstance(x, RequestResponseCycle) for x in gc.get_objects())
            if kept < 50:
                break
            time.sleep(0.05)
        assert kept < 50
    finally:
        gc.enable()


def test_garbage_is_collected_though_the_collector_rests(served, monkeypatch):
    class Ring:
        pass

    ring = Ring()
    ring.own = ring
    gone = weakref.ref(ring)
    gc.disable()
    try:
        monkeypatch.setattr(run, "TICKS", 2)
        del ring
        for _ in range(100):
            if gone() is None:
                break
            time.sleep(0.05)
        assert gone() is None
    finally:
        gc.enable()


def test_a_defect_is_not_told_but_logged(served, http, monkeypatch, caplog):
    entry = served[1].models.entries[0]
    monkeypatch.setattr(entry.loaded, "astream", lambda *a, **o: 1 / 0)
    with caplog.at_level("ERROR", "qtransformers.serve"):
        found = http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
    assert found.status_code == 500
    assert "division" not in found.text
    assert "ZeroDivisionError" in caplog.text
    assert found.headers["x-request-id"] in caplog.text
    monkeypatch.undo()
    assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200


def test_an_error_amid_a_stream_is_an_event(http, monkeypatch):
    step = engine.choose
    n = []

    def choose(*args):
        n.append(1)
        if len(n) > 3:
            raise RuntimeError("inner workings")
        return step(*args)

    monkeypatch.setattr(engine, "choose", choose)
    asked = {"prompt": "a", "max_tokens": 20, "min_tokens": 20, "stream": True}
    with http.stream("POST", "/v1/completions", json=asked) as found:
        lines = [line for line in found.iter_lines() if line]
    assert found.status_code == 200
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "internal_error"
    assert "inner workings" not in "".join(lines)


def test_every_sampling_field_can_be_said():
    assert set(fields.SAMPLING) <= set(fields.ChatRequest.__struct_fields__)


@pytest.mark.parametrize(
    "path, body, field",
    [
        ("/tokenize", {"prompt": " " * 4_000_000}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user", "content": "hi " * 1_000_000}]}, "messages"),
        ("/v1/completions", {"prompt": "hi " * 1_000_000}, "prompt"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi " * 1_000_000}]}, "messages"),
    ],
)
def test_texts_that_no_context_holds_are_refused_before_they_are_encoded(http, served, monkeypatch, path, body, field):
    tokenizer = served[1].models.entries[0].loaded.tokenizer
    monkeypatch.setattr(tokenizer, "encode", lambda *a, **o: 1 / 0)
    found = http.post(path, json=body)
    error = found.json()["error"]
    assert (found.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", field)
