import threading

import pytest

from hub_server import HubServer
from qtransformers.errors import ModelNotFoundError, NetworkError
from qtransformers.load.hub import Hub
from qtransformers.load.originals import fetch_checkpoint
from qtransformers.load.references import parse_reference

REF = parse_reference("house/demo")


@pytest.fixture
def server(data):
    hub = HubServer()
    files = {p.name: p.read_bytes() for p in (data / "demo_model").iterdir()}
    hub.repos["house/demo"] = files | {"pytorch_model.bin": 10**10, "README.md": b"x", "evil.py": b"x"}
    hub.repos["house/gguf"] = {"m-Q8_0.gguf": 10**10}
    threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
    yield hub
    hub.done.set()
    hub.shutdown()
    hub.server_close()


@pytest.fixture
def hub(server, tmp_path):
    return Hub(endpoint=server.url, cache_dir=tmp_path / "cache", token=None)


def test_weights_config_and_tokenizer_come_and_nothing_else(server, hub, data):
    told = []
    folder = fetch_checkpoint(REF, hub, lambda done, total: told.append((done, total)))
    here = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert here == {p.name: p.read_bytes() for p in (data / "demo_model").iterdir()}
    assert told[-1] == (sum(map(len, here.values())),) * 2
    server.asked.clear()
    assert fetch_checkpoint(REF, hub) == folder and not server.files_asked()
    offline = Hub(server.url, hub.cache_dir, offline=True)
    assert fetch_checkpoint(REF, offline) == folder


def test_no_safetensors(hub):
    with pytest.raises(
        ModelNotFoundError, match=r"house/gguf on the Hub has no safetensors.*add its quant, house/gguf:Q8_0"
    ):
        fetch_checkpoint(parse_reference("house/gguf"), hub)


def test_offline_without_cache(server, hub):
    with pytest.raises(NetworkError):
        fetch_checkpoint(REF, Hub(server.url, hub.cache_dir, offline=True))
