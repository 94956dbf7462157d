import numpy as np
import pytest

from qtransformers.errors import TokenizerError
from qtransformers.load.tokenizer.rwkv import rwkv_encoder, unescape
from qtransformers.load.tokenizer.vocab import KINDS, make_vocab


def encoder(tokens, types=None):
    n = len(tokens)
    kinds, scores = np.array(types or [1] * n, np.uint8), np.zeros(n, np.float32)
    return rwkv_encoder(
        make_vocab(
            "f", KINDS["rwkv"], "rwkv", tokens, kinds, scores, {}, add_bos=False, add_eos=False, add_space_prefix=False
        )
    )


@pytest.mark.parametrize(
    ("text", "raw"),
    [
        ("ab", b"ab"),
        (r"\t\n\r\\\'", b"\t\n\r\\'"),
        (r"\x00\xff\xC3", b"\x00\xff\xc3"),
        ("é", "é".encode()),
        (r"\x4g", b"x4g"),
    ],
)
def test_escapes(text, raw):
    assert unescape(text) == raw


def test_the_longest_token_at_each_byte():
    encode = encoder(["a", "ab", "abcd", "b", r"\xc3", r"\xa9", "é!", r"\n"])
    assert encode("ababcd\n") == [1, 2, 7]
    assert encode("éé!") == [4, 5, 6]
    assert encode("") == []


def test_control_tokens_are_no_text_and_missing_bytes_are_told():
    assert encoder(["<s>", "<", "s", ">"], [3, 1, 1, 1])("<s>") == [1, 2, 3]
    with pytest.raises(TokenizerError, match="f: no token begins with the byte 0x62"):
        encoder(["a"])("ab")
