"""A model with a draft says what it says without; what cannot be is refused by name."""

import pytest

from qtransformers import Model
from qtransformers.errors import ConfigError

QUESTIONS = [
    f"{a} {b}." for a in ("Tell me a story about", "What is") for b in ("a brave fox", "7 plus 5", "a shy owl")
]


def ask(model, question, **given):
    return model.chat([{"role": "user", "content": question}], max_tokens=60, **given)


@pytest.fixture(scope="module")
def plain(data):
    with Model.load(data / "demo-Q8_0.gguf", threads=1) as model:
        yield model


@pytest.mark.parametrize("deterministic", [False, True])
def test_answers_are_as_without(data, plain, deterministic):
    path = data / "demo-draft-Q8_0.gguf"
    with Model.load(data / "demo-Q8_0.gguf", threads=1, draft=path, deterministic=deterministic) as model:
        model._engine.speculation._costs = Flat()  # every guess pays: how many are made does not depend on the machine
        right = 0
        for question in QUESTIONS:
            for given in ({"temperature": 0}, {"temperature": 0.8, "seed": 5}):
                done = ask(model, question, speculate="draft", **given)
                assert done.tokens == ask(plain, question, speculate=False, **given).tokens
                right += done.timings.accepted_tokens
        assert right > 60
        drawn = ask(model, QUESTIONS[0], temperature=1.0, speculate="draft")
        assert drawn.timings.drafted_tokens > 10


class Flat:
    """Rows cost nothing."""

    def __call__(self, rows):
        return 1.0

    def learn(self, rows, seconds):
        pass

    def knows(self, rows):
        return True


def test_what_cannot_be_is_refused(plain):
    with pytest.raises(ConfigError, match="but the model was loaded without one"):
        ask(plain, "Hello", speculate="draft")
    with pytest.raises(ConfigError, match=r"^speculate=.fast."):
        ask(plain, "Hello", speculate="fast")
