"""Grammars of the demo model's vocabulary, and of real ones where this machine has them."""

import pytest

from qtransformers.constrain import Grammars
from qtransformers.load.tokenizer import Tokenizer

VOCABULARIES = ("demo", "llama-spm", "llama-bpe", "qwen2")


@pytest.fixture(scope="session")
def grammars_of(data, request):
    """A function from a vocabulary's name to (tokenizer, grammars), made once."""
    made = {}

    def make(name):
        if name not in made:
            if name == "demo":
                path = data / "demo-Q8_0.gguf"
            else:
                path = request.getfixturevalue("shared") / "facts" / "vocab" / f"ggml-vocab-{name}.gguf"
                if not path.exists():
                    pytest.skip(f"no {path}")
            tokenizer = Tokenizer.from_gguf(path)
            made[name] = tokenizer, Grammars(tokenizer)
        return made[name]

    return make


@pytest.fixture(params=VOCABULARIES)
def vocabulary(request, grammars_of):
    return grammars_of(request.param)


@pytest.fixture
def demo(grammars_of):
    return grammars_of("demo")
