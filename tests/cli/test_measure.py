"""Measurements: that they are of what they say."""

import numpy as np
import pytest

from archs import encoders
from qtransformers.cache import CODECS, PAGE_TOKENS
from qtransformers.cli import measure
from qtransformers.errors import InsufficientMemoryError
from qtransformers.kernels import kv
from qtransformers.load import Loaded, load
from qtransformers.machine import Memory


@pytest.fixture(scope="module")
def demo(data):
    return load(data / "demo-Q8_0.gguf")


@pytest.fixture
def caches(monkeypatch):
    """Every cache that a load makes."""
    made, new_cache = [], Loaded.new_cache
    monkeypatch.setattr(Loaded, "new_cache", lambda self, n: made.append(new_cache(self, n)) or made[-1])
    return made


def measured(loaded, prompts, n_generated, batches, depths):
    return [r.test for r in measure.measure(loaded, 1, prompts, n_generated, batches, depths, lambda done, total: None)]


@pytest.mark.parametrize("codec", CODECS)
def test_attention_at_depth_is_over_memory_of_its_own(data, caches, codec):
    """Pages that nobody wrote are all the same zeros, in the cache of a core."""
    assert measured(load(data / "demo-Q8_0.gguf", cache=codec), [300], 1, [1, 3], [600]) == [
        "pp300",
        "tg1@600",
        "tg1@600 x3",
    ]
    [cache] = caches
    assert cache.n_pages == 9 and not cache.free
    assert cache.pages.any(-1).all()  # of each layer, page and head
    keys, values = CODECS[codec]
    end = kv.key_bytes(keys, 64)
    assert np.isfinite(kv.decode_page(cache.pages[..., :end], keys, True, 64)).all()
    found = kv.decode_page(cache.pages[..., end:], values, False, 64)
    assert np.isfinite(found).all() and (found != 0).any(-1).all()  # of each token


def test_the_last_position_of_the_context(demo, caches):
    assert measured(demo, [1024], 1, [1], [1023]) == ["pp1024", "tg1@1023"]
    assert caches[0].n_pages * PAGE_TOKENS == 1024


def test_more_than_main_memory_is_refused(demo, monkeypatch):
    monkeypatch.setattr(measure, "memory", lambda: Memory(1 << 30, 1 << 20, None))
    with pytest.raises(
        InsufficientMemoryError, match=r"keys and values take \S+ [kMG]i?B; \S+ [kMG]i?B are available. Lower -d"
    ):
        measured(demo, [16], 4, [4], [1000])


@pytest.mark.parametrize(
    "hparams, seen",
    [
        ({}, [100, 100, 100, 100]),
        ({"sliding_window": 0}, [100, 100, 100, 100]),
        ({"sliding_window": 7}, [7, 7, 7, 7]),
        ({"sliding_window": 7, "swa_period": 2}, [7, 100, 7, 100]),
        ({"sliding_window": 700, "swa_period": 2}, [100, 100, 100, 100]),
    ],
)
def test_keys_and_values_count_as_far_as_they_are_seen(hparams, seen):
    assert [measure._seen(hparams, layer, 100) for layer in range(4)] == seen


@pytest.mark.parametrize("name", encoders.ENCODERS)
def test_of_encoders_prompts_are_measured(name, tmp_path):
    _, model, _ = encoders.encoder(name)
    loaded = load(encoders.gguf(model, tmp_path, name))
    assert measured(loaded, [16, 256], 32, [1, 2], [0]) == ["pp16", "pp256"]
    h = loaded.hparams
    a_layer = h["n_embd"] * (4 * h["n_embd"] + (2 if name == "bert" else 3) * h["n_ff"])
    assert sum(np.prod(t.shape) for t in measure._matrices(loaded)) == h["n_layers"] * a_layer
