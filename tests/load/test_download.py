"""Downloads into the cache: resumed, checked against their hash, refused in words; the Hub played on loopback."""

import hashlib
import os
import threading
import time

import numpy as np
import pytest

from hub_server import COMMIT, HubServer
from qtransformers.errors import LoadError, ModelNotFoundError, NetworkError, QTransformersError, UnsupportedError
from qtransformers.load import download
from qtransformers.load.hub import Hub, fetch_gguf, resolve_model
from qtransformers.load.references import parse_reference
from qtransformers.load.survey import judge

SIZE = 3_000_000


@pytest.fixture
def server():
    hub = HubServer()
    hub.repos["house/m"] = {"m-Q8_0.gguf": np.random.default_rng(0).bytes(SIZE)}
    threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
    yield hub
    hub.done.set()
    hub.shutdown()
    hub.server_close()


@pytest.fixture
def hub(server, tmp_path):
    return Hub(server.url, tmp_path / "cache", timeout=1.0)


def fetch(hub, name="house/m", **more):
    return fetch_gguf(parse_reference(name), hub, **more)


def incomplete(hub):
    return list(hub.cache_dir.rglob("*.incomplete"))


def test_a_file_lands_where_everybody_looks_for_it(server, hub):
    from huggingface_hub import scan_cache_dir, try_to_load_from_cache

    path = fetch(hub)
    raw = server.repos["house/m"]["m-Q8_0.gguf"]
    assert path.read_bytes() == raw and not incomplete(hub)
    assert try_to_load_from_cache("house/m", "m-Q8_0.gguf", cache_dir=str(hub.cache_dir), revision="main") == str(path)
    (repo,) = scan_cache_dir(hub.cache_dir).repos
    assert repo.size_on_disk == SIZE and {r.commit_hash for r in repo.revisions} == {COMMIT}
    assert path.resolve().name == hashlib.sha256(raw).hexdigest()
    server.sent = 0
    assert fetch(hub) == path and server.sent == 0
    assert fetch(Hub(server.url, hub.cache_dir, offline=True)) == path


def test_an_interrupted_download_goes_on(server, hub):
    server.stalls_after = 2_000_000
    start = time.monotonic()
    with pytest.raises(NetworkError, match=r"house/m: m-Q8_0\.gguf: 1\.91 MiB of 2\.86 MiB came, and then no more .*timeout 1 s.*run again: it goes on from there"):  # fmt: skip
        fetch(hub)
    assert time.monotonic() - start < 20, "a server that stalls is not waited for"
    (part,) = incomplete(hub)
    assert part.stat().st_size == 2_000_000
    server.stalls_after, server.sent = None, 0
    seen = []
    path = fetch(hub, progress=lambda done, total: seen.append((done, total)))
    assert server.sent == SIZE - 2_000_000, "only the rest is fetched"
    assert path.read_bytes() == server.repos["house/m"]["m-Q8_0.gguf"] and not incomplete(hub)
    assert seen[0] == (2_000_000, SIZE) and seen[-1] == (SIZE, SIZE)


def test_a_connection_that_drops_again_and_again_gets_there(server, hub, monkeypatch):
    """Each attempt brings something, so it goes on."""
    server.drops = "middle"
    with pytest.raises(NetworkError):
        monkeypatch.setattr(download, "STALLS", 1)
        fetch(hub)
    server.drops = ""
    assert fetch(hub).stat().st_size == SIZE


def test_a_server_without_ranges(server, hub):
    server.stalls_after = 1_000_000
    with pytest.raises(NetworkError):
        fetch(hub)
    server.stalls_after, server.ranges = None, False
    assert fetch(hub).read_bytes() == server.repos["house/m"]["m-Q8_0.gguf"]


def test_a_wrong_hash(server, hub):
    server.hashes["m-Q8_0.gguf"] = "f" * 64
    with pytest.raises(NetworkError, match=r"m-Q8_0.gguf came with sha256 \w{16}\.\.\.; the Hub lists ffffffffffffffff.*removed: run again"):  # fmt: skip
        fetch(hub)
    assert not incomplete(hub) and not list(hub.cache_dir.rglob("*.gguf"))


def test_damage_in_what_was_kept_is_found(server, hub):
    server.stalls_after = 2_000_000
    with pytest.raises(NetworkError):
        fetch(hub)
    (part,) = incomplete(hub)
    part.write_bytes(b"x" * 2_000_000)
    server.stalls_after = None
    with pytest.raises(NetworkError, match="sha256"):
        fetch(hub)
    assert fetch(hub).read_bytes() == server.repos["house/m"]["m-Q8_0.gguf"]


