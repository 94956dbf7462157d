"""Whether the vocabulary of `model_path`, that of the GGUF file and its embedding belong together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from qtransformers.archs.spec import Problem
from qtransformers.gguf import GGUFFile

TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
UNUSED = 5  # token type of padding
SAMPLES = 2048  # ordinary tokens compared; the special ones are compared all
_BLANK = "\u2581"  # how SentencePiece spells a blank


class Vocabulary(Protocol):
    """What is compared of a tokenizer."""

    n_tokens: int

    def token_text(self, i: int) -> str:
        """The token as the vocabulary spells it."""


def too_many_tokens(n_tokens: int, rows: int, vocabulary_file: str, gguf_file: str) -> Iterator[Problem]:
    """More tokens than rows of the embedding: the last ones would have none."""
    if n_tokens > rows:
        yield Problem(
            f"{vocabulary_file} has {n_tokens} tokens; {gguf_file}: token_embd.weight has {rows} rows. "
            "Pass the tokenizer this model was trained with."
        )


def vocabulary_differences(theirs: Vocabulary, directory: str, gguf: GGUFFile) -> Iterator[Problem]:
    """Where the tokens of model_path are not those of the GGUF file, padding aside."""
    if TOKENS not in gguf.metadata:
        return
    ours: Sequence[str] = gguf.metadata[TOKENS]
    types = np.asarray(gguf.metadata.get(TYPES, np.ones(len(ours), np.int32)))
    if len(types) != len(ours):
        types = np.ones(len(ours), np.int32)  # the file's own tokenizer reports that
    real = np.flatnonzero(types != UNUSED)
    beyond = [int(i) for i in real[real >= theirs.n_tokens] if not _is_padding(ours[i])]
    if beyond:
        yield Problem(
            f"{directory} has {theirs.n_tokens} tokens; {gguf.path} has {beyond[-1] + 1}, such as {_quoted(ours, beyond[:3])}. "
            "They belong to different models: pass the tokenizer of this one."
        )
    common = real[real < theirs.n_tokens]
    plain = common[types[common] == 1]
    chosen = np.union1d(common[types[common] != 1], plain[:: max(1, len(plain) // SAMPLES)])
    differing = [
        i for i in chosen.tolist() if not same_token(theirs.token_text(i), ours[i]) and not _is_padding(ours[i])
    ]
    if differing:
        examples = "; ".join(f"{i}: {theirs.token_text(i)!r} and {ours[i]!r}" for i in differing[:3])
        yield Problem(
            f"{directory} and {gguf.path} disagree on {len(differing)} of {len(chosen)} tokens compared ({examples}). "
            "They belong to different models: pass the tokenizer of this one."
        )


def same_token(theirs: str, ours: str) -> bool:
    """Whether two spellings mean one token: converters turn WordPiece's `##ing` into `ing`, a first `the` into `▁the`."""
    if theirs == ours:
        return True
    a, b = theirs.replace(_BLANK, " "), ours.replace(_BLANK, " ")
    return b in (a, f" {a}", a.removeprefix("##"))


def _is_padding(text: str) -> bool:
    return text.upper().startswith(("[PAD", "<PAD", "[UNUSED", "<UNUSED"))


def _quoted(tokens: Sequence[str], ids: list[int]) -> str:
    return ", ".join(f"{i}: {tokens[i]!r}" for i in ids)
