"""Byte-pair encoding ("gpt2" and its kin): words cut by the `tokenizers` library, merged by csrc/bpe.cpp."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from qtransformers.errors import TokenizerError
from qtransformers.load.tokenizer.pretokenizers import PreTokenizer
from qtransformers.load.tokenizer.vocab import CONTROL, PREFIX, UNKNOWN, Vocab, is_text
from qtransformers.load.tokenizer.wpm import simple_lower

SPACE = "\u2581"
_LONG_RUN = 600  # digits; a multiple of three


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte value."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    out = {b: chr(b) for b in printable}
    rest = [b for b in range(256) if b not in out]
    return out | {b: chr(256 + k) for k, b in enumerate(rest)}


def bpe_encoder(
    vocab: Vocab, merges: Any, pre: PreTokenizer, *, drop_blanks: bool = False, lowercase: bool = False
) -> Callable[[str], list[int]]:
    """A function from text to ids; TokenizerError where the merges do not fit the tokens.

    merges: an array of strings, or a function that gives one, which is then not kept while the rest is built.
    drop_blanks: blanks only separate words and get no tokens.
    """
    from tokenizers import Regex, pre_tokenizers

    from qtransformers.native import lib

    rules = _checked_merges(vocab, merges() if callable(merges) else merges)
    ids = dict(vocab.index)
    for i in ((vocab.types == CONTROL) | (vocab.types == UNKNOWN)).nonzero()[0].tolist():
        del ids[vocab.tokens[i]]
    if not is_text("".join(ids)):
        ids = {text: i for text, i in ids.items() if is_text(text)}  # broken UTF-8 occurs in no text
    merger = lib.Bpe(ids, rules, byte_texts(pre), pre.byte_level, pre.ignore_merges)
    _judge_refused(vocab, rules, merger.refused)
    del rules, ids  # hundreds of thousands of texts, which nobody reads again
    steps: list[Any] = [pre_tokenizers.Split(Regex(r"\s+"), "removed")] if drop_blanks else []
    steps += [pre_tokenizers.Split(Regex(s), "isolated") for s in pre.splits]
    splitter = pre_tokenizers.Sequence(steps)

    def split_and_merge(text: str) -> list[int]:
        found: list[int] = merger.encode(splitter.pre_tokenize_str(text))
        return found

    encode: Callable[[str], list[int]] = split_and_merge
    if pre.digit_groups:
        encode = _digits_cut(encode, pre.digit_groups)
    if pre.whole_newlines:
        encode = _newlines_whole(encode, vocab)
    if pre.escape_spaces:
        encode = _rewritten(encode, lambda text: text.replace(" ", SPACE))
    if lowercase:
        encode = _rewritten(encode, lambda text: "".join(map(simple_lower, text)))
    return encode


def byte_texts(pre: PreTokenizer) -> list[str]:
    """How the vocabulary spells each of the 256 bytes."""
    alphabet = byte_alphabet()
    return [alphabet[b] if pre.byte_level else f"<0x{b:02X}>" for b in range(256)]


def lost_bytes(vocab: Vocab, pre: PreTokenizer) -> list[int]:
    """The bytes for which there is no token: text with them is not encoded in full. Control and unassigned characters do not count."""
    never = {0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)} | set(range(0x20)) - set(b"\t\n\r") | {0x7F}
    return [b for b, name in enumerate(byte_texts(pre)) if b not in never and name not in vocab.index]


def _checked_merges(vocab: Vocab, merges: Any) -> Sequence[str]:
    """The merge list; TokenizerError where it is none."""
    key = f"{vocab.file}: {PREFIX}merges"
    if merges is None:
        raise TokenizerError(
            f"{key} is missing; expected an array of strings. Convert the file again, or give a directory with tokenizer.json as model_path."
        )
    if not isinstance(merges, Sequence) or isinstance(merges, str) or (len(merges) and not isinstance(merges[0], str)):
        raise TokenizerError(f"{key} is {type(merges).__name__}; expected an array of strings. Convert the file again.")
    return merges


def _judge_refused(vocab: Vocab, merges: Sequence[str], refused: Sequence[int]) -> None:
    """Merges that make control tokens of text are left out; TokenizerError for one that is none, or of tokens that do not exist."""
    for n in refused:
        what = f"{vocab.file}: {PREFIX}merges[{n}] is {merges[n]!r}"
        at = merges[n].find(" ", 1)
        if at < 0 or at == len(merges[n]) - 1:
            raise TokenizerError(f"{what}; expected two tokens with a blank between them. Convert the file again.")
        left, right = merges[n][:at], merges[n][at + 1 :]
        unknown = next((text for text in (left, right, left + right) if text not in vocab.index), None)
        if unknown is not None:
            raise TokenizerError(
                f"{what}, but {unknown!r} is not in {PREFIX}tokens. "
                "Vocabulary and merges belong to different models: convert the file again."
            )


def _rewritten(encode: Callable[[str], list[int]], rewrite: Callable[[str], str]) -> Callable[[str], list[int]]:
    return lambda text: encode(rewrite(text))


def _digits_cut(encode: Callable[[str], list[int]], digits: str) -> Callable[[str], list[int]]:
    """Long runs of digits are cut where the threes from the right are cut anyway: looking for those takes quadratic time."""
    from tokenizers import Regex, pre_tokenizers

    others = pre_tokenizers.Split(Regex(f"(?<!{digits}){digits}{{{_LONG_RUN},}}"), "removed")

    def with_cuts(text: str) -> list[int]:
        if len(text) <= _LONG_RUN:
            return encode(text)
        cuts, run = [0], 0
        for start, stop in (*(span for _, span in others.pre_tokenize_str(text)), (len(text), len(text))):
            cuts += range(run + (start - run - 1) % _LONG_RUN + 1, start, _LONG_RUN)
            run = stop
        cuts.append(len(text))
        return [i for a, b in pairwise(cuts) if a < b for i in encode(text[a:b])]

    return with_cuts


def _newlines_whole(encode: Callable[[str], list[int]], vocab: Vocab) -> Callable[[str], list[int]]:
    runs = re.compile("\n+|[^\n]+")
    hidden = vocab.control_ids
    ids = {text: i for text, i in vocab.index.items() if text.strip("\n") == "" and i not in hidden}

    def with_newlines(text: str) -> list[int]:
        out: list[int] = []
        for piece in runs.findall(text):
            whole = ids.get(piece) if piece[0] == "\n" else None
            out += encode(piece) if whole is None else [whole]
        return out

    return with_newlines