@pytest.mark.parametrize("etag", ["../../../evil", "..", "a/b", "", ".hidden", "x" * 200])
def test_a_hash_that_is_a_path(server, hub, tmp_path, etag):
    server.hashes["m-Q8_0.gguf"] = etag
    with pytest.raises(NetworkError):
        fetch(hub)
    assert not (tmp_path / "evil").exists() and not list(hub.cache_dir.rglob("*.gguf"))


@pytest.mark.parametrize("name", ["../../evil-Q8_0.gguf", "/tmp/evil-Q8_0.gguf", "a/../../../evil-Q8_0.gguf"])
def test_a_name_that_leads_out_of_the_cache(server, hub, tmp_path, name):
    server.repos["house/evil"] = {name: b"x" * 100}
    with pytest.raises((NetworkError, ModelNotFoundError)):
        fetch(hub, "house/evil")
    assert not list(tmp_path.rglob("evil*.gguf"))


def test_a_full_disk(server, hub, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage(10, 9, 1_000_000))
    with pytest.raises(QTransformersError, match=r"needs 2.86 MiB more on disk; .* has 977 KiB free.*qtransformers rm"):
        fetch(hub)
    assert server.sent == 0


def test_gated(server, hub):
    server.gated.add("house/m")
    with pytest.raises(NetworkError, match=r"gated: its authors want their terms accepted.*HF_TOKEN"):
        fetch(hub)
    assert server.sent == 0


def test_a_token_goes_to_its_own_host_only(server, tmp_path):
    server.needs_token.add("house/m")
    fetch(Hub(server.url, tmp_path / "a", token="hf_right"))
    assert set(server.tokens) == {"Bearer hf_right"}
    other = HubServer()  # where the Hub sends those who want a file's bytes
    threading.Thread(target=other.serve_forever, args=(0.01,), daemon=True).start()
    other.repos, server.elsewhere, server.sent = server.repos, other, 0
    fetch(Hub(server.url, tmp_path / "b", token="hf_right"))
    assert server.sent == 0 and other.sent and set(other.tokens) == {None} and set(server.tokens) == {"Bearer hf_right"}
    other.shutdown()
    other.server_close()


def test_all_shards(server, hub):
    server.repos["house/big"] = {f"b-Q4_0-0000{i}-of-00003.gguf": bytes([i]) * 1000 for i in (1, 2, 3)}
    seen = []
    path = fetch(hub, "house/big:Q4_0", progress=lambda done, total: seen.append((done, total)))
    assert path.name == "b-Q4_0-00001-of-00003.gguf"
    assert [p.read_bytes()[0] for p in sorted(path.parent.iterdir())] == [1, 2, 3]
    assert seen[-1] == (3000, 3000) and [d for d, _ in seen] == sorted(d for d, _ in seen)


def test_the_header_is_judged_before_the_download(server, hub, data, remake):
    raw = (data / "demo-Q8_0.gguf").read_bytes()
    broken = remake(drop=("blk.0.attn_q.weight",)).read_bytes()
    alien = remake("alien.gguf", metadata={"general.architecture": "hyena"}).read_bytes()
    tail = np.random.default_rng(0).bytes(20 << 20)  # what a download would bring
    server.repos["house/d"] = {"d-Q8_0.gguf": raw, "d-Q4_0.gguf": broken + tail, "d-Q5_0.gguf": alien + tail}
    with pytest.raises(LoadError, match=r"blk\.0\.attn_q\.weight is missing"):
        resolve_model("house/d:Q4_0", hub=hub, check=judge)
    with pytest.raises(UnsupportedError, match="'hyena'"):
        resolve_model("house/d:Q5_0", hub=hub, check=judge)
    assert server.sent < 12 << 20 and not list(hub.cache_dir.rglob("*.gguf"))
    assert resolve_model("house/d:Q8_0", hub=hub, check=judge).read_bytes() == raw


def test_written_files_leave_the_page_cache(server, hub):
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("no way to ask that here")
    import mmap

    from qtransformers import machine

    with open(fetch(hub), "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        found = machine.in_cache(view)
        del view
    assert found is None or found < SIZE // 2  # a file system in memory keeps it
