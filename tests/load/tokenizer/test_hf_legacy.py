"""Directories without tokenizer.json."""

import json
import random

import pytest

from qtransformers.errors import TokenizerError
from qtransformers.load.tokenizer import Tokenizer

TEXTS = ["the lazy dog", " the  dog ", "", " ", "é🦊\n x", "Ａﬁx ½", "thequickbrown"]


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "bpe", "normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        {"model_type": "bpe", "add_dummy_prefix": False},
        {"model_type": "bpe", "normalization_rule_name": "nmt_nfkc"},
        {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc", "byte_fallback": False},
        {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc_cf"},
    ],
)
def test_sentencepiece_models_as_their_library_has_them(settings, tmp_path, train_sentencepiece):
    import sentencepiece

    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece(**settings))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours = Tokenizer.from_pretrained(tmp_path)
    r = random.Random(6)
    for text in [*TEXTS, *("".join(r.choices("thequick dog éﬁ🦊 ", k=15)) for _ in range(100))]:
        ids = theirs.encode(text)
        assert ours.encode(text, add_bos=False) == ids, repr(text)
        if theirs.unk_id() not in ids:
            assert ours.decode(ids) == theirs.decode(ids)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_id(), theirs.eos_id())
    assert (ours.before, ours.after) == (([1], []) if settings["model_type"] == "bpe" else ([], [2]))
    assert ours.encode("<s>the</s>", add_bos=False, encode_special=True)[0] == 1
    assert not set(ours.encode("<s></s>", add_bos=False)) & {1, 2}


def test_sentencepiece_models_with_a_config(tmp_path, train_sentencepiece):
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece(model_type="bpe"))
    n = Tokenizer.from_pretrained(tmp_path).n_tokens
    config = {
        "add_bos_token": False,
        "add_eos_token": True,
        "eos_token": {"content": "<|im_end|>"},
        "added_tokens_decoder": {str(n): {"content": "<|im_end|>", "special": True}, str(n + 1): {"content": "<tool>"}},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = Tokenizer.from_pretrained(tmp_path)
    assert (ours.before, ours.after, ours.eos_id) == ([], [n], n)
    assert n + 1 in ours.encode("the <tool> dog")
    config["added_tokens_decoder"] = {"4000000000": {"content": "x"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError, match="adds one as id 4000000000"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.fixture
def byte_files(tmp_path, data):
    """The demo model's vocabulary as vocab.json and merges.txt."""
    model = json.loads((data / "demo_model" / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, model["merges"])) + "\n")
    return tmp_path


def test_vocab_and_merges(byte_files, data):
    config = {"tokenizer_class": "GPT2TokenizerFast", "eos_token": "<|end|>", "bos_token": "<|endoftext|>"}
    (byte_files / "tokenizer_config.json").write_text(json.dumps(config))
    ours, whole = Tokenizer.from_pretrained(byte_files), Tokenizer.from_pretrained(data / "demo_model")
    for text in [*TEXTS, "I'm 12  <|end|>", "naïve 日本"]:
        assert ours.encode(text) == whole.encode(text)
        assert ours.decode(ours.encode(text)) == text
    assert ours.encode("a<|end|>", encode_special=True)[-1] == ours.eos_id == 4


def test_a_class_with_rules_of_its_own_is_refused(byte_files):
    (byte_files / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    with pytest.raises(TokenizerError, match=r"'CLIPTokenizer'; known are GPT2Tokenizer.*save_pretrained"):
        Tokenizer.from_pretrained(byte_files)


@pytest.mark.parametrize("text", ["[]", '{"a": "b"}', '{"a": -1}', '{"a": 99999999999}', '{"\\ud800": 0}'])
def test_a_vocab_that_is_none(byte_files, text):
    (byte_files / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    (byte_files / "vocab.json").write_text(text)
    with pytest.raises(TokenizerError, match=r"vocab\.json"):
        Tokenizer.from_pretrained(byte_files)
