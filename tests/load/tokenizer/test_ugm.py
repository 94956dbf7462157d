import struct

import numpy as np
import pytest

from qtransformers.errors import TokenizerError
from qtransformers.load.tokenizer.ugm import beginnings, normaliser, unigram
from qtransformers.load.tokenizer.vocab import KINDS, make_vocab


def vocab(tokens, types, scores):
    arrays = np.array(types, np.uint8), np.array(scores, np.float32)
    return make_vocab(
        "f", KINDS["t5"], "t5", tokens, *arrays, {"unk": 0}, add_bos=False, add_eos=True, add_space_prefix=True
    )


def test_the_most_probable_segmentation():
    find = unigram(vocab(["<unk>", "a", "b", "ab", "abc", "c"], [2, 1, 1, 1, 1, 1], [0, -1, -1, -1.5, -9, -1]))
    assert find("abc") == [3, 5]  # -2.5, against -3 and -9
    assert find("axxb") == [1, 0, 2]  # unknown characters in a row are one
    assert find("") == []


def test_user_defined_tokens_cost_nothing_and_padding_changes_nothing():
    find = unigram(vocab(["<unk>", "ab", "a", "b", "[PAD1]"], [2, 4, 1, 1, 5], [0, -50, -1, -1, -10000]))
    assert find("ab") == [1]
    assert find("x[PAD1]") == [0]


def double_array(text=b"i\0"):
    """The table {"x": "i"}: the root's child at its base xor "x", and that one's value."""
    base, inner = 256, 512
    units = [0] * 1024
    units[0] = base << 10
    child = base ^ ord("x")
    units[child] = ord("x") | 1 << 8 | (child ^ inner) << 10
    units[inner] = 1 << 31
    return struct.pack("<I1024I", 4096, *units) + text


def test_replacements():
    normalise = normaliser("f", np.frombuffer(double_array(), np.uint8))
    assert normalise("axéx") == "aiéi"
    assert normaliser("f", None)("axb") == "axb"
    assert normaliser("f", np.frombuffer(double_array(), np.int8), beginnings(["x!"]))("x x!x") == "x x!x"


@pytest.mark.parametrize(
    "table", [b"\1", b"\0\1\0\0", b"\3\0\0\0abc\0", double_array(b"i"), double_array(b""), double_array()[:2000]]
)
def test_a_damaged_table_is_refused(table):
    with pytest.raises(TokenizerError, match=r"f: tokenizer\.ggml\.precompiled_charsmap"):
        normaliser("f", np.frombuffer(table, np.uint8))


def test_any_table_gives_text_or_an_error():
    rng = np.random.default_rng(4)
    whole = np.frombuffer(double_array(), np.uint8)
    for _ in range(300):
        table = whole.copy()
        table[rng.integers(0, len(table), 40)] = rng.integers(0, 256, 40)
        table[4 : 4 + 4096 : rng.integers(3, 9)] ^= rng.integers(0, 256, dtype=np.uint8)
        try:
            normalise = normaliser("f", table)
        except TokenizerError:
            continue
        assert isinstance(normalise("axé日 x🦊"), str)
