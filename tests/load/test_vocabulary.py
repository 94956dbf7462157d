"""The vocabularies of both paths, compared."""

from types import SimpleNamespace

import numpy as np
import pytest

from qtransformers.load.vocabulary import SAMPLES, same_token, too_many_tokens, vocabulary_differences


def gguf(tokens, types=None):
    metadata = {"tokenizer.ggml.tokens": tokens}
    if types is not None:
        metadata["tokenizer.ggml.token_type"] = np.asarray(types, np.int32)
    return SimpleNamespace(metadata=metadata, path="m.gguf")


def tokenizer(tokens):
    return SimpleNamespace(n_tokens=len(tokens), token_text=tokens.__getitem__)


WORDS = [f"w{i}" for i in range(10_000)]


def differences(theirs, ours, types=None):
    return [p.text for p in vocabulary_differences(tokenizer(theirs), "dir", gguf(ours, types))]


def test_the_same():
    assert not differences(WORDS, WORDS)


def test_padding_of_the_file():
    assert not differences(WORDS[:9000], WORDS[:9000] + [f"[PAD{i}]" for i in range(1000)])
    assert not differences(WORDS[:9000], WORDS, [1] * 9000 + [5] * 1000)
    assert not differences(WORDS, [*WORDS[:9000], *(f"[UNUSED_{i}]" for i in range(1000))], [1] * 9000 + [5] * 1000)


def test_tokens_that_only_the_file_has():
    (text,) = differences(WORDS[:9000], WORDS)
    assert "dir has 9000 tokens; m.gguf has 10000, such as 9000: 'w9000'" in text


def test_other_tokens():
    (text,) = differences([w.upper() for w in WORDS], WORDS)
    assert "0: 'W0' and 'w0'" in text and "disagree on" in text and "different models" in text


def test_one_special_token_among_many():
    """Special tokens are compared all, wherever they are; ordinary ones are sampled."""
    types = np.ones(10_000)
    types[7777] = 3
    theirs = [*WORDS[:7777], "<|im_end|>", *WORDS[7778:]]
    (text,) = differences(theirs, WORDS, types)
    assert "disagree on 1 of" in text and "7777: '<|im_end|>' and 'w7777'" in text


def test_swapped_neighbours_are_noticed():
    theirs = list(WORDS)
    for i in range(0, len(theirs), 2):
        theirs[i], theirs[i + 1] = theirs[i + 1], theirs[i]
    assert len(WORDS) > SAMPLES and differences(theirs, WORDS)


@pytest.mark.parametrize("theirs, ours, same", [
    ("the", "the", True), ("the", "\u2581the", True), ("##ing", "ing", True), ("\u2581\u2581", "  ", True), ("<|a|>", "<|b|>", False), ("ing", "##ing", False), ("", "x", False),
])  # fmt: skip
def test_spellings(theirs, ours, same):
    assert same_token(theirs, ours) == same


def test_more_tokens_than_rows():
    assert not list(too_many_tokens(2048, 2048, "dir", "m.gguf"))
    (problem,) = too_many_tokens(2049, 2048, "dir", "m.gguf")
    assert "dir has 2049 tokens; m.gguf: token_embd.weight has 2048 rows" in problem.text


def test_a_file_without_a_vocabulary():
    assert not list(vocabulary_differences(tokenizer(WORDS), "dir", SimpleNamespace(metadata={}, path="m")))
