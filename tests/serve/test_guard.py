"""Who may ask: keys, Host, Origin."""

import json
import socket

import httpx2 as httpx
import pytest

from qtransformers.errors import ConfigError
from qtransformers.serve.app import ROWS
from qtransformers.serve.config import ServerConfig, hashed, read_keys
from servers import running

KEY = "k" * 24


@pytest.fixture(scope="module")
def locked(demo):
    """A client of a server with a key."""
    config = ServerConfig(keys={"ann": hashed(KEY)}, origins=("https://good.example",), hosts=("models.lan",))
    with running([demo], config) as (url, _), httpx.Client(base_url=url) as http:
        yield http


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.method} {row.path}")
def test_every_route_but_health_asks_for_a_key(locked, row):
    path = row.path.replace("{name:path}", "demo")
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"x-api-key": KEY[:-1]},
        {"authorization": f"Basic {KEY}"},
        {"authorization": ""},
    ):
        found = locked.request(row.method, path, headers=headers)
        if row.path == "/health":
            assert found.status_code == 200
        else:
            assert found.status_code == 401
            assert found.headers["www-authenticate"] == "Bearer"
            assert "key" in found.json()["error"]["message"]
            assert KEY[:-1] not in found.text
    for headers in ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}):
        assert locked.request(row.method, path, headers=headers).status_code != 401


def test_unknown_paths_ask_too(locked):
    assert locked.get("/v1/nothing").status_code == 401
    assert locked.get("/health/../v1/models").status_code == 401
    assert locked.get("/v1/nothing", headers={"x-api-key": KEY}).status_code == 404


@pytest.mark.parametrize("host, status", [("localhost:99", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("LOCALHOST", 200), ("localhost.", 200), ("evil.example", 403), ("", 403), ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403), ("[::1]evil", 403), ("localhost:80@evil", 403), ("localhost:x", 403), ("evil@localhost", 403)])  # fmt: skip
def test_names_that_are_bent_to_this_address(http, host, status):
    found = http.get("/v1/models", headers={"host": host})
    assert found.status_code == status
    if status == 403:
        assert "--allow-host" in found.json()["error"]["message"]


def test_two_names(http, locked):
    for client in (http, locked):
        with socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as s:
            s.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
            found = b"".join(iter(lambda: s.recv(65536), b""))
        assert found.startswith(b"HTTP/1.1 400")
        assert b"several Host" in found


def test_names_that_were_allowed(locked):
    assert locked.get("/health", headers={"host": "models.lan:8642"}).status_code == 200
    assert locked.get("/health", headers={"host": "other.lan"}).status_code == 403


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "https://good.example.evil.example"]
)
def test_pages_of_other_sites(http, locked, origin):
    for client in (http, locked):
        headers = {"origin": origin, "content-type": "text/plain", "x-api-key": KEY}
        found = client.post("/v1/completions", headers=headers, content=json.dumps({"prompt": "a", "max_tokens": 1}))
        assert found.status_code == 403
        assert "access-control-allow-origin" not in found.headers
        asked = client.options("/v1/completions", headers={"origin": origin, "access-control-request-method": "POST"})
        assert asked.status_code == 403


def test_pages_that_may_ask(locked, http):
    headers = {"origin": "https://good.example", "x-api-key": KEY}
    found = locked.get("/v1/models", headers=headers)
    assert (found.status_code, found.headers["access-control-allow-origin"]) == (200, "https://good.example")
    asked = locked.options("/v1/completions", headers={"origin": "https://good.example", "access-control-request-method": "POST", "access-control-request-headers": "authorization"})  # fmt: skip
    assert asked.status_code == 204
    assert "authorization" in asked.headers["access-control-allow-headers"]
    own = str(http.base_url).rstrip("/")
    assert http.get("/v1/models", headers={"origin": own}).status_code == 200


def test_beyond_loopback_keys_are_asked_for():
    with pytest.raises(ConfigError, match=r"--api-key-file.*--allow-anyone"):
        ServerConfig(host="0.0.0.0")
    ServerConfig(host="0.0.0.0", anyone=True)
    ServerConfig(host="::1")
    ServerConfig(host="0.0.0.0", keys={"a": hashed(KEY)})


def test_files_of_keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# ours\n{KEY}\nben {KEY[::-1]}x  # his\n\n")
    keys = read_keys(path)
    assert list(keys) == ["key-2", "ben"]
    config = ServerConfig(keys=keys)
    assert [config.key_of(k) for k in (KEY, KEY + "x", KEY[:-1], "", None)] == ["key-2", "ben", None, None, None]
    assert KEY not in repr(config), "nothing keeps it"
    for text, said in (
        (f"a {KEY}\na {KEY}\n", "line 2"),
        ("short\n", "5 characters"),
        ("", "no keys"),
        ("a b c\n", "line 1"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            read_keys(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "none")
