"""What a model is loaded with: checked, frozen, told where it came from."""

import warnings
from dataclasses import FrozenInstanceError, fields

import pytest

from model.talk import NAN
from qtransformers.errors import (
    ConfigError,
    LoadError,
    ModelNotFoundError,
    QTransformersError,
)
from qtransformers.load.fit import Budget, fit
from qtransformers.machine import Memory
from qtransformers.model import Model
from qtransformers.options import LoadOptions, ModelConfig

HOSTILE_LOADS = [
    ("gguf_path", [5, True, ["a"], b"a"]),
    ("model_path", [5, True, ["a"], b"a"]),
    ("context_length", [0, -1, NAN, 1.5, "5", True, 2**31, 10**30]),
    ("cache", ["", "f8", None, 16, True, ["f16"]]),
    ("placement", ["gpu", "", None, 0, ["cpu"], "cuda:0"]),
    ("accuracy", ["", "best", None, 1, True, ["exact"]]),
    ("prefill_chunk", [0, -1, NAN, 1.5, "5", True, 2**21, None]),
    ("logits_rows", [0, -1, NAN, 1.5, "5", True, 2**21, None]),
    ("cache_tokens", [0, -1, NAN, 1.5, "5", True, 2**41, 10]),
    ("parallel", [0, -1, NAN, 1.5, "5", True, 2**20, None]),
    ("rope_base", [0, -1, NAN, 1, float("inf"), "5", True, 1e13]),
    (
        "rope_scaling",
        ["", "yarn", "yarn:", "yarn:0.5", "yarn:nan", "linear:x", "longrope:2", "none:2", "ntk:1e9", 4, True],
    ),
    ("deterministic", [0, 1, "yes", None]),
    ("threads", [0, -1, NAN, 1.5, "5", True, 5000]),
    ("draft", [5, True, ["x"]]),
    ("prompt_format", [5, "", "chatlm", True, ["chatml"]]),
    ("pre", [5, True, ["x"]]),
    ("mlock", [0, 1, "yes", None]),
    ("preload", [0, 1, "yes", None]),
    ("stages", [5, True, "x", "x:1", "x:1/1", ["x:1/2"]]),
]


@pytest.mark.parametrize(
    "name, value", [pytest.param(n, v, id=f"{n}-{i}") for n, vs in HOSTILE_LOADS for i, v in enumerate(vs)]
)
def test_a_bad_load_field_is_named(data, name, value):
    with pytest.raises(ConfigError, match=f"^{name}="):
        Model.load(**{"gguf_path": data / "demo-Q8_0.gguf", name: value})


def test_a_draft_that_does_not_fit_beside_its_model_is_told(data, monkeypatch):
    paths = {"gguf_path": data / "demo-Q8_0.gguf", "draft": data / "demo-draft-Q8_0.gguf", "threads": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Model.load(**paths) as model:
            (need, *_) = fit(model.plan, Budget(None)).needs
    free = need.model + (1 << 20)  # enough for each alone
    monkeypatch.setattr("qtransformers.load.memory", lambda: Memory(free, free, free, None))
    with pytest.warns(UserWarning, match="the draft: .*demo-draft-Q8_0.gguf needs .* beside the model's") as told:
        Model.load(**paths).close()
    assert len(told) == 1


def test_every_load_field_is_tried():
    assert [name for name, _ in HOSTILE_LOADS] == [f.name for f in fields(ModelConfig)]
    assert set(LoadOptions.__annotations__) == {f.name for f in fields(ModelConfig)} - {"gguf_path", "model_path"}


def test_the_config_is_frozen_and_kept(data):
    with Model.load(data / "demo-Q8_0.gguf", context_length=256, threads=1) as model:
        assert (model.config.context_length, model.config.threads, model.config.cache) == (256, 1, "f16")
        with pytest.raises(FrozenInstanceError):
            model.config.cache = "f32"


@pytest.mark.parametrize("model", [None, 5, "", True])
def test_from_pretrained_wants_a_name(model):
    with pytest.raises(ConfigError, match=r"^model="):
        Model.from_pretrained(model)


def test_what_is_not_there(tmp_path, data):
    with pytest.raises(ModelNotFoundError, match=r"missing\.gguf"):
        Model.load(tmp_path / "missing.gguf")
    with pytest.raises(ModelNotFoundError, match=r"missing\.gguf"):
        Model.from_pretrained(str(tmp_path / "missing.gguf"))
    with pytest.raises(ConfigError, match="neither gguf_path nor model_path"):
        Model.load()
    with pytest.raises(LoadError, match="gguf_path"):
        Model.load(model_path=data / "demo_model")
    with pytest.raises(ModelNotFoundError, match="prompt_format="):
        Model.load(data / "demo-Q8_0.gguf", prompt_format=tmp_path / "missing.jinja")
    with pytest.raises(QTransformersError):
        Model.load(data / "demo-Q8_0.gguf", pre="no-such-pre")


def test_every_setting_says_where_it_came_from(data, monkeypatch):
    monkeypatch.delenv("QTRANSFORMERS_THREADS", raising=False)
    with Model.load(data / "demo-Q8_0.gguf", cache="q8", context_length=512) as model:
        assert model.provenance["cache"] == ("q8", "given") and model.provenance["context_length"] == (512, "given")
        assert model.provenance["cache_tokens"] == (512, "context_length")
        assert model.provenance["parallel"] == (8, "default") and model.provenance["threads"][1] == "machine"
        assert set(model.provenance) == {f.name for f in fields(ModelConfig)} | {"sampling"}
    monkeypatch.setenv("QTRANSFORMERS_THREADS", "1")
    with Model.load(data / "demo-Q8_0.gguf") as model:
        assert model.provenance["threads"] == (1, "environment")
        assert model.provenance["context_length"] == (1024, model.plan.file)


def test_a_draft_takes_the_context_of_its_model(data):
    with Model.load(data / "demo-Q8_0.gguf", draft=data / "demo-draft-Q8_0.gguf", context_length=300) as model:
        plain = model.generate("Once upon a time", max_tokens=20, temperature=0, speculate=False)
        assert (
            model.generate("Once upon a time", max_tokens=20, temperature=0, speculate="draft").tokens == plain.tokens
        )
