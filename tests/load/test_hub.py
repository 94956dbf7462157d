"""The Hub, played by a small server on loopback: what is asked of it, and how its failures are told."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hub_server import COMMIT, HubServer
from qtransformers.errors import ConfigError, ModelNotFoundError, NetworkError
from qtransformers.load.hub import DEMO, Hub, resolve_model, the_hub
from qtransformers.load.source import resolve
from qtransformers.load.survey import find_sources
from qtransformers.settings import Settings

WEIGHT = 16_000_000_000  # bytes that the listing claims and nobody may fetch


@pytest.mark.parametrize("wrong", [3, "user/repo", object()])
def test_arguments_that_are_neither_settings_nor_a_hub_are_named(wrong):
    for name in ("settings", "hub"):
        with pytest.raises(ConfigError, match=f"{name}=.*; expected a {name.capitalize()} of qtransformers"):
            the_hub(**{name: wrong})
    assert the_hub(hub=Hub(offline=True)).offline and the_hub(Settings(offline=True)).offline


SECONDS = 12  # every failure is told within


@pytest.fixture
def server(data):
    hub = HubServer()
    model = {p.name: p.read_bytes() for p in (data / "demo_model").iterdir() if p.suffix != ".safetensors"}
    model |= {"model-00001-of-00002.safetensors": WEIGHT, "model-00002-of-00002.safetensors": WEIGHT, "pytorch_model.bin": 2 * WEIGHT}  # fmt: skip
    model |= {"README.md": b"x", "evil.py": b"x", "onnx/config.json": b"{}", "chat_templates/tools.jinja": b"tools"}
    hub.repos["house/demo"] = model
    gguf = (data / "demo-Q8_0.gguf").read_bytes()
    hub.repos["house/demo-GGUF"] = {
        "demo-Q8_0.gguf": gguf, "demo-Q2_K.gguf": WEIGHT, "mmproj-demo-F16.gguf": WEIGHT, "demo.imatrix.gguf": WEIGHT, "README.md": b"x",
        "BF16/demo-BF16-00001-of-00002.gguf": WEIGHT, "BF16/demo-BF16-00002-of-00002.gguf": WEIGHT,
    }  # fmt: skip
    threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
    yield hub
    hub.done.set()
    hub.shutdown()
    hub.server_close()


@pytest.fixture
def hub(server, tmp_path):
    return Hub(endpoint=server.url, cache_dir=tmp_path / "cache", token=None)


def test_only_allowed_files_are_fetched(server, hub, data):
    sources = resolve(data / "demo-Q8_0.gguf", "house/demo", hub=hub)
    allowed = {"chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_templates/tools.jinja"}  # fmt: skip
    assert set(sources.files) == allowed
    assert server.files_asked() == allowed
    for name, path in sources.files.items():
        assert path.read_bytes() == server.repos["house/demo"][name]
    report = sources.report
    assert report.fetched == sum(len(server.repos["house/demo"][name]) for name in allowed)
    assert report.skipped == report.full == 2 * WEIGHT
    assert report.disk_saved == 2 * WEIGHT - (data / "demo-Q8_0.gguf").stat().st_size
    assert "0.11 MB fetched from the Hub, 32.00 GB of weights skipped" in report.text()


def test_the_second_time_nothing_is_fetched(server, hub):
    resolve(model_path="house/demo", hub=hub)
    server.asked.clear()
    assert resolve(model_path="house/demo", hub=hub).report.fetched == 0
    assert len(server.asked) <= 2  # the listing, and whether the branch has moved


def test_offline_the_cache_serves(server, hub):
    online = resolve(model_path="house/demo", hub=hub)
    server.asked.clear()
    offline = resolve(model_path="house/demo", hub=Hub(server.url, hub.cache_dir, offline=True))
    assert offline.files == online.files
    assert "using the copy in the cache" in offline.report.text()
    assert not server.asked


def test_without_a_connection_the_cache_serves(server, hub):
    online = resolve(model_path="house/demo", hub=hub)
    server.drops = "listing"
    sources = resolve(model_path="house/demo", hub=hub)
    assert sources.files == online.files
    assert "using the copy in the cache" in sources.report.text()


def test_offline_without_cache(server, hub):
    with pytest.raises(NetworkError, match=r"not in the cache.*HF_HUB_OFFLINE"):
        resolve(model_path="house/demo", hub=Hub(server.url, hub.cache_dir, offline=True))
    assert not server.asked


def test_revision(server, hub):
    assert resolve(model_path="house/demo@main", hub=hub).files
    assert resolve(model_path=f"house/demo@{COMMIT}", hub=hub).files
    with pytest.raises(ModelNotFoundError, match="no revision 'v2'"):
        resolve(model_path="house/demo@v2", hub=hub)


def test_not_found(hub):
    with pytest.raises(ModelNotFoundError, match="house/absent: no such folder here, and no such repository") as e:
        resolve(model_path="house/absent", hub=hub)
    assert e.value.exit_code == 3


def test_gated(server, hub):
    server.gated.add("house/demo")
    with pytest.raises(NetworkError, match=r"gated.*HF_TOKEN"):
        resolve(model_path="house/demo", hub=hub)


def test_private(server, hub):
    server.needs_token.add("house/demo")
    with pytest.raises((ModelNotFoundError, NetworkError), match="HF_TOKEN"):
        resolve(model_path="house/demo", hub=hub)
    assert resolve(model_path="house/demo", hub=Hub(server.url, hub.cache_dir, token="hf_right")).files


@pytest.mark.parametrize("drops", ["listing", "head", "middle"])
def test_a_dropped_connection(server, hub, drops):
    server.drops = drops
    start = time.monotonic()
    with pytest.raises(NetworkError, match=r"house/demo.*Check the connection"):
        resolve(model_path="house/demo", hub=hub)
    assert time.monotonic() - start < SECONDS


def test_nobody_listens(tmp_path):
    with pytest.raises(NetworkError, match="could not be reached") as e:
        resolve(model_path="house/demo", hub=Hub("http://127.0.0.1:1", tmp_path))
    assert e.value.exit_code == 6


def test_a_repository_of_something_else(server, hub):
    server.repos["house/pictures"] = {"cat.png": b"x", "weights.safetensors": WEIGHT}
    with pytest.raises(ModelNotFoundError, match="none of the files"):
        resolve(model_path="house/pictures", hub=hub)
    assert not server.files_asked()


def test_a_huge_file_with_an_allowed_name(server, hub):
    server.repos["house/odd"] = {"tokenizer.json": WEIGHT}
    with pytest.raises(NetworkError, match=r"tokenizer\.json has 16 GB"):
        resolve(model_path="house/odd", hub=hub)
    assert not server.files_asked()


def test_model_by_quant(server, hub):
    path = resolve_model("house/demo-GGUF:Q8_0", hub=hub)
    assert path.read_bytes() == server.repos["house/demo-GGUF"]["demo-Q8_0.gguf"]
    assert server.files_asked() == {"demo-Q8_0.gguf"}
    assert resolve_model("house/demo-GGUF:q8_0", hub=Hub(server.url, hub.cache_dir, offline=True)) == path


def test_a_quant_that_is_not_there(hub):
    for name in ("house/demo-GGUF:Q5_K_M", "house/demo-GGUF"):
        with pytest.raises(ModelNotFoundError, match="It has BF16, Q2_K, Q8_0: pass house/demo-GGUF:"):
            resolve_model(name, hub=hub)
    with pytest.raises(ModelNotFoundError, match="no GGUF file"):
        resolve_model("house/demo:Q8_0", hub=hub)


def test_shards_come_together(server, hub):
    server.repos["house/big"] = {f"big-Q4_K_M-0000{i}-of-00003.gguf": bytes([i]) * 100 for i in (1, 2, 3)}
    path = resolve_model("house/big", hub=hub)
    assert path.name == "big-Q4_K_M-00001-of-00003.gguf"
    assert [p.read_bytes()[0] for p in sorted(path.parent.iterdir())] == [1, 2, 3]


def test_a_plan_of_what_is_in_the_cache_asks_nobody(server, hub):
    path = resolve_model("house/demo-GGUF:Q8_0", hub=hub)
    server.asked.clear()
    for reach in (hub, Hub(server.url, hub.cache_dir, offline=True)):
        sources, _ = find_sources("house/demo-GGUF:Q8_0", hub=reach)
        assert str(sources.gguf.path) == str(path)
    assert not server.asked
    with pytest.raises(NetworkError, match="not in the cache"):
        find_sources("house/demo-GGUF:Q2_K", hub=reach)


def test_the_demo_and_paths(tmp_path):
    assert resolve_model("demo") == DEMO and DEMO.is_file()
    assert resolve_model(str(tmp_path)) == tmp_path
    with pytest.raises(ModelNotFoundError, match="Expected a path, `demo`, or"):
        resolve_model("no-such-model")


def test_the_environment_is_honoured(server, tmp_path):
    """HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE, as huggingface_hub reads them when it is imported."""
    server.needs_token.add("house/demo")
    code = "import sys; from qtransformers.load import resolve; print(resolve(model_path='house/demo').model_dir)"
    env = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_right"}
    env.pop("HF_HUB_CACHE", None), env.pop("HF_HUB_OFFLINE", None)

    def run(**more):
        return subprocess.run([sys.executable, "-c", code], check=False, env={**env, **more}, capture_output=True, text=True, timeout=60)  # fmt: skip

    first = run()
    assert first.returncode == 0, first.stderr
    directory = Path(first.stdout.strip())
    assert directory.is_relative_to(tmp_path / "home") and (directory / "tokenizer.json").is_file()
    assert "Bearer hf_right" in server.tokens
    server.asked.clear()
    offline = run(HF_HUB_OFFLINE="1")
    assert offline.stdout == first.stdout and not server.asked
    refused = run(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "empty"))
    assert "HF_HUB_OFFLINE" in refused.stderr and "NetworkError" in refused.stderr


def test_a_server_that_stalls_is_not_waited_for(server, hub):
    server.stalls_after = 10
    start = time.monotonic()
    with pytest.raises(NetworkError, match=r"house/demo: \S+: 10 bytes of .* came, and then no more"):
        resolve(model_path="house/demo", hub=Hub(server.url, hub.cache_dir, timeout=1.0))
    assert time.monotonic() - start < SECONDS
    server.stalls_after = None
    assert resolve(model_path="house/demo", hub=hub).files
