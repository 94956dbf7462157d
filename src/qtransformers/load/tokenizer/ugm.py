"""Unigram ("t5"): the most probable segmentation, found by the `tokenizers` library, after SentencePiece's normalisation.

The normalisation is a table of replacements in the file, `precompiled_charsmap`: a double array over bytes (Kanda 2018,
"Space- and Time-Efficient String Dictionaries") followed by the replacements, each ended by a zero byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import TokenizerError
from qtransformers.load.tokenizer.vocab import NORMAL, PREFIX, UNUSED, USER_DEFINED, Vocab, is_text

SPACE = "\u2581"
UNKNOWN_PENALTY = 10.0


def ugm_encoder(vocab: Vocab, charsmap: Any, *, merge_spaces: bool) -> Callable[[str], list[int]]:
    """A function from text to ids; merge_spaces: runs of blanks count as one."""
    find = unigram(vocab)
    # as llama.cpp has it: what begins like a user-defined token is not normalised
    normalise = normaliser(vocab.file, charsmap, beginnings(vocab.tokens[i] for i in vocab.user_ids))

    def encode(text: str) -> list[int]:
        text = normalise(text)
        if merge_spaces:
            text = "".join([SPACE + word for word in text.split(" ") if word])
        else:
            start = len(text) - len(text.lstrip(" "))
            if vocab.add_space_prefix and start < len(text):
                text = text[:start] + " " + text[start:]
            text = text.replace(" ", SPACE)
        return find(text) if text else []

    return encode


def unigram(vocab: Vocab, byte_ids: Sequence[int] = ()) -> Callable[[str], list[int]]:
    """The most probable tokens of a normalised text; unknown characters in a row are one unknown token, or `byte_ids`."""
    from tokenizers import Tokenizer, models

    unknown = vocab.ids.get("unk")
    if unknown is None:
        raise TokenizerError(f"{vocab.file}: a Unigram vocabulary without unknown_token_id. Name the id of <unk>.")
    scores = np.where(vocab.types == USER_DEFINED, 0.0, vocab.scores.astype(np.float64))
    normal = vocab.types == NORMAL
    least = float(scores[normal].min()) if normal.any() else 0.0
    entries = [("\0unknown\0", least)]  # the library wants an unknown token among the others
    ids = [unknown]
    for i in np.flatnonzero(normal | (vocab.types == USER_DEFINED) | (vocab.types == UNUSED)).tolist():
        text = vocab.tokens[i]
        if not text.isprintable() and not is_text(text):
            continue  # broken UTF-8 occurs in no text
        if not normal[i] and scores[i] <= len(text) * (least - UNKNOWN_PENALTY):
            continue  # padding, never better than unknown characters; its score must not enter theirs
        entries.append((text, max(float(scores[i]), least)))
        ids.append(i)
    tokenizer = Tokenizer(models.Unigram(entries, unk_id=0, byte_fallback=False))

    def find(text: str) -> list[int]:
        return [ids[i] for i in tokenizer.encode(text, add_special_tokens=False).ids]

    def find_bytes(text: str) -> list[int]:
        found = tokenizer.encode(text, add_special_tokens=False)
        out: list[int] = []
        for i, (start, stop) in zip(found.ids, found.offsets, strict=True):
            out += [ids[i]] if i else [byte_ids[b] for b in text[start:stop].encode()]
        return out

    return find_bytes if byte_ids else find


def normaliser(file: str, charsmap: Any, kept: Set[bytes] = frozenset()) -> Callable[[str], str]:
    """The replacements of `precompiled_charsmap` (None: none); the longest that matches at a character counts.

    kept: the `beginnings` of texts that are left as they are.
    """
    if charsmap is None or np.shape(charsmap) == (0,):
        return lambda text: text
    array, replacements = charsmap_parts(file, charsmap)
    inert: set[bytes] = set()  # characters that begin no replacement

    def normalise(text: str) -> str:
        out: list[bytes] = []
        raw = text.encode()
        at = 0
        while at < len(raw):
            c = raw[at : at + _utf8_length(raw[at])]
            step = len(c)
            if c in inert:
                out.append(c)
            elif kept and (n := _longest_beginning(raw, at, kept)):
                step = n
                out.append(raw[at : at + n])
            else:
                length, value, dead = walk(array, raw, at, len(c))
                if length:
                    step = length
                    out.append(replacements[value : replacements.index(b"\0", value)])
                else:
                    out.append(c)
                    if dead and not kept:
                        inert.add(c)
            at += step
        return b"".join(out).decode("utf-8", "replace")

    return normalise


def charsmap_parts(file: str, charsmap: Any) -> tuple[list[int], bytes]:
    """The double array (32-bit units) and the replacements; TokenizerError where the table is damaged."""
    key = f"{file}: {PREFIX}precompiled_charsmap"
    data = np.asarray(charsmap)
    if data.ndim != 1 or data.dtype.itemsize != 1:
        raise TokenizerError(f"{key} is no array of bytes. Convert the file again.")
    raw = data.tobytes()
    size = int.from_bytes(raw[:4], "little")
    if len(raw) < 4 or size % 4 or 4 + size >= len(raw):
        raise TokenizerError(f"{key} has {len(raw)} bytes but announces {size} for its index. Convert the file again.")
    array: NDArray[np.uint32] = np.frombuffer(raw, "<u4", size // 4, 4)
    replacements = raw[4 + size :]
    values = array[array >> 31 == 1] & 0x7FFFFFFF
    if len(values) and (values.max() >= len(replacements) or replacements[-1:] != b"\0"):
        raise TokenizerError(
            f"{key} has {len(replacements)} bytes of replacements, but refers beyond. Convert the file again."
        )
    return array.tolist(), replacements


def walk(array: list[int], raw: bytes, start: int, first: int) -> tuple[int, int, bool]:
    """The longest key at raw[start:]: its length in bytes (0: none), its value, and whether no key begins with the
    `first` bytes there.
    """
    length = value = 0
    node = _base(array[0]) if array else 0
    for at in range(start, len(raw)):
        c = raw[at]
        node ^= c
        if c == 0 or node >= len(array) or array[node] & 0x800000FF != c:
            return length, value, at - start < first and not length
        unit = array[node]
        node ^= _base(unit)
        if unit >> 8 & 1 and node < len(array):
            length, value = at - start + 1, array[node] & 0x7FFFFFFF
    return length, value, False


def _base(unit: int) -> int:
    return (unit >> 10) << ((unit & 0x200) >> 6)


def _utf8_length(lead: int) -> int:
    return 1 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4


def beginnings(texts: Iterable[str]) -> frozenset[bytes]:
    """Every beginning of every text, in whole characters."""
    return frozenset(t[:n].encode("utf-8", "surrogateescape") for t in texts for n in range(1, len(t) + 1))


def _longest_beginning(raw: bytes, at: int, kept: Set[bytes]) -> int:
    """The length of the longest run of bytes there that begins a kept text."""
    end = at
    while end < len(raw):
        following = end + _utf8_length(raw[end])
        if raw[at:following] not in kept:
            break
        end = following
    return end - at
