import numpy as np
import pytest

from qtransformers.load.tokenizer.vocab import KINDS, make_vocab
from qtransformers.load.tokenizer.wpm import simple_lower, wpm_encoder

TOKENS = ["[UNK]", "▁un", "aff", "able", "▁a", "▁,", "▁中", "b", "▁i", "▁É", "▁e", "▁x", "[x]"]


def encoder(lowercase=True, strip_accents=True):
    types = np.array([2, *[1] * 11, 3], np.uint8)
    scores = np.zeros(len(TOKENS), np.float32)
    vocab = make_vocab(
        "f",
        KINDS["bert"],
        "bert",
        TOKENS,
        types,
        scores,
        {"unk": 0},
        add_bos=True,
        add_eos=False,
        add_space_prefix=False,
    )
    return wpm_encoder(vocab, lowercase=lowercase, strip_accents=strip_accents)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("unaffable", [1, 2, 3]),
        ("UnAffable a", [1, 2, 3, 4]),
        ("unaffx a", [0, 4]),  # a word that cannot be made is one unknown token
        ("a,a", [4, 5, 4]),  # punctuation and CJK stand alone
        ("a中ab", [4, 6, 4, 7]),
        ("\ta\u00a0a\n\u200b\u0000 \ufffd", [4, 4]),  # blanks part words, control characters go
        ("İ É é", [8, 10, 10]),
        ("", []),
        ("  ", []),
        ("[x]", [0, 11, 0]),  # never the control token
    ],
)
def test_words(text, ids):
    assert encoder()(text) == ids


def test_case_and_accents_may_stay():
    assert encoder(lowercase=False, strip_accents=False)("É e") == [9, 10]
    assert encoder(lowercase=True, strip_accents=False)("É") == [0]


def test_a_word_of_any_length():
    assert encoder()("aff" * 5) == [0]
    assert encoder()("un" + "aff" * 100_000) == [1] + [2] * 100_000


def test_lower_case_is_one_character():
    assert [simple_lower(c) for c in "AİΣǅ1"] == ["a", "i", "σ", "ǆ", "1"]
