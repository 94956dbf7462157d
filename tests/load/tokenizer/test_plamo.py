import numpy as np

from qtransformers.load.tokenizer.plamo import plamo_encoder
from qtransformers.load.tokenizer.vocab import KINDS, make_vocab

BYTES = [f"<0x{b:02X}>" for b in range(256)]


def encoder(**scores):
    tokens = [*BYTES, "<|plamo:eos|>", *scores]
    types = np.array([6] * 256 + [3] + [1] * len(scores), np.uint8)
    values = np.array([0.0] * 257 + list(scores.values()), np.float32)
    return plamo_encoder(
        make_vocab(
            "f",
            KINDS["plamo2"],
            "plamo2",
            tokens,
            types,
            values,
            {},
            add_bos=False,
            add_eos=False,
            add_space_prefix=False,
        )
    )


def test_the_highest_sum_of_scores():
    encode = encoder(a=-1.0, b=-1.0, ab=-2.5, abc=-2.9, c=-1.0)
    assert encode("ab") == [257, 258]
    assert encode("abc") == [260]
    assert encode("abcab") == [260, 257, 258]


def test_unknown_characters_are_bytes_and_cost_much():
    encode = encoder(a=-1.0, ab=-900.0)
    assert encode("ab") == [258]  # dear, but less than an unknown character
    assert encode("é") == [0xC3, 0xA9]
    assert encode("\ufeffa\ufeff") == [257, 0xEF, 0xBB, 0xBF]


def test_control_tokens_and_scores_without_end_do_not_count():
    encode = encoder(a=-1.0, aa=float("-inf"))
    assert encode("aa") == [257, 257]
    assert encode("<|plamo:eos|>") == [*list(b"<|pl"), 257, *list(b"mo:eos|>")]
