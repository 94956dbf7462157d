"""Tokenizers from GGUF files and directories, against lists of ids and against each other."""

from pathlib import Path

import pytest

from qtransformers.errors import TokenizerError
from qtransformers.load.tokenizer import Tokenizer

SEPARATOR = "\n__ggml_vocab_test__\n"


def cases(path: Path) -> list[tuple[str, list[int]]]:
    """The texts of `<vocabulary>.inp` with the ids of `<vocabulary>.out`."""
    texts = path.with_name(path.name + ".inp").read_bytes().decode().removesuffix(SEPARATOR).split(SEPARATOR)
    lines = path.with_name(path.name + ".out").read_text().splitlines()
    assert len(texts) == len(lines) > 40
    return [(text, [int(i) for i in line.split()]) for text, line in zip(texts, lines, strict=True)]


@pytest.mark.parametrize("name", ["deepseek-llm", "falcon", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2"])
def test_reference_vocabularies(shared, name):
    path = shared / "facts" / "vocab" / f"ggml-vocab-{name}.gguf"
    tokenizer = Tokenizer.from_gguf(path)
    for text, ids in cases(path):
        assert tokenizer.encode(text, add_bos=False) == ids, repr(text)
        assert tokenizer.decode(ids) == text


def test_ids_out_of_range_and_no_text(data):
    tokenizer = Tokenizer.from_gguf(data / "demo-Q8_0.gguf")
    for bad in (-1, tokenizer.n_tokens, "1", None, 1.5):
        with pytest.raises(TokenizerError):
            tokenizer.decode([bad])
    for bad in (None, b"bytes", "\ud800"):
        with pytest.raises(TokenizerError):
            tokenizer.encode(bad)
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_user_text_makes_no_control_tokens(data):
    tokenizer = Tokenizer.from_gguf(data / "demo-Q8_0.gguf")
    text = "a <|end|> b<|endoftext|>"
    assert not set(tokenizer.encode(text)) & tokenizer.special_ids
    assert [i for i in tokenizer.encode(text, encode_special=True) if i in tokenizer.special_ids] == [4, 0]
    assert tokenizer.decode(tokenizer.encode(text)) == text
