import random

import pytest

from qtransformers.errors import TokenizerError
from qtransformers.load.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def demo(data):
    return Tokenizer.from_gguf(data / "demo-Q8_0.gguf")


def streamed(tokenizer, ids, **options):
    decoder = tokenizer.decoder(**options)
    pieces = [decoder.push(i) for i in ids]
    return pieces, "".join(pieces) + decoder.finish()


@pytest.mark.parametrize("special", [False, True])
def test_a_stream_is_the_whole_text_for_any_ids(demo, special):
    r = random.Random(3)
    for _ in range(300):
        ids = [r.randrange(demo.n_tokens) if r.random() < 0.5 else r.randrange(5, 261) for _ in range(r.randint(0, 30))]
        _, text = streamed(demo, ids, decode_special=special)
        assert text == demo.decode(ids, decode_special=special)


def test_only_whole_characters_come_out(demo):
    text = "naïve 🦊 日本 👩\u200d👧"
    ids = demo.encode(text)
    pieces, whole = streamed(demo, ids)
    assert whole == text
    assert "\ufffd" not in whole
    assert len(ids) > len(text)  # so some characters took several tokens
    assert "" in pieces


def test_an_unfinished_character_is_told_at_the_end(demo):
    ids = demo.encode("🦊")[:-1]
    pieces, whole = streamed(demo, ids)
    assert "".join(pieces) == ""
    assert whole == "\ufffd" == demo.decode(ids)


def test_control_tokens_are_hidden_unless_asked_for(demo):
    ids = [2, *demo.encode("hi"), 4]
    assert demo.decode(ids) == "hi"
    assert demo.decode(ids, decode_special=True) == "<|user|>hi<|end|>"
    assert streamed(demo, ids)[1] == "hi"


def test_padding_stands_for_nothing(demo):
    assert demo.unused_ids
    assert demo.decode(sorted(demo.unused_ids)) == ""


def test_ids_out_of_range(demo):
    decoder = demo.decoder()
    for bad in (-1, demo.n_tokens, 1 << 40, "1", 1.0, None):
        with pytest.raises(TokenizerError):
            decoder.push(bad)
        with pytest.raises(TokenizerError):
            demo.decode([bad])
        with pytest.raises(TokenizerError):
            demo.token_text(bad)
        with pytest.raises(TokenizerError):
            demo.token_bytes(bad)


def test_the_first_blank_of_sentencepiece(shared):
    tokenizer = Tokenizer.from_gguf(shared / "models" / "stories260K-f32.gguf")
    ids = tokenizer.encode("Once upon 🦊")
    assert tokenizer.decode(ids) == "Once upon 🦊" == streamed(tokenizer, ids)[1]
    assert tokenizer.decode(ids[1:], continues=True) == " Once upon 🦊" == streamed(tokenizer, ids, continues=True)[1]
    assert tokenizer.decode(tokenizer.encode(" x")) == " x"


@pytest.mark.parametrize("name", ["demo-Q8_0.gguf", "stories"])
def test_a_stream_goes_back_to_where_it_was(request, data, name):
    """Amid a character, before the first blank, or within what is skipped."""
    path = data / name if name != "stories" else request.getfixturevalue("shared") / "models" / "stories260K-f32.gguf"
    tokenizer = Tokenizer.from_gguf(path)
    r = random.Random(4)
    ids = tokenizer.encode(" naïve 🦊 日本, a fox") * 2
    for skip in (0, 1, 7):
        expected = tokenizer.decoder(skip=skip)
        pieces = [expected.push(i) for i in ids]
        decoder, at, n = tokenizer.decoder(skip=skip), 0, 0
        states = [decoder.state]
        while at < len(ids):
            assert decoder.push(ids[at]) == pieces[at]
            at += 1
            states = [*states[:at], decoder.state]
            if r.random() < 0.3 and n < 200:
                at, n = r.randrange(at + 1), n + 1
                decoder.push(r.choice(ids))
                decoder.restore(states[at])
        assert n > 3 and decoder.finish() == expected.finish()


def test_some_control_tokens_may_be_shown(demo):
    ids = demo.encode("<|user|>hi<|end|>", add_bos=False, encode_special=True)
    decoder = demo.decoder(["<|user|>", "hi", "no token"])
    assert "".join(map(decoder.push, ids)) + decoder.finish() == "<|user|>hi"
