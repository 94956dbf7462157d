import itertools
import random

import numpy as np
import pytest

from qtransformers.errors import TokenizerError
from qtransformers.load.tokenizer.spm import merge, spm_encoder
from qtransformers.load.tokenizer.vocab import KINDS, make_vocab


def plain_merge(word, ranks):
    """The definition: merge the neighbours whose union ranks first, of equals the leftmost, until there are none."""
    symbols = list(word)
    while True:
        pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in ranks]
        if not pairs:
            return symbols
        _, at = min(pairs)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


def test_merges_as_defined():
    r = random.Random(2)
    for _ in range(1500):
        ranks = {"".join(r.choices("abc", k=r.randint(2, 5))): r.randint(0, 4) for _ in range(r.randint(1, 25))}
        word = "".join(r.choices("abcd", k=r.randint(0, 30)))
        assert merge(word, ranks) == plain_merge(word, ranks)


def test_of_equal_scores_the_leftmost():
    assert merge("aaa", {"aa": 0}) == ["aa", "a"]
    assert merge("abc", {"ab": 0, "bc": 0}) == ["ab", "c"]
    assert merge("abc", {"ab": 1, "bc": 0}) == ["a", "bc"]


def encoder(tokens, types, scores, **ids):
    arrays = np.array(types, np.uint8), np.array(scores, np.float32)
    vocab = make_vocab(
        "f", KINDS["llama"], "llama", tokens, *arrays, ids, add_bos=True, add_eos=False, add_space_prefix=True
    )
    return spm_encoder(vocab)


def test_unknown_characters_become_bytes_or_the_unknown_token():
    byte_tokens = [f"<0x{b:02X}>" for b in range(256)]
    with_bytes = encoder(["<unk>", *byte_tokens, "a"], [2] + [6] * 256 + [1], [0.0] * 258, unk=0)
    assert with_bytes("aé") == [257, 1 + 0xC3, 1 + 0xA9]
    assert encoder(["<unk>", "a"], [2, 1], [0, 0], unk=0)("aé") == [1, 0]
    with pytest.raises(TokenizerError, match=r"f: 'é' is not in the vocabulary"):
        encoder(["x", "a"], [1, 1], [0, 0], unk=-1)("aé")


def test_text_never_merges_into_a_control_token():
    encode = encoder(["<unk>", "<s>", "<", "s", ">", "<s"], [2, 3, 1, 1, 1, 1], [0, 9, 0, 0, 0, 1], unk=0)
    assert encode("<s>") == [5, 4]


def test_words_are_independent_only_where_no_token_crosses_a_blank():
    crossing = encoder(["<unk>", "a", "▁", "a▁", "a▁a"], [2, 1, 1, 1, 1], [0, 0, 0, 2, 1], unk=0)
    assert crossing("a▁a") == [4]
    apart = encoder(["<unk>", "a", "▁", "▁a"], [2, 1, 1, 1], [0, 0, 0, 1], unk=0)
    assert apart("a▁a▁▁a") == [1, 3, 2, 3]
    assert apart("a▁a▁▁a") == [1, 3, 2, 3]  # from the cache
