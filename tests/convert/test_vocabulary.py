import json
import re

import numpy as np
import pytest
import sentencepiece
from tokenizers import Tokenizer as HubTokenizer
from tokenizers import decoders, models, normalizers

from qtransformers import Tokenizer
from qtransformers.convert.vocabulary import tokenizer_metadata
from qtransformers.errors import LoadError, ModelNotFoundError, TokenizerError, UnsupportedError
from qtransformers.gguf import GGUFWriter
from qtransformers.load.tokenizer.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED

TEXTS = (
    "the quick brown fox", " the  dog\n\nsleeps ", "", " ", "fox's 123 4567", "Füchse 狐 🦊 é\u0301", "the\tsun\r\n", "<tool>the<|eot_id|>fox",
)  # fmt: skip


def as_gguf(metadata, tmp_path):
    path = tmp_path / "vocabulary.gguf"
    with GGUFWriter(path, {"general.architecture": "llama", **metadata}, []):
        pass
    return Tokenizer.from_gguf(path)


def put(folder, name, content):
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def test_the_demo_model(data):
    found = tokenizer_metadata(data / "demo_model", 2048)
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == 2048 == len(set(tokens))
    assert tokens[:5] == ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    assert (types[:5] == CONTROL).all() and (types[5:1858] == NORMAL).all() and (types[1858:] == UNUSED).all()
    assert tokens[1858] == "[PAD1858]" and tokens[-1] == "[PAD2047]"
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    assert [found[f"tokenizer.ggml.{r}_token_id"] for r in ("bos", "eos", "eot")] == [0, 4, 0]
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert found["tokenizer.chat_template"] == (data / "demo_model" / "chat_template.jinja").read_text()


def test_more_tokens_than_rows(data):
    with pytest.raises(LoadError, match=r"demo_model: the tokenizer has 1858 tokens, the embedding 1000 rows"):
        tokenizer_metadata(data / "demo_model", 1000)


