"""Fixtures of all tests."""

import io
import os
from pathlib import Path

import pytest

# GPU kernels run in Triton's interpreter, unless TRITON_INTERPRET=0 says that there is a card (make test-gpu).
os.environ.setdefault("TRITON_INTERPRET", "1")
DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """The test data of the repository."""
    return DATA


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference data beside the repository, which not every machine has."""
    folder = Path(os.environ.get("QTRANSFORMERS_TEST_SHARED") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder} (QTRANSFORMERS_TEST_SHARED)")
    return folder


LINE = "the quick brown fox jumps over the lazy dog and the dog sleeps in the sun while the fox runs on and on"


@pytest.fixture
def train_sentencepiece():
    """A tiny SentencePiece model made by its own library, as bytes."""

    import sentencepiece

    words = LINE.split()

    def train(**settings):
        out = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([" ".join(words[i:] + words[:i]) for i in range(len(words))]),
            model_writer=out,
            **{"byte_fallback": True, "vocab_size": 300, "hard_vocab_limit": False, "minloglevel": 2, **settings},
        )
        return out.getvalue()

    return train


@pytest.fixture
def device(monkeypatch):
    """Where QuantLinear and its like run on the GPU kernels: a card, or tensors of main memory in the interpreter."""
    from qtransformers.torch import ops

    on_card = os.environ["TRITON_INTERPRET"] == "0"
    if not on_card:
        monkeypatch.setitem(ops.HOMES, "cpu", "on_gpu")
    ops.side.cache_clear()
    yield "cuda" if on_card else "cpu"
    ops.side.cache_clear()
