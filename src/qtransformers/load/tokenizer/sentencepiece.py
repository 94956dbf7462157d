"""Reading `tokenizer.model`, a SentencePiece model, without its library.

Source: sentencepiece_model.proto. Of ModelProto only `pieces` (1), and of `trainer_spec` (2) and `normalizer_spec` (3)
the fields below matter here; all else is skipped by wire type.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qtransformers.errors import TokenizerError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(
    1, 7
)  # SentencePiece.Type; GGUF's token types are the same
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType


@dataclass(frozen=True)
class SentencePiece:
    """A vocabulary: text, score and type of every piece, in order of id."""

    model_type: int
    texts: list[str]
    scores: list[float]
    types: list[int]
    add_dummy_prefix: bool = True
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    byte_fallback: bool = False
    charsmap: bytes = b""  # the normalisation, as GGUF's tokenizer.ggml.precompiled_charsmap
    remove_extra_whitespaces: bool = True


def read_sentencepiece(path: Path) -> SentencePiece:
    """The pieces of a `tokenizer.model`; TokenizerError when it is not one."""
    return parse_sentencepiece(path.read_bytes(), str(path))


def parse_sentencepiece(data: bytes, file: str) -> SentencePiece:
    """The pieces of a SentencePiece model; TokenizerError naming `file` when `data` is none."""
    try:
        return _parse(data)
    except (IndexError, struct.error, UnicodeDecodeError, ValueError) as e:
        raise TokenizerError(f"{file}: not a SentencePiece model ({e}). Download it again.") from e


def _parse(data: bytes) -> SentencePiece:
    texts: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    numbers: dict[str, int] = {}
    charsmap = b""
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            piece = dict(_fields(value))
            texts.append(_bytes(piece.get(1, b"")).decode())
            scores.append(struct.unpack("<f", _bytes(piece.get(2, b"\0\0\0\0")))[0])
            types.append(_int(piece.get(3, NORMAL)))
        elif number == 2 and isinstance(value, bytes):
            spec = dict(_fields(value))
            names = {3: "model_type", 35: "byte_fallback", 40: "unk_id", 41: "bos_id", 42: "eos_id", 43: "pad_id"}
            numbers |= {names[n]: _int(v) for n, v in spec.items() if n in names}
        elif number == 3 and isinstance(value, bytes):
            spec = dict(_fields(value))
            charsmap = _bytes(spec.get(2, b""))
            names = {3: "add_dummy_prefix", 4: "remove_extra_whitespaces"}
            numbers |= {names[n]: _int(v) for n, v in spec.items() if n in names}
    if not texts:
        raise ValueError("it has no pieces")
    return SentencePiece(
        numbers.get("model_type", UNIGRAM),
        texts,
        scores,
        types,
        add_dummy_prefix=bool(numbers.get("add_dummy_prefix", 1)),
        byte_fallback=bool(numbers.get("byte_fallback", 0)),
        charsmap=charsmap,
        remove_extra_whitespaces=bool(numbers.get("remove_extra_whitespaces", 1)),
        **{name: numbers[name] for name in ("unk_id", "bos_id", "eos_id", "pad_id") if name in numbers},
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field number and value of a protocol-buffer message: varints as numbers, everything else as bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"a field of {size} bytes at byte {at} of {len(data)}")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return (value - (1 << 64) if value >> 63 else value), at  # int32 fields are sign-extended to 64 bits
        if shift > 63:
            raise ValueError(f"a number of more than 64 bits at byte {at}")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where bytes belong")
    return value


def _int(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("bytes where a number belongs")
    return value
