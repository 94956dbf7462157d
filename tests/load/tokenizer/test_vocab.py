import numpy as np
import pytest

from qtransformers.errors import TokenizerError
from qtransformers.load.tokenizer import Tokenizer
from qtransformers.load.tokenizer.from_gguf import gguf_tokenizer
from qtransformers.load.tokenizer.vocab import KINDS, make_vocab, vocab_from_metadata

PREFIX = "tokenizer.ggml."


def described(**changes):
    """A sound vocabulary of five tokens with changes; None removes a key."""
    whole = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": ["a", "b", "ab", "<|end|>", "abab"],
        "token_type": np.array([1, 1, 1, 3, 1], np.int32),
        "merges": ["a b", "ab ab"],
        "eos_token_id": 3,
    } | changes
    return {PREFIX + key: value for key, value in whole.items() if value is not None}


def test_a_sound_one_works():
    with pytest.warns(UserWarning, match="bytes have no token"):
        tokenizer = Tokenizer(gguf_tokenizer(described(), "f.gguf"))
    assert tokenizer.encode("ababab") == [4, 2]


BROKEN = {
    "no model": ({"model": None}, r"f\.gguf: tokenizer\.ggml\.model is missing.*model_path"),
    "none": ({"model": "none"}, r"f\.gguf: tokenizer\.ggml\.model is 'none'.*model_path"),
    "no vocabulary": ({"model": "no_vocab"}, r"made without a vocabulary"),
    "an unknown model": ({"model": "hybriddna"}, r"tokenizer\.ggml\.model is 'hybriddna'; known are bert.*Tokenizer\.from_pretrained"),
    "a model that is no name": ({"model": 7}, r"tokenizer\.ggml\.model is 7; known are"),
    "no tokens": ({"tokens": None}, r"tokenizer\.ggml\.tokens is missing; expected an array of strings"),
    "tokens that are numbers": ({"tokens": np.arange(5)}, r"tokenizer\.ggml\.tokens is an array of 5 int64; expected an array of strings"),
    "tokens that are one string": ({"tokens": "abc"}, r"tokenizer\.ggml\.tokens is str 'abc'; expected an array"),
    "no token at all": ({"tokens": []}, r"tokenizer\.ggml\.tokens is an empty array"),
    "a token twice": ({"tokens": ["a", "b", "ab", "<|end|>", "a"]}, r"tokens 0 and 4 are both 'a'; expected different texts"),
    "types of the wrong kind": ({"token_type": np.ones(5, np.float32)}, r"token_type is an array of 5 float32; expected an array of integers"),
    "types that are text": ({"token_type": ["1"] * 5}, r"token_type is an array of 5 str; expected an array of integers"),
    "too few types": ({"token_type": np.ones(4, np.int32)}, r"token_type has 4 entries, tokenizer\.ggml\.tokens has 5"),
    "too few scores": ({"scores": np.ones(3, np.float32)}, r"scores has 3 entries, tokenizer\.ggml\.tokens has 5"),
    "scores that are text": ({"scores": ["0"] * 5}, r"scores is an array of 5 str; expected an array of numbers"),
    "scores that are one number": ({"scores": 1.0}, r"scores is float 1\.0; expected an array of numbers"),
    "no merges": ({"merges": None}, r"tokenizer\.ggml\.merges is missing; expected an array of strings"),
    "merges that are numbers": ({"merges": np.arange(5)}, r"tokenizer\.ggml\.merges is ndarray; expected an array of strings"),
    "a merge of one": ({"merges": ["a b", "abab"]}, r"tokenizer\.ggml\.merges\[1\] is 'abab'; expected two tokens with a blank"),
    "a merge of nothing": ({"merges": ["a "]}, r"merges\[0\] is 'a '; expected two tokens"),
    "a merge of an unknown token": ({"merges": ["a b", "a x"]}, r"merges\[1\] is 'a x', but 'x' is not in tokenizer"),
    "a merge into an unknown token": ({"merges": ["b a"]}, r"merges\[0\] is 'b a', but 'ba' is not in .*different models"),
    "an unknown pre": ({"pre": "qwen3"}, r"tokenizer\.ggml\.pre is 'qwen3'.*Nearest known: qwen.*override it: pre="),
    "a pre like no other": ({"pre": "0123456789"}, r"tokenizer\.ggml\.pre is '0123456789'.*override"),
    "a pre that is no name": ({"pre": 3}, r"tokenizer\.ggml\.pre is 3; expected a name"),
    "EOS out of range": ({"eos_token_id": 5}, r"eos_token_id is 5; the vocabulary has 5 tokens, so expected 0 to 4"),
    "BOS out of range": ({"bos_token_id": -2}, r"bos_token_id is -2; the vocabulary has 5 tokens"),
    "BOS that is no number": ({"bos_token_id": "1"}, r"bos_token_id is str '1'; expected a token id"),
    "BOS that is a flag": ({"bos_token_id": True}, r"bos_token_id is bool True; expected a token id"),
    "add_bos that is no flag": ({"add_bos_token": 1}, r"add_bos_token is int 1; expected true or false"),
    "BOS wanted and missing": ({"add_bos_token": True}, r"tokenizer\.ggml\.bos_token_id is missing"),
    "EOS wanted and missing": ({"add_eos_token": True, "eos_token_id": None, "tokens": ["a", "b", "ab", "x", "abab"]}, r"eos_token_id is missing"),
    "no unknown token": ({"model": "bert", "unknown_token_id": -1}, r"WordPiece vocabulary without unknown_token_id"),
    "no unknown token for Unigram": ({"model": "t5", "unknown_token_id": -1}, r"Unigram vocabulary without unknown_token_id"),
    "no byte tokens": ({"model": "plamo2"}, r"token <0x00> is missing"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_one_is_refused_by_file_key_and_remedy(what):
    changes, message = BROKEN[what]
    with pytest.raises(TokenizerError, match=message) as caught:
        gguf_tokenizer(described(**changes), "f.gguf")
    assert str(caught.value).startswith("f.gguf: ")


JUNK = (
    None,
    -1,
    0,
    1 << 63,
    1.5,
    float("nan"),
    True,
    "",
    "\udcff",
    "\0",
    b"",
    [],
    ["a"],
    ["a", "a"],
    [1],
    np.zeros(5),
    np.zeros((5, 2)),
    {},
)


@pytest.mark.parametrize("model", sorted(KINDS))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_junk_under_any_key_gives_a_tokenizer_or_our_error(model):
    keys = ("tokens", "token_type", "scores", "merges", "pre", "eos_token_id", "add_bos_token", "precompiled_charsmap", "normalizer.lowercase")  # fmt: skip
    sound = described(model=model, unknown_token_id=0, bos_token_id=1, seperator_token_id=3)
    worked = refused = 0
    for key in keys:
        for junk in JUNK:
            try:
                made = Tokenizer(gguf_tokenizer({**sound, PREFIX + key: junk}, "f.gguf"))
                assert isinstance(made.decode(made.encode("ab")), str)
                worked += 1
            except TokenizerError as error:
                assert "f.gguf" in str(error)
                refused += 1
    assert refused > 20
    assert worked > 20 or model == "plamo2"  # which has no byte tokens here


def test_an_override_for_a_vocabulary_without_pre_tokenizers():
    with pytest.raises(TokenizerError, match=r"f\.gguf: pre='qwen2' was given, but its vocabulary is 'llama'"):
        gguf_tokenizer(described(model="llama"), "f.gguf", pre="qwen2")


def test_no_token_is_written_as_all_ones():
    vocab = vocab_from_metadata(described(model="llama", padding_token_id=0xFFFFFFFF, bos_token_id=-1), "f")
    assert "pad" not in vocab.ids
    assert "bos" not in vocab.ids  # not the kind's default either


def test_defaults_beyond_the_vocabulary_do_not_count():
    assert vocab_from_metadata(described(model="bert", eos_token_id=None), "f").ids == {"pad": 0, "eot": 3}


def test_empty_tokens_get_a_name():
    vocab = vocab_from_metadata(described(tokens=["a", "", "ab", "<|end|>", "b"]), "f")
    assert vocab.tokens[1] == "[EMPTY_1]"


def ends(*tokens, **ids):
    vocab = make_vocab(
        "f", KINDS["gpt2"], "gpt2", list(tokens), np.ones(len(tokens), np.uint8), np.zeros(len(tokens), np.float32), ids,
        add_bos=None, add_eos=False, add_space_prefix=False,
    )  # fmt: skip
    return sorted(vocab.eos_ids), sorted(vocab.control_ids), sorted(vocab.user_ids)


@pytest.mark.parametrize(
    "text",
    [
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>", "</s>",
        "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>",
        "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>",
    ],
)  # fmt: skip
def test_what_ends_a_generation_by_its_text(text):
    assert ends("a", "b", text, eos=1)[0] == [1, 2]
    assert 2 in ends("a", "b", text)[1]  # and is a control token, whatever its type says


def test_what_ends_a_generation_by_its_key():
    assert ends("a", "b", "c", "d", eos=0, eot=1, eom=3)[0] == [0, 1, 3]


def test_gpt_oss_messages_end_before_the_answer_does():
    found, control, user = ends("<|return|>", "<|call|>", "<|end|>", "<|channel|>", "<|message|>", eos=0)
    assert (found, control, user) == ([0, 1], [0, 1], [2, 3, 4])


def test_gemma_4_has_an_ordinary_end_of_sentence():
    assert ends("</s>", "<|tool_response>", "<turn|>")[0] == [1, 2]
