import pytest

from qtransformers.errors import ConfigError
from qtransformers.load.start import doubts, encode_prompt, with_start


class Spelled:
    """`<s>` is token 1, all else are characters. It is a control token, unless `user`: then any text may hold it."""

    def __init__(self, before=(1,), bos_id=1, user=False):
        self.before, self.bos_id, self.user = list(before), bos_id, user

    def token_text(self, i):
        return "<s>" if i == 1 else chr(i)

    def encode(self, text, add_bos=None, encode_special=False):
        return [
            1 if c == "\1" else ord(c) for c in (text.replace("<s>", "\1") if encode_special or self.user else text)
        ]


AB = [97, 98]
PLAIN = [*map(ord, "<s>"), *AB]


@pytest.mark.parametrize(
    "vocabulary, text, add_bos, encode_special, expected, told",
    [
        (Spelled(), "ab", None, False, [1, *AB], ""),
        (Spelled(), "ab", True, False, [1, *AB], ""),
        (Spelled(), "ab", False, False, AB, ""),
        (Spelled(), "<s>ab", None, False, [1, *PLAIN], "read as plain text"),
        (Spelled(), "<s>ab", False, False, PLAIN, "read as plain text"),
        (Spelled(), "<s>ab", None, True, [1, *AB], ""),
        (Spelled(), "<s><s>ab", None, True, [1, 1, *AB], "twice"),
        (Spelled(user=True), "<s>ab", None, False, [1, *AB], ""),
        (Spelled(user=True), "<s><s>ab", None, False, [1, 1, *AB], "twice"),
        (Spelled(()), "ab", None, False, AB, ""),
        (Spelled(()), "ab", True, False, [1, *AB], ""),
        (Spelled(()), "<s>ab", True, True, [1, *AB], ""),
        (Spelled(()), "<s>ab", True, False, [1, *PLAIN], "read as plain text"),
        (Spelled((), None), "<s>ab", None, False, PLAIN, ""),
        (Spelled(), "", None, False, [1], ""),
    ],
)
def test_texts(vocabulary, text, add_bos, encode_special, expected, told):
    ids = encode_prompt(text, vocabulary, add_bos, encode_special)
    assert ids == expected
    found = doubts(ids, vocabulary, text, encode_special)
    assert len(found) == bool(told) and all(told in message for message in found)


def test_ids():
    assert not doubts([1, *AB], Spelled()) and not doubts(AB, Spelled(())) and not doubts([], Spelled(()))
    assert "but this model expects [1] (<s>) in front" in doubts(AB, Spelled())[0]
    assert "twice" in doubts([1, 1, *AB], Spelled())[0] and "twice" in doubts([1, 1], Spelled(()))[0]


def test_no_bos_to_add():
    with pytest.raises(ConfigError, match=r"^add_bos=True, but the vocabulary has no BOS"):
        encode_prompt("a", Spelled((), None), True, False)


def test_the_start_comes_once():
    assert with_start([1, *AB], Spelled()) == with_start(AB, Spelled()) == [1, *AB]
