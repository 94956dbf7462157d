import random

import numpy as np
import pytest

from qtransformers.load.tokenizer import Tokenizer
from qtransformers.load.tokenizer.healing import MAX_TAKEN_BACK, Healing, Pieces, take_back

TEXTS = [
    "The link is http:",
    "Hello wor",
    "x = fo",
    "end. ",
    "a\n",
    "naïve caf",
    "日本",
    "def f(x):\n    ret",
    "1 + 1 =",
    '{"na',
]


class Spelled:
    """A vocabulary of these pieces, id by id; a piece in brackets is a control token."""

    def __init__(self, *pieces):
        self.special_ids = frozenset(i for i, p in enumerate(pieces) if p.startswith("["))
        self.pieces = Pieces([b"" if p.startswith("[") else p.encode() for p in pieces])


def test_the_tokens_that_spell_a_text():
    rng = random.Random(1)
    for _ in range(300):
        pieces = [bytes(rng.choices(b"ab\xff", k=rng.randint(0, 4))) for _ in range(rng.randint(1, 20))]
        text = bytes(rng.choices(b"ab\xff", k=rng.randint(1, 5)))
        p = Pieces(pieces)
        fitting = [i for i, piece in enumerate(pieces) if piece and (piece.startswith(text) or text.startswith(piece))]
        assert sorted(p.spelling(text).tolist()) == fitting
        assert p.goes_on(text) == any(piece.startswith(text) and piece != text for piece in pieces)


def test_the_last_tokens_are_taken_back_that_begin_a_longer_one():
    v = Spelled("[bos]", "http", ":", "://", "s", "h", "https:/")
    kept, healing = take_back((0, 1, 2), v)
    assert kept == (0, 1) and healing.text == b":"
    assert sorted(healing.allowed(kept, 2).tolist()) == [2, 3] and healing.allowed((*kept, 3), 2) is None
    kept, healing = take_back((0, 1, 4, 2), v)  # three tokens together begin the last of the vocabulary
    assert kept == (0,) and healing.text == b"https:"
    assert sorted(healing.allowed(kept, 1).tolist()) == [1, 5, 6]
    assert healing.allowed((0, 1), 1).tolist() == [4] and sorted(healing.allowed((0, 1, 4), 1).tolist()) == [2, 3]
    assert healing.allowed((0, 6), 1) is None and healing.allowed((0, 1, 4, 3), 1) is None


@pytest.mark.parametrize("ids", [(0,), (2,), (1, 4), (1, 0), (2, 2, 0), ()])
def test_what_stays(ids):
    """The only token, one that nothing goes on with, and control tokens."""
    assert take_back(ids, Spelled("[bos]", "http", ":", "://", "s")) == (ids, None)


def test_not_beyond_a_control_token_nor_too_far():
    v = Spelled("[bos]", "a", "a" * 30)
    assert take_back((1, 1, 0, 1, 1), v)[0] == (1, 1, 0)
    assert len(take_back((1,) * 20, v)[0]) == 20 - MAX_TAKEN_BACK


def check(tokenizer):
    """Whatever is chosen among what is allowed spells the text again, and there is always something to choose."""
    rng = np.random.default_rng(3)
    healed = 0
    for text in TEXTS:
        ids = tuple(tokenizer.encode("Here: " + text))
        kept, healing = take_back(ids, tokenizer)
        if healing is None:
            assert kept == ids
            continue
        healed += 1
        taken = b"".join(tokenizer.token_bytes(i) for i in ids[len(kept) :])
        assert healing.text == taken and healing.allowed(ids, len(kept)) is None  # the tokens taken back may come again
        for _ in range(20):
            tokens = list(kept)
            while (allowed := healing.allowed(tokens, len(kept))) is not None:
                assert not set(allowed.tolist()) & (tokenizer.special_ids | tokenizer.unused_ids)
                tokens.append(int(rng.choice(allowed)))
            answer = tokens[len(kept) :]
            assert b"".join(map(tokenizer.token_bytes, answer)).startswith(taken)
            decoder = tokenizer.decoder(continues=True, skip=len(taken))
            shown = "".join(map(decoder.push, answer)) + decoder.finish()
            assert shown == b"".join(map(tokenizer.token_bytes, answer))[len(taken) :].decode("utf-8", "replace")
    return healed


def test_the_demo_tokenizer(data):
    assert check(Tokenizer.from_gguf(data / "demo-Q8_0.gguf")) > 3
    assert check(Tokenizer.from_pretrained(data / "demo_model")) > 3


@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm", "qwen2", "deepseek-llm", "phi-3", "gpt-2"])
@pytest.mark.filterwarnings("ignore")
def test_real_vocabularies(shared, name):
    tokenizer = Tokenizer.from_gguf(shared / "facts" / "vocab" / f"ggml-vocab-{name}.gguf")
    assert check(tokenizer) > 3
    ids = tuple(tokenizer.encode("The link is http:"))
    kept, healing = take_back(ids, tokenizer)
    assert tokenizer.decode(kept) == "The link is http" and healing.text == b":"
    allowed = [tokenizer.token_bytes(int(i)) for i in healing.allowed(kept, len(kept))]
    assert b"://" in allowed and all(piece.startswith(b":") for piece in allowed)


def test_no_text_to_spell_allows_everything():
    assert Healing(b"", Pieces([b"a"])).allowed((0,), 1) is None
