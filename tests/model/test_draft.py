"""A model with a draft says what it says without; what cannot be is refused by name."""

import re

import pytest

from qtransformers import Model
from qtransformers.cli import main
from qtransformers.errors import ConfigError
from qtransformers.gguf import GGUFFile, GGUFWriter

QUESTIONS = [
    f"{a} {b}." for a in ("Tell me a story about", "What is") for b in ("a brave fox", "7 plus 5", "a shy owl")
]


def ask(model, question, **given):
    return model.chat([{"role": "user", "content": question}], max_tokens=60, **given)


@pytest.fixture(scope="module")
def plain(data):
    with Model.load(data / "demo-Q8_0.gguf", threads=1) as model:
        yield model


def pays(model):
    """Let every guess pay, so that how many are made does not depend on the machine."""
    speculation = model._engine.speculation
    speculation._costs, speculation.draft.costs = Flat(1.0), Flat(0.0)


@pytest.fixture
def drafted(data):
    with Model.load(data / "demo-Q8_0.gguf", threads=1, draft=data / "demo-draft-Q8_0.gguf") as model:
        pays(model)
        yield model


@pytest.mark.parametrize("deterministic", [False, True])
def test_answers_are_as_without(data, plain, deterministic):
    path = data / "demo-draft-Q8_0.gguf"
    with Model.load(data / "demo-Q8_0.gguf", threads=1, draft=path, deterministic=deterministic) as model:
        pays(model)
        right = 0
        for question in QUESTIONS:
            for given in ({"temperature": 0}, {"temperature": 0.8, "seed": 5}):
                done = ask(model, question, speculate="draft", **given)
                assert done.tokens == ask(plain, question, speculate=False, **given).tokens
                right += done.timings.accepted_tokens
        assert right > 60
        drawn = ask(model, QUESTIONS[0], temperature=1.0, speculate="draft")
        assert drawn.timings.drafted_tokens > 10


PENALTIES = [
    {"repetition_penalty": 1.3},
    {"frequency_penalty": 0.4, "presence_penalty": 0.3},
    {"repetition_penalty": 1.1, "penalty_range": 20},
    {"dry_multiplier": 0.8, "dry_allowed_length": 2},
    {"logit_bias": {300: 2.0, 301: -3.0}, "min_tokens": 30},
]


@pytest.mark.parametrize("given", PENALTIES)
@pytest.mark.parametrize("drawn", [{"temperature": 0}, {"temperature": 0.8, "seed": 2}])
def test_penalties_count_confirmed_tokens_one_after_the_other(data, plain, drafted, given, drawn):
    """What a guess is judged by depends on the tokens before it, those of the same guess among them."""
    right = 0
    for question in QUESTIONS[:4]:
        wanted = ask(plain, question, speculate=False, **drawn, **given)
        for speculate in ("draft", "ngram"):
            done = ask(drafted, question, speculate=speculate, **drawn, **given)
            assert done.tokens == wanted.tokens
            right += done.timings.accepted_tokens
    assert right > 10


GRAMMARS = [
    {"regex": r"Once upon a time there was an? (fox|owl)( [a-z]+){3,12}\."},
    {"grammar": 'root ::= ([a-z]+ " "){4} [a-z]+ "."'},
    {
        "json_schema": {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 20}, "is a brave animal": {"type": "boolean"}},
            "required": ["name", "is a brave animal"],
            "additionalProperties": False,
        }
    },
]


@pytest.mark.parametrize("given", GRAMMARS)
@pytest.mark.parametrize("drawn", [{"temperature": 0}, {"temperature": 0.8, "seed": 2}])
def test_grammars_bind_guesses_too(plain, drafted, given, drawn):
    drafts = 0
    for question in QUESTIONS[:3]:
        wanted = ask(plain, question, speculate=False, **drawn, **given)
        for speculate in ("draft", "ngram", "auto"):
            done = ask(drafted, question, speculate=speculate, **drawn, **given)
            assert (done.tokens, done.finish_reason) == (wanted.tokens, wanted.finish_reason)
            drafts += done.timings.drafted_tokens
    assert drafts > 5


class Flat:
    """Steps cost the same, whatever their rows."""

    def __init__(self, seconds):
        self._seconds = seconds

    def __call__(self, rows):
        return self._seconds

    def learn(self, rows, seconds):
        pass

    def knows(self, rows):
        return True


def test_what_cannot_be_is_refused(plain):
    with pytest.raises(ConfigError, match="but the model was loaded without one"):
        ask(plain, "Hello", speculate="draft")
    with pytest.raises(ConfigError, match=r"^speculate=.fast."):
        ask(plain, "Hello", speculate="fast")


def test_a_draft_of_another_vocabulary_is_refused(data, tmp_path):
    """By the first token that differs, though both files load by themselves."""
    path = tmp_path / "other.gguf"
    with GGUFFile(data / "demo-draft-Q8_0.gguf") as file:
        metadata, tensors = dict(file.metadata), file.tensors
        words = list(metadata["tokenizer.ggml.tokens"])
        words[2040] = "qwertz"
        specs = [(t.name, t.shape, t.type.name) for t in tensors.values()]
        with GGUFWriter(path, metadata | {"tokenizer.ggml.tokens": words}, specs) as writer:
            for t in tensors.values():
                writer.write(t.name, t.data)
    with pytest.raises(ConfigError, match=r"^draft: token 2040 is 'qwertz' in .*other.gguf, .* in .*demo-Q8_0.gguf"):
        Model.load(data / "demo-Q8_0.gguf", threads=1, draft=path)


def test_recurrent_models_and_encoders_have_no_draft_and_are_none(data, tmp_path, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from archs import encoders, models
    from archs.cases import CASES

    recurrent = models.gguf(
        models.reference(CASES["qwen3next"], "qwen3next"), tmp_path, "qwen3next", CASES["qwen3next"]
    )
    _, theirs, _ = encoders.encoder("bert")
    encoder = encoders.gguf(theirs, tmp_path, "bert", "cls")
    demo = data / "demo-draft-Q8_0.gguf"
    for path, why in ((recurrent, "the recurrent layers of .*qwen3next"), (encoder, ".*bert-cls.gguf is an encoder")):
        for model, draft in ((path, demo), (demo, path)):
            with pytest.raises(ConfigError, match=f"^draft: {why}"):
                Model.load(model, threads=1, draft=draft, context_length=256)
            assert main(["plan", str(model), "--draft", str(draft), "--ctx-size", "256"]) == 2
            assert re.search(f"draft: {why}", capsys.readouterr().err)


def test_a_draft_holds_nothing_for_answers_that_ended(data):
    with Model.load(data / "demo-Q8_0.gguf", draft=data / "demo-draft-Q8_0.gguf", context_length=512) as model:
        draft = model._engine.speculation.draft
        model.generate("Once upon a time", max_tokens=30, temperature=0, speculate="draft")
        assert draft.n_held == 0
        stream = model.stream("Once upon a time", max_tokens=100, temperature=0, speculate="draft")
        for _ in range(20):
            next(stream)
        stream.close()
        assert draft.n_held == 0
