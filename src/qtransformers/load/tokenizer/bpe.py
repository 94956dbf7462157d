"""Byte-pair encoding ("gpt2" and its kin) run by the `tokenizers` library, built from a merge list."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise, repeat
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
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    pairs = merge_pairs(vocab, merges() if callable(merges) else merges)
    ids = dict(vocab.index)
    for i in ((vocab.types == CONTROL) | (vocab.types == UNKNOWN)).nonzero()[0].tolist():
        del ids[vocab.tokens[i]]
    if not is_text("".join(ids)):
        ids = {text: i for text, i in ids.items() if is_text(text)}  # broken UTF-8 occurs in no text
    nothing = len(vocab.tokens)  # an id for characters that no token has: they part their neighbours, then go
    ids["\0nothing\0"] = nothing

    def model(pairs: list[tuple[str, str]]) -> Any:
        bytewise = not pre.byte_level
        return models.BPE(ids, pairs, ignore_merges=pre.ignore_merges, byte_fallback=bytewise, unk_token="\0nothing\0")

    try:
        tokenizer = Tokenizer(model(pairs))
    except Exception:
        pairs = _text_merges(vocab, pairs, ids)
        tokenizer = Tokenizer(model(pairs))
    steps: list[Any] = [pre_tokenizers.Split(Regex(r"\s+"), "removed")] if drop_blanks else []
    steps += [pre_tokenizers.Split(Regex(s), "isolated") for s in pre.splits]
    if pre.byte_level:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)

    def split_and_merge(text: str) -> list[int]:
        found = tokenizer.encode(text, add_special_tokens=False).ids
        return found if nothing not in found else [i for i in found if i != nothing]

    encode: Callable[[str], list[int]] = split_and_merge
    if pre.digit_groups:
        encode = _digits_cut(encode, pre.digit_groups)
    if pre.whole_newlines:
        encode = _newlines_whole(encode, ids)
    if pre.escape_spaces:
        encode = _rewritten(encode, lambda text: text.replace(" ", SPACE))
    if lowercase:
        encode = _rewritten(encode, lambda text: "".join(map(simple_lower, text)))
    return encode


def lost_bytes(vocab: Vocab, pre: PreTokenizer) -> list[int]:
    """The bytes for which there is no token: text with them is not encoded in full. Control and unassigned characters do not count."""
    never = {0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 0x100)} | set(range(0x20)) - set(b"\t\n\r") | {0x7F}
    names = byte_alphabet() if pre.byte_level else {b: f"<0x{b:02X}>" for b in range(256)}
    return [b for b, name in sorted(names.items()) if b not in never and name not in vocab.index]


def merge_pairs(vocab: Vocab, merges: Any) -> list[tuple[str, str]]:
    """The merge list as pairs; of repeated ones the first counts."""
    key = f"{vocab.file}: {PREFIX}merges"
    if merges is None:
        raise TokenizerError(
            f"{key} is missing; expected an array of strings. Convert the file again, or give a directory with tokenizer.json as model_path."
        )
    if not isinstance(merges, Sequence) or isinstance(merges, str) or (len(merges) and not isinstance(merges[0], str)):
        raise TokenizerError(f"{key} is {type(merges).__name__}; expected an array of strings. Convert the file again.")
    with _uncollected():
        flat = "\0".join(merges).replace("\0", " ").split(" ")  # all at once: a list for each costs ten times as much
        if "" not in flat and len(flat) == 2 * len(merges) and set(map(str.count, merges, repeat(" "))) == {1}:
            pairs = list(zip(flat[::2], flat[1::2], strict=True))
        else:
            pairs = [_merge_pair(m, f"{key}[{n}]") for n, m in enumerate(merges)]
        return list(dict.fromkeys(pairs)) if len(set(merges)) != len(merges) else pairs


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without looks for garbage, which hundreds of thousands of new tuples would start again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _merge_pair(merge: str, what: str) -> tuple[str, str]:
    """The two sides of the first blank that is not in first place."""
    at = merge.find(" ", 1)
    if at < 0 or at == len(merge) - 1:
        raise TokenizerError(
            f"{what} is {merge!r}; expected two tokens with a blank between them. Convert the file again."
        )
    return merge[:at], merge[at + 1 :]


def _text_merges(vocab: Vocab, pairs: list[tuple[str, str]], ids: dict[str, int]) -> list[tuple[str, str]]:
    """The merges that make no control tokens of text; TokenizerError for one of tokens that do not exist."""
    kept = []
    for n, (left, right) in enumerate(pairs):
        parts = (left, right, left + right)
        unknown = next((text for text in parts if text not in vocab.index), None)
        if unknown is not None:
            raise TokenizerError(
                f"{vocab.file}: {PREFIX}merges[{n}] is {left + ' ' + right!r}, but {unknown!r} is not in {PREFIX}tokens. "
                "Vocabulary and merges belong to different models: convert the file again."
            )
        if all(text in ids for text in parts):
            kept.append((left, right))
    return kept


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


def _newlines_whole(encode: Callable[[str], list[int]], ids: dict[str, int]) -> Callable[[str], list[int]]:
    runs = re.compile("\n+|[^\n]+")

    def with_newlines(text: str) -> list[int]:
        out: list[int] = []
        for piece in runs.findall(text):
            whole = ids.get(piece) if piece[0] == "\n" else None
            out += encode(piece) if whole is None else [whole]
        return out

    return with_newlines
