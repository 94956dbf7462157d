"""The files of the page, as the server gives them."""

import gzip
import re

import httpx2 as httpx
import pytest

import qtransformers.serve
from qtransformers.serve.config import ServerConfig, hashed
from qtransformers.serve.static import page
from servers import running

MOST_BYTES, MOST_PACKED = 100_000, 36_000  # of all files together: it stays small


def test_every_file_is_served_as_it_is_and_named_by_what_it_is(http):
    kinds = {"/": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    for path, file in page().items():
        got = http.get(path)
        assert got.status_code == 200 and got.content == file.data and len(file.data) > 100
        assert got.headers["content-type"].startswith(kinds[path.rpartition(".")[2]])
        assert got.headers["content-encoding"] == "gzip" and gzip.decompress(file.packed) == file.data
        plain = http.get(path, headers={"accept-encoding": "identity"})
        assert plain.content == file.data and "content-encoding" not in plain.headers
    assert sum(len(f.data) for f in page().values()) < MOST_BYTES
    assert sum(len(f.packed) for f in page().values()) < MOST_PACKED


def test_a_browser_asks_anew_and_is_told_where_nothing_changed(http):
    first = http.get("/page/app.js")
    assert first.headers["cache-control"] == "no-cache"
    again = http.get("/page/app.js", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304 and not again.content
    weak = http.get("/page/app.js", headers={"if-none-match": f'"other", W/{first.headers["etag"]}'})
    assert weak.status_code == 304
    assert http.get("/page/app.js", headers={"if-none-match": '"other"'}).status_code == 200
    assert len({http.get(path).headers["etag"] for path in page()}) == len(page())


def test_the_policy_allows_this_server_s_files_alone(http):
    headers = http.get("/").headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == "'self'"
    assert policy["connect-src"] == "'self'" and policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"] and "*" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


def test_the_files_keep_to_it_and_name_no_other_site():
    for path, file in page().items():
        text = file.data.decode("utf-8")
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)[a-z]", text), path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            path
        )
        if path == "/":
            assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?! src| type=\"module\" src)", text)


@pytest.mark.parametrize(
    "path",
    [
        "/page/../static.py", "/page/..%2fstatic.py", "/page/%2e%2e/%2e%2e/errors.py", "/page//etc/passwd", "/page/",
        "/page/index.html", "/page/app.js%00.css", "/page/..\\static.py", "/index.html", "/static.py",
    ],
)  # fmt: skip
def test_no_other_path_gives_a_file(http, path):
    got = http.get(path)
    assert got.status_code == 404 and got.json()["error"]["code"] == "not_found"


def test_the_page_needs_no_key_but_what_it_asks_does(demo):
    with running([demo], ServerConfig(port=0, keys={"one": hashed("a-key-of-tests-0123")})) as (url, _):
        assert all(httpx.get(url + path).status_code == 200 for path in page())
        assert httpx.get(url + "/v1/models").status_code == 401


def test_models_say_what_the_page_shows(http):
    listed = http.get("/v1/models").json()
    assert listed["qtransformers"]["memory_bytes"] > 2**20
    for model in listed["data"]:
        assert model["qtransformers"]["kind"] == "language" and model["qtransformers"]["context_length"] == 1024
        assert (
            model["qtransformers"]["sampling"]["temperature"] == 1 and model["qtransformers"]["sampling"]["top_k"] == 0
        )


def test_the_package_ships_it():
    assert qtransformers.serve.__file__ and {"/", "/page/app.js", "/page/style.css", "/page/icon.svg"} <= set(page())
