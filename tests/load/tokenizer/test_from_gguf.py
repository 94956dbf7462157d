"""Every kind of vocabulary and every pre-tokenizer against the ids llama.cpp gives for them."""

import json

import numpy as np
import pytest

from qtransformers.load.tokenizer import Tokenizer
from qtransformers.load.tokenizer.from_gguf import gguf_tokenizer
from qtransformers.load.tokenizer.pretokenizers import PRE_TOKENIZERS


@pytest.fixture(scope="module")
def goldens(data):
    """Made by tools/tokenizer_goldens/make.py."""
    return json.loads((data / "goldens" / "tokenizers.json").read_text())


def metadata(goldens, name):
    """The vocabulary of a case as GGUF metadata."""
    case = goldens["cases"][name]
    model, more = goldens["kinds"][case["vocabulary"]]
    vocabulary = goldens["vocabularies"][case["vocabulary"].partition(",")[0]]
    out = {
        "model": model,
        "tokens": vocabulary["tokens"],
        "token_type": np.array(vocabulary["types"], np.int32),
        **more,
    }
    if "scores" in vocabulary:
        out["scores"] = np.array(vocabulary["scores"], np.float32)
    if "merges" in vocabulary:
        out["merges"] = vocabulary["merges"]
    if "charsmap" in vocabulary:
        out["precompiled_charsmap"] = np.frombuffer(bytes.fromhex(vocabulary["charsmap"]), np.uint8)
    if case["pre"]:
        out["pre"] = case["pre"]
    if case["pre"] == "whitespace":
        out["model"] = "whitespace"
    return {f"tokenizer.ggml.{key}": value for key, value in out.items()}


def tokenizer(goldens, name, **changes):
    return Tokenizer(gguf_tokenizer(metadata(goldens, name) | changes, "made.gguf"))


def check(goldens, name):
    made = tokenizer(goldens, name)
    results = goldens["results"][goldens["cases"][name]["result"]]
    assert len(results) == len(goldens["texts"]) > 45
    controls = [made.token_text(i) for i in made.special_ids]
    compared = 0
    for text, ids in zip(goldens["texts"], results, strict=True):
        ours = made.encode(text, add_bos=False)
        assert not set(ours) & (made.special_ids - {made._vocab.ids.get("unk")})
        if any(control in text for control in controls):
            continue  # llama.cpp makes control tokens of text for some kinds
        assert ours == ids, repr(text)
        compared += 1
    assert compared > 40


def test_every_name_has_its_golden(goldens):
    assert {name.removeprefix("pre ") for name in goldens["cases"] if name.startswith("pre ")} == set(PRE_TOKENIZERS)
    assert len(PRE_TOKENIZERS) == 91


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_pre_tokenizers(goldens, pre):
    check(goldens, f"pre {pre}")


@pytest.mark.parametrize("kind", ["spm", "wpm", "ugm", "ugm, one blank", "rwkv", "plamo2"])
def test_other_kinds(goldens, kind):
    check(goldens, kind)


def test_different_rows_give_different_ids(goldens):
    """The texts and the vocabulary tell every two rows apart, but for two that are written differently and mean the same."""
    rows = {(row.splits, row.ignore_merges, row.whole_newlines): name for name, row in PRE_TOKENIZERS.items()}
    results = {goldens["cases"][f"pre {name}"]["result"] for name in rows.values()}
    assert len(rows) - len(results) <= 1


@pytest.mark.parametrize("name", ["pre gpt-2", "pre llama-bpe", "pre gemma4", "spm", "rwkv", "plamo2"])
def test_text_comes_back(goldens, name):
    made = tokenizer(goldens, name)
    for text in goldens["texts"]:
        if "\u2581" in text and name in ("spm", "pre gemma4"):
            text = text.replace("\u2581", "")  # it is how these spell a blank
        assert made.decode(made.encode(text, add_bos=False)) == text


def test_add_bos_as_the_file_says(goldens):
    assert tokenizer(goldens, "spm").encode("a")[0] == 1  # the kind's default
    assert tokenizer(goldens, "spm", **{"tokenizer.ggml.add_bos_token": False}).encode("a")[0] != 1
    assert tokenizer(goldens, "spm", **{"tokenizer.ggml.add_eos_token": True}).encode("a")[-1] == 2
    assert tokenizer(goldens, "pre gpt-2").before == []
    assert tokenizer(goldens, "pre llama-bpe").before == [0]  # this pre-tokenizer's default
    assert tokenizer(goldens, "pre llama-bpe", **{"tokenizer.ggml.add_bos_token": False}).before == []
    assert tokenizer(goldens, "pre gemma4", **{"tokenizer.ggml.add_bos_token": False}).before == [0]
    assert tokenizer(goldens, "wpm").before == [2]
    assert tokenizer(goldens, "wpm").after == [3]
    assert (tokenizer(goldens, "ugm").before, tokenizer(goldens, "ugm").after) == ([], [2])


def test_a_missing_pre_is_the_default_and_says_so(goldens):
    described = metadata(goldens, "pre default")
    del described["tokenizer.ggml.pre"]
    with pytest.warns(UserWarning, match=r"made\.gguf: tokenizer\.ggml\.pre is missing.*pre="):
        made = Tokenizer(gguf_tokenizer(described, "made.gguf"))
    assert "pre is missing" in made.warnings[0]
    same = tokenizer(goldens, "pre default")
    assert [made.encode(t) for t in goldens["texts"]] == [same.encode(t) for t in goldens["texts"]]


def test_the_override_replaces_the_name(goldens):
    described = metadata(goldens, "pre gpt-2")
    made = Tokenizer(gguf_tokenizer(described, "made.gguf", pre="qwen2"))
    same = tokenizer(goldens, "pre qwen2")
    assert [made.encode(t) for t in goldens["texts"]] == [same.encode(t) for t in goldens["texts"]]


def test_bytes_without_a_token_are_told(goldens):
    described = metadata(goldens, "pre gpt-2")
    tokens = ["removed" if t == "a" else t for t in described["tokenizer.ggml.tokens"]]
    merges = [m for m in described["tokenizer.ggml.merges"] if "a" not in m]
    with pytest.warns(UserWarning, match=r"1 of the 256 bytes have no token \(0x61"):
        made = Tokenizer(
            gguf_tokenizer(described | {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": merges}, "m")
        )
    assert made.decode(made.encode("bab")) == "bb"


def test_phi_3_special_tokens_swallow_the_blanks_behind_them():
    described = {
        "model": "bert",
        "tokens": ["[UNK]", "[CLS]", "[SEP]", "<x>", "\u2581a", "\u2581b"],
        "token_type": np.array([2, 3, 3, 3, 1, 1], np.int32),
        "unknown_token_id": 0,
        "bos_token_id": 1,
        "seperator_token_id": 2,
    }
    described = {f"tokenizer.ggml.{key}": value for key, value in described.items()}
    for name, ids in (("Phi-3 mini", [4, 3, 5]), ("other", [4, 3, 5])):
        parts = gguf_tokenizer({**described, "general.name": name}, "made.gguf")
        assert parts.encode("a <x> \n b", True) == ids  # WordPiece drops blanks anyway
    described |= {"tokenizer.ggml.model": "rwkv", "tokenizer.ggml.tokens": ["?", "!", "#", "<x>", "a", " "]}
    assert gguf_tokenizer(described, "m").encode("a<x>  a", True) == [4, 3, 5, 5, 4]
    assert gguf_tokenizer({**described, "general.name": "phi3"}, "m").encode("a<x>  a", True) == [4, 3, 4]
