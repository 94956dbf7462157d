"""Sessions in files: what comes back, and what is refused."""

import numpy as np
import pytest

from qtransformers import Model
from qtransformers.errors import ConfigError, LoadError, QTransformersError
from qtransformers.gguf import GGUFFile, GGUFWriter

STORY = "Once upon a time there was a little fox who lived in the wood. " * 15


@pytest.fixture
def load(data):
    models = []

    def load(file="demo-Q8_0.gguf", **options):
        models.append(Model.load(data / file, threads=1, **options))
        return models[-1]

    yield load
    for model in models:
        model.close()


@pytest.mark.parametrize("cache", ["f32", "f16", "q8", "q6", "q4", "k8v4"])
def test_a_session_goes_on_in_another_process(load, tmp_path, cache):
    first = load(cache=cache)
    answer = first.generate(STORY, max_tokens=20, temperature=0)
    tokens = answer.prompt + answer.tokens
    on = first.generate([*tokens, 9, 10], max_tokens=20, temperature=0)
    assert first.save_session(tmp_path / "s.gguf", tokens) == len(tokens)
    second = load(cache=cache)
    assert second.load_session(tmp_path / "s.gguf") == tokens
    again = second.generate([*tokens, 9, 10], max_tokens=20, temperature=0)
    assert again.timings.cached_tokens == len(tokens)
    assert again.tokens == on.tokens
    assert second.usage.free_pages == second.usage.pages == 4


def test_what_the_cache_lacks_is_computed(load, tmp_path):
    model = load()
    tokens = tuple(range(5, 305))
    assert model.save_session(tmp_path / "s.gguf", tokens) == 300
    assert load().load_session(tmp_path / "s.gguf") == tokens


def test_deterministic_keeps_whole_pages(load, tmp_path):
    model = load(deterministic=True)
    tokens = tuple(range(5, 305))
    assert model.save_session(tmp_path / "s.gguf", tokens) == 256
    other = load(deterministic=True)
    assert other.load_session(tmp_path / "s.gguf") == tokens[:256]
    assert other.generate(tokens, max_tokens=5, temperature=0).timings.cached_tokens == 256


def test_the_context_may_be_another(load, tmp_path):
    load().save_session(tmp_path / "s.gguf", [5, 6, 7, 8] * 10)
    assert load(context_length=300).load_session(tmp_path / "s.gguf") == (5, 6, 7, 8) * 10


@pytest.mark.parametrize("options, n", [({}, 15), ({"deterministic": True}, 255)])
def test_too_little_to_keep_is_said_and_no_file_written(load, tmp_path, options, n):
    model = load(**options)
    with pytest.raises(ConfigError, match=rf"none of these {n} tokens"):
        model.save_session(tmp_path / "s.gguf", range(5, 5 + n))
    assert not list(tmp_path.iterdir())
    assert model.save_session(tmp_path / "s.gguf", range(5, 6 + n)) == n + 1


def test_a_file_in_the_way_stays(load, tmp_path):
    model = load()
    model.save_session(tmp_path / "s.gguf", [5, 6, 7, 8] * 10)
    with pytest.raises(ConfigError, match="exists"):
        model.save_session(tmp_path / "s.gguf", [5, 6, 7] * 10)
    assert model.save_session(tmp_path / "s.gguf", [5, 6, 7] * 10, overwrite=True) == 30


@pytest.mark.parametrize(
    "options, word",
    [
        ({"cache": "q8"}, "cache"),
        ({"accuracy": "exact"}, "model"),
        ({"rope_base": 50000.0}, "model"),
        ({"rope_scaling": "linear:2"}, "model"),
    ],
)
def test_a_session_of_something_else_is_refused(load, tmp_path, options, word):
    load().save_session(tmp_path / "s.gguf", [5, 6, 7, 8] * 10)
    model = load(**options)
    with pytest.raises(LoadError, match=rf"saved with {word} '.*'; this model has"):
        model.load_session(tmp_path / "s.gguf")


def changed(path, out, *, drop=(), page=None, **facts):
    with GGUFFile(path) as file:
        metadata = {key: file.metadata.typed(key) for key in file.metadata if not key.endswith(drop or ("\0",))}
        metadata |= {"qtransformers.session." + key: value for key, value in facts.items()}
        tensors = [(name, t.shape, t.type) for name, t in file.tensors.items()]
        with GGUFWriter(out, metadata, tensors) as new:
            for name, t in file.tensors.items():
                new.write(name, t.data if page is None else page(t.data.copy()))


def flip(data):
    data[len(data) // 2] ^= 1
    return data


@pytest.mark.parametrize(
    "change",
    [
        {"page": flip},
        {"drop": ("tokens",)},
        {"drop": ("checksums",)},
        {"tokens": np.array([5, 2**31], np.uint32)},
        {"tokens": np.array([5.5, 6.0], np.float32)},
        {"tokens": np.array([], np.uint32)},
        {"tokens": "text"},
        {"tokens": np.arange(5, 1900, dtype=np.uint32)},
        {"checksums": np.array([1, 2, 3], np.uint32)},
        {"checksums": np.array([1], np.uint32)},
        {"layout": "00000000"},
        {"heads": 2**31},
    ],
)
def test_a_damaged_file_is_refused_and_nothing_is_lost(load, tmp_path, change):
    model = load()
    model.save_session(tmp_path / "s.gguf", [5, 6, 7, 8] * 10)
    changed(tmp_path / "s.gguf", tmp_path / "t.gguf", **change)
    with pytest.raises(LoadError, match=r"t\.gguf"):
        model.load_session(tmp_path / "t.gguf")
    assert model.usage.free_pages == 4
    assert model.load_session(tmp_path / "s.gguf") == (5, 6, 7, 8) * 10


def test_what_is_no_session(load, tmp_path, data):
    model = load()
    with pytest.raises(LoadError, match="no saved session"):
        model.load_session(data / "demo-Q8_0.gguf")
    (tmp_path / "junk").write_bytes(b"junk" * 100)
    for path in (tmp_path / "junk", tmp_path / "missing"):
        with pytest.raises(QTransformersError):
            model.load_session(path)
    for wrong in (None, 5, b"x", ""):
        for use in (model.load_session, model.load_lora, lambda path: model.save_session(path, [5, 6, 7])):
            with pytest.raises(ConfigError, match=r"^path="):
                use(wrong)
    for tokens in ([], [-1], [10**6], "text", None, [5] * 2000):
        with pytest.raises(ConfigError, match="tokens"):
            model.save_session(tmp_path / "x.gguf", tokens)
    assert not (tmp_path / "x.gguf").exists()
