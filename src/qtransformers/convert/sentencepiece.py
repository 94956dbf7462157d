"""Reading `tokenizer.model` for conversion."""

from qtransformers.load.sentencepiece import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    SentencePiece,
    read_sentencepiece,
)

__all__ = [
    "BPE",
    "BYTE",
    "CONTROL",
    "NORMAL",
    "UNIGRAM",
    "UNKNOWN",
    "UNUSED",
    "USER_DEFINED",
    "SentencePiece",
    "read_sentencepiece",
]
