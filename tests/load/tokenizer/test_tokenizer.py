"""The public Tokenizer: reference vocabularies, and what it promises of any text."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtransformers.errors import TokenizerError
from qtransformers.gguf import GGUFFile
from qtransformers.load.tokenizer import Tokenizer

SEPARATOR = "\n__ggml_vocab_test__\n"
LOSSLESS = ["deepseek-llm", "falcon", "gpt-2", "llama-bpe", "llama-spm", "phi-3", "qwen2"]


def cases(path: Path) -> list[tuple[str, list[int]]]:
    """The texts of `<vocabulary>.inp` with the ids of `<vocabulary>.out`."""
    texts = path.with_name(path.name + ".inp").read_bytes().decode().removesuffix(SEPARATOR).split(SEPARATOR)
    lines = path.with_name(path.name + ".out").read_text().splitlines()
    assert len(texts) == len(lines) > 40
    return [(text, [int(i) for i in line.split()]) for text, line in zip(texts, lines, strict=True)]


@pytest.mark.parametrize("name", ["bert-bge", *LOSSLESS])
def test_reference_vocabularies(shared, name):
    path = shared / "facts" / "vocab" / f"ggml-vocab-{name}.gguf"
    tokenizer = Tokenizer.from_gguf(path)
    for text, ids in cases(path):
        assert tokenizer.encode(text, add_bos=False) == ids, repr(text)
        if name in LOSSLESS:
            assert tokenizer.decode(ids) == text


@pytest.fixture(scope="module")
def demo(data):
    return Tokenizer.from_gguf(data / "demo-Q8_0.gguf")


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_and_makes_no_control_token(text, demo):
    ids = demo.encode(text, add_bos=False)
    assert demo.decode(ids) == text
    assert not set(ids) & demo.special_ids
    decoder = demo.decoder()
    assert "".join([decoder.push(i) for i in ids]) + decoder.finish() == text


def test_special_tokens_only_when_asked_for(demo):
    text = "<|user|>\nhi <|end|><|endoftext|>"
    assert not set(demo.encode(text)) & demo.special_ids
    assert demo.decode(demo.encode(text)) == text
    ids = demo.encode(text, encode_special=True)
    assert [i for i in ids if i in demo.special_ids] == [2, 4, 0]
    assert demo.decode(ids, decode_special=True) == text


def test_bos_is_put_in_front_once(data, demo):
    bare = demo.encode("hi", add_bos=False)
    assert demo.encode("hi") == bare  # the file says so
    assert demo.encode("hi", add_bos=True) == [0, *bare]
    assert demo.encode("<|endoftext|>hi", add_bos=True, encode_special=True) == [0, *bare]
    assert demo.encode("", add_bos=True) == [0]
    assert demo.encode("") == []


def test_bos_and_eos_of_sentencepiece(shared):
    tokenizer = Tokenizer.from_gguf(shared / "models" / "stories260K-f32.gguf")
    assert tokenizer.encode("Once")[0] == tokenizer.bos_id == 1
    assert tokenizer.encode("<s>Once", encode_special=True).count(1) == 1
    assert tokenizer.encode("<s><s>Once", encode_special=True, add_bos=False).count(1) == 2


@pytest.mark.parametrize("bad", [None, b"bytes", 3, ["a"], "\ud800", "a\udfffb"])
def test_what_is_no_text_is_refused(demo, bad):
    with pytest.raises(TokenizerError, match="text "):
        demo.encode(bad)


def test_bos_that_is_not_there_cannot_be_added(data, tmp_path):
    from qtransformers.gguf import GGUFWriter

    metadata = GGUFFile(data / "demo-Q8_0.gguf").metadata
    kept = {key: metadata.encoded(key) for key in metadata if "bos" not in key}
    GGUFWriter(tmp_path / "no-bos.gguf", kept, []).close()
    with pytest.raises(TokenizerError, match=r"no-bos\.gguf: add_bos=True, but this vocabulary has no BOS token"):
        Tokenizer.from_gguf(tmp_path / "no-bos.gguf").encode("a", add_bos=True)


def test_what_it_tells_of_its_tokens(demo, data):
    assert demo.n_tokens == 2048
    assert (demo.bos_id, demo.eos_id) == (0, 4)
    assert demo.eos_ids == {0, 4}
    assert demo.special_ids == {0, 1, 2, 3, 4}
    assert demo.unused_ids == set(range(1858, 2048))
    assert demo.id_of("<|end|>") == 4
    assert demo.id_of("no such token") is None
    the = demo.encode(" the")[0]
    assert (demo.token_text(the), demo.token_bytes(the)) == ("Ġthe", b" the")
    assert demo.token_bytes(np.int64(4)) == b"<|end|>"
    assert all(demo.id_of(demo.token_text(i)) == i for i in range(demo.n_tokens))
    assert demo.warnings == ()
    assert repr(demo) == "Tokenizer(demo-Q8_0.gguf: gpt2, 2048 tokens)"


def test_from_an_open_file(demo, data):
    assert Tokenizer.from_gguf(GGUFFile(data / "demo-Q8_0.gguf")).encode("a brave fox") == demo.encode("a brave fox")


def test_a_megabyte_of_anything_is_no_matter(demo):
    start = time.process_time()
    for unit, special in (("The fox ran. ", False), ("a", False), ("🦊", False), ("<|end|>", True)):
        text = (unit * 1_000_000)[: 1_000_000 // len(unit.encode())]
        assert demo.decode(demo.encode(text, encode_special=special), decode_special=True) == text
    assert time.process_time() - start < 120


def test_the_tokenizers_library_is_imported_when_needed():
    code = "import sys, qtransformers.load.tokenizer; print('tokenizers' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