def test_byte_level_bpe_encodes_like_the_original(byte_bpe, tmp_path):
    byte_bpe.save(str(tmp_path / "tokenizer.json"))
    put(tmp_path, "tokenizer_config.json", {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"})
    put(tmp_path, "generation_config.json", {"eos_token_id": [1, 2, 3]})
    found = tokenizer_metadata(tmp_path, 340)
    assert found["tokenizer.ggml.add_bos_token"] is True and found["tokenizer.ggml.add_eos_token"] is False
    assert [found[f"tokenizer.ggml.{r}_token_id"] for r in ("bos", "eos", "eot", "eom")] == [0, 3, 1, 2]
    assert found["tokenizer.ggml.token_type"][byte_bpe.token_to_id("<tool>")] == USER_DEFINED
    ours = as_gguf(found, tmp_path)
    for text in TEXTS:
        assert ours.encode(text, encode_special=True) == byte_bpe.encode(text).ids, text
    assert ours.eos_ids >= {1, 2, 3}


@pytest.mark.parametrize("settings", [{}, {"add_dummy_prefix": False}, {"user_defined_symbols": ["<tool>"]}])
def test_sentencepiece_encodes_like_the_original(settings, train_sentencepiece, tmp_path):
    data = train_sentencepiece(
        model_type="bpe", normalization_rule_name="identity", remove_extra_whitespaces=False, **settings
    )
    (tmp_path / "tokenizer.model").write_bytes(data)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    n = theirs.vocab_size()
    put(tmp_path, "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    put(tmp_path, "added_tokens.json", {"<|im_start|>": n})
    found = tokenizer_metadata(tmp_path, n + 3)
    assert found["tokenizer.ggml.model"] == "llama"
    assert found["tokenizer.ggml.tokens"][n:] == ["<|im_start|>", f"[PAD{n + 1}]", f"[PAD{n + 2}]"]
    assert found["tokenizer.ggml.token_type"][n:].tolist() == [CONTROL, UNUSED, UNUSED]
    assert found["tokenizer.ggml.token_type"][:3].tolist() == [UNKNOWN, CONTROL, CONTROL]
    assert found["tokenizer.ggml.scores"].dtype == np.float32
    assert found["tokenizer.ggml.add_bos_token"] is True
    ours = as_gguf(found, tmp_path)
    for text in TEXTS[:7]:
        assert ours.encode(text, add_bos=False) == theirs.encode(text), text


def test_bpe_with_byte_fallback_becomes_sentencepiece(train_sentencepiece, tmp_path):
    theirs = sentencepiece.SentencePieceProcessor(
        model_proto=train_sentencepiece(
            model_type="bpe", normalization_rule_name="identity", remove_extra_whitespaces=False
        )
    )
    vocab = {theirs.id_to_piece(i): i for i in range(theirs.vocab_size())}
    pairs = [(w[:k], w[k:]) for w in vocab for k in range(1, len(w)) if w[:k] in vocab and w[k:] in vocab]
    pairs = [p for p in sorted(pairs, key=lambda p: -theirs.get_score(vocab[p[0] + p[1]])) if not p[0].startswith("<")]
    hub = HubTokenizer(models.BPE(vocab, pairs, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    hub.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    hub.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    hub.add_special_tokens(["<s>", "</s>", "<unk>"])
    hub.save(str(tmp_path / "tokenizer.json"))
    put(
        tmp_path,
        "tokenizer_config.json",
        {"bos_token": "<s>", "add_bos_token": True, "tokenizer_class": "LlamaTokenizer"},
    )
    found = tokenizer_metadata(tmp_path, len(vocab))
    assert found["tokenizer.ggml.model"] == "llama" and "tokenizer.ggml.merges" not in found
    assert found["tokenizer.ggml.add_space_prefix"] is True and found["tokenizer.ggml.add_bos_token"] is True
    types = found["tokenizer.ggml.token_type"]
    assert types[vocab["<0x41>"]] == BYTE and types[vocab["<unk>"]] == UNKNOWN and types[vocab["<s>"]] == CONTROL
    ours = as_gguf(found, tmp_path)
    for text in TEXTS[:7]:
        if text:
            assert ours.encode(text, add_bos=False) == hub.encode(text, add_special_tokens=False).ids, text


def test_marks_of_turns_are_control_whatever_their_flag(byte_bpe, tmp_path):
    byte_bpe.add_tokens(["<|fim|>", "<end_of_turn>", "<b>"])
    byte_bpe.save(str(tmp_path / "tokenizer.json"))
    types = tokenizer_metadata(tmp_path, 340)["tokenizer.ggml.token_type"]
    found = {t: types[byte_bpe.token_to_id(t)] for t in ("<|fim|>", "<end_of_turn>", "<b>")}
    assert found == {"<|fim|>": CONTROL, "<end_of_turn>": CONTROL, "<b>": USER_DEFINED}


def test_chat_templates(byte_bpe, tmp_path):
    byte_bpe.save(str(tmp_path / "tokenizer.json"))
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    put(tmp_path, "tokenizer_config.json", {"chat_template": named})

    def found():
        return {k: v for k, v in tokenizer_metadata(tmp_path, 340).items() if "chat_template" in k}

    assert found() == {"tokenizer.chat_template": "D", "tokenizer.chat_template.tool_use": "T"}
    put(tmp_path, "chat_template.jinja", "F")
    (tmp_path / "additional_chat_templates").mkdir()
    put(tmp_path, "additional_chat_templates/rag.jinja", "R")
    assert found() == {"tokenizer.chat_template": "F", "tokenizer.chat_template.rag": "R"}


def test_an_override_of_pre(byte_bpe, tmp_path):
    byte_bpe.save(str(tmp_path / "tokenizer.json"))
    assert tokenizer_metadata(tmp_path, 340, pre="qwen2")["tokenizer.ggml.pre"] == "qwen2"


@pytest.mark.parametrize(
    "name, content, error, message",
    [
        ("other.json", {}, ModelNotFoundError, "no tokenizer.json and no tokenizer.model"),
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1\n", ModelNotFoundError, 'git lfs pull --include="tokenizer.json"'),
        ("tokenizer.json", [1], LoadError, "expected a JSON object"),
        ("tokenizer.json", {"model": {"type": "WordLevel", "vocab": {}}}, UnsupportedError, "'WordLevel'; convert knows BPE"),
        ("tokenizer.model", "not a model", TokenizerError, "not a SentencePiece model"),
    ],
)  # fmt: skip
def test_what_cannot_be_read(name, content, error, message, tmp_path):
    put(tmp_path, name, content)
    with pytest.raises(error, match=message):
        tokenizer_metadata(tmp_path, 100)


def test_unigram_is_refused(train_sentencepiece, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece(model_type="unigram"))
    with pytest.raises(UnsupportedError, match="a Unigram vocabulary"):
        tokenizer_metadata(tmp_path, 400)


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"model": {"type": "BPE", "vocab": [], "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": "x"}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "a"]]}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "byte_fallback": True}, "normalizer": [1]},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": [{}]},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": 3},
        {"model": []},
        {"model": "BPE"},
    ],
)
def test_a_garbled_tokenizer_is_an_error_of_ours(tokenizer, tmp_path):
    put(tmp_path, "tokenizer.json", tokenizer)
    with pytest.raises((TokenizerError, UnsupportedError, ModelNotFoundError), match=re.escape(str(tmp_path))):
        tokenizer_metadata(tmp_path, 100)


def test_a_fourth_end_of_an_answer_is_told(byte_bpe, tmp_path):
    byte_bpe.save(str(tmp_path / "tokenizer.json"))
    put(tmp_path, "generation_config.json", {"eos_token_id": [0, 1, 2, 3]})
    with pytest.warns(UserWarning, match=r"token 3 \('<\|eot_id\|>'\) ends an answer too"):
        tokenizer_metadata(tmp_path, 340)
