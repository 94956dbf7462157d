"""What is in the cache, and that removing touches nothing else."""

import threading

import pytest

from hub_server import COMMIT, HubServer
from qtransformers.errors import ConfigError, ModelNotFoundError
from qtransformers.load.cached import models, plan_removal, unfinished
from qtransformers.load.hub import Hub, fetch_gguf
from qtransformers.load.references import parse_reference


@pytest.fixture
def hub(tmp_path):
    server = HubServer()
    server.repos["house/m"] = {"m-Q8_0.gguf": b"8" * 800, "m-Q4_0.gguf": b"4" * 400, "same-Q4_1.gguf": b"4" * 400, "README.md": b"x"}  # fmt: skip
    server.repos["house/big"] = {f"Q5_0/b-0000{i}-of-00002.gguf": bytes([i]) * 500 for i in (1, 2)}
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub = Hub(server.url, tmp_path / "cache")
    for name in ("house/m:Q8_0", "house/m:Q4_0", "house/m:Q4_1", "house/big:Q5_0"):
        fetch_gguf(parse_reference(name), hub)
    yield hub
    server.shutdown()
    server.server_close()


def files(hub):
    return {p.relative_to(hub.cache_dir).as_posix() for p in hub.cache_dir.rglob("*") if p.is_file() or p.is_symlink()}


def test_models(hub):
    found = {m.name: m for m in models(hub)}
    assert set(found) == {"house/m:Q8_0", "house/m:Q4_0", "house/m:Q4_1", "house/big:Q5_0"}
    big = found["house/big:Q5_0"]
    assert big.nbytes == 1000 and [p.name[2:7] for p in big.files] == ["00001", "00002"] and big.commit == COMMIT
    assert models(Hub(cache_dir=hub.cache_dir / "none")) == []


def test_one_quantisation_goes_alone(hub):
    before = files(hub)
    removal = plan_removal("house/m:q8_0", hub)
    assert removal.nbytes == 800
    removal.execute()
    gone = before - files(hub)
    assert len(gone) == 2 and {p.split("/")[1] for p in gone} == {"blobs", "snapshots"}
    assert {m.name for m in models(hub)} == {"house/m:Q4_0", "house/m:Q4_1", "house/big:Q5_0"}


def test_what_others_use_stays(hub):
    """Two names of the same bytes share a blob."""
    removal = plan_removal("house/m:Q4_0", hub)
    assert removal.nbytes == 0 and removal.blobs == ()
    removal.execute()
    (same,) = [m for m in models(hub) if m.name == "house/m:Q4_1"]
    assert same.files[0].read_bytes() == b"4" * 400


def test_shards_go_together_and_empty_folders_with_them(hub):
    removal = plan_removal("house/big:Q5_0", hub)
    assert removal.nbytes == 1000
    removal.execute()
    assert not list(hub.cache_dir.rglob("b-0000*")) and not (hub.cache_dir / f"models--house--big/snapshots/{COMMIT}/Q5_0").exists()  # fmt: skip
    assert {m.repo for m in models(hub)} == {"house/m"}


def test_a_whole_repository(hub):
    """Both repositories are at the same commit, as copies of one are."""
    plan_removal("house/m", hub).execute()
    assert {m.name for m in models(hub)} == {"house/big:Q5_0"}
    assert not (hub.cache_dir / "models--house--m").exists()


def test_blobs_outside_are_never_removed(hub, tmp_path):
    """A link that leads out of the cache loses its name there, and nothing more."""
    precious = tmp_path / "precious.gguf"
    precious.write_bytes(b"mine")
    snapshot = hub.cache_dir / "models--house--m" / "snapshots" / COMMIT
    (snapshot / "own-Q6_K.gguf").symlink_to(precious)
    removal = plan_removal("house/m:Q6_K", hub)
    assert removal.blobs == ()
    removal.execute()
    assert precious.read_bytes() == b"mine" and not (snapshot / "own-Q6_K.gguf").is_symlink()


def test_what_is_not_there(hub, tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"house/m in the cache has no quant Q2_K\. It has Q4_0, Q4_1, Q8_0"):
        plan_removal("house/m:Q2_K", hub)
    with pytest.raises(ModelNotFoundError, match=r"house/x is not in the cache.*house/big:Q5_0"):
        plan_removal("house/x", hub)
    for text in (str(tmp_path), "demo", "../x/y", "a/b.gguf", "/", "~/x", ""):
        with pytest.raises(ConfigError, match="no model of the Hub's cache"):
            plan_removal(text, hub)
    assert len(models(hub)) == 4


def test_unfinished(hub):
    assert unfinished(hub) == {}
    (hub.cache_dir / "models--house--m" / "blobs" / "abc.incomplete").write_bytes(b"x" * 70)
    assert unfinished(hub) == {"house/m": 70}
