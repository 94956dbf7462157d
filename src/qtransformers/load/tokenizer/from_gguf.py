"""The tokenizer inside a GGUF file: one builder for each algorithm of `tokenizer.ggml.model`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from qtransformers.errors import TokenizerError
from qtransformers.gguf.reader import Metadata as FileMetadata
from qtransformers.load.tokenizer.bpe import bpe_encoder, lost_bytes
from qtransformers.load.tokenizer.decoding import piece_decoder
from qtransformers.load.tokenizer.parts import TokenizerParts, around_specials
from qtransformers.load.tokenizer.plamo import plamo_encoder
from qtransformers.load.tokenizer.pretokenizers import PreTokenizer, pre_tokenizer
from qtransformers.load.tokenizer.rwkv import rwkv_encoder, unescape
from qtransformers.load.tokenizer.specials import Strip
from qtransformers.load.tokenizer.spm import SPACE, spm_encoder
from qtransformers.load.tokenizer.ugm import ugm_encoder
from qtransformers.load.tokenizer.vocab import PREFIX, Vocab, flag, vocab_from_metadata
from qtransformers.load.tokenizer.wpm import wpm_encoder

Metadata = Mapping[str, Any]


def gguf_tokenizer(metadata: Metadata, file: str, pre: str | None = None) -> TokenizerParts:
    """The tokenizer that GGUF metadata describe; `pre` overrides `tokenizer.ggml.pre`. TokenizerError where there is none."""
    vocab = vocab_from_metadata(metadata, file)
    if vocab.kind.algorithm == "bpe":
        return _bpe(vocab, metadata, pre)
    if pre is not None:
        raise TokenizerError(
            f"{file}: pre={pre!r} was given, but its vocabulary is {vocab.model!r}, which has no pre-tokenizer. Leave it out."
        )
    return _BUILDERS[vocab.kind.algorithm](vocab, metadata)


def _bpe(vocab: Vocab, metadata: Metadata, pre: str | None) -> TokenizerParts:
    notes: list[str] = []
    name = pre or ("gemma4" if vocab.model == "gemma4" else metadata.get(PREFIX + "pre"))
    if name is not None and not isinstance(name, str):
        raise TokenizerError(f"{vocab.file}: tokenizer.ggml.pre is {name!r:.60}; expected a name. Override it: pre=...")
    if not name:
        name = "default"
        notes.append(
            f"{vocab.file}: tokenizer.ggml.pre is missing; 'default' is used, which few models were trained with. "
            "Name the right one: pre=..."
        )
    row = pre_tokenizer(name, vocab.file)
    if lost := lost_bytes(vocab, row):
        notes.append(
            f"{vocab.file}: {len(lost)} of the 256 bytes have no token ({', '.join(f'0x{b:02x}' for b in lost[:4])}, ...); "
            "characters that need them are left out of a text."
        )
    words = vocab.model == "whitespace"
    lowercase = words and bool(flag(metadata, vocab.file, "normalizer.lowercase", False))
    encode = bpe_encoder(vocab, partial(_taken, metadata), row, drop_blanks=words, lowercase=lowercase)
    return TokenizerParts(
        vocab,
        around_specials(vocab, encode, _strips(vocab, metadata)),
        piece_decoder(vocab, byte_level=row.byte_level, escaped=row.escape_spaces),
        before=_ids(vocab, "bos" if _bpe_adds_bos(vocab, row, notes) else None),
        after=_ids(vocab, "eos" if vocab.add_eos else None),
        warnings=notes,
    )


def _taken(metadata: Metadata) -> Any:
    """The merges, of which the metadata keep no copy: hundreds of thousands of texts that nobody reads again."""
    merges = metadata.get(PREFIX + "merges")
    if isinstance(metadata, FileMetadata):
        metadata.forget(PREFIX + "merges")
    return merges


def _spm(vocab: Vocab, metadata: Metadata) -> TokenizerParts:
    merge = spm_encoder(vocab)

    def encode(text: str) -> list[int]:
        return merge(text.replace(" ", SPACE))

    def first(text: str) -> list[int]:
        return encode(" " + text if vocab.add_space_prefix else text)

    return TokenizerParts(
        vocab,
        around_specials(vocab, encode, _strips(vocab, metadata), first=first),
        piece_decoder(vocab, byte_level=False, escaped=True),
        before=_ids(vocab, "bos" if vocab.add_bos else None),
        after=_ids(vocab, "eos" if vocab.add_eos else None),
        strip_space=vocab.add_space_prefix,
    )


def _wpm(vocab: Vocab, metadata: Metadata) -> TokenizerParts:
    lowercase = bool(flag(metadata, vocab.file, "normalizer.lowercase", True))
    strip_accents = bool(flag(metadata, vocab.file, "normalizer.strip_accents", lowercase))
    encode = wpm_encoder(vocab, lowercase=lowercase, strip_accents=strip_accents)
    return TokenizerParts(
        vocab,
        around_specials(vocab, encode, _strips(vocab, metadata)),
        piece_decoder(vocab, byte_level=False, escaped=True),
        before=_ids(vocab, "bos"),  # [CLS] and [SEP], whatever add_bos_token says, as in llama.cpp
        after=_ids(vocab, "sep"),
        strip_space=True,
    )


def _ugm(vocab: Vocab, metadata: Metadata) -> TokenizerParts:
    merge_spaces = bool(flag(metadata, vocab.file, "remove_extra_whitespaces", False))
    encode = ugm_encoder(vocab, metadata.get(PREFIX + "precompiled_charsmap"), merge_spaces=merge_spaces)
    return TokenizerParts(
        vocab,
        around_specials(vocab, encode, _strips(vocab, metadata)),
        piece_decoder(vocab, byte_level=False, escaped=True),
        before=_ids(vocab, "bos" if vocab.add_bos else None),
        after=_ids(vocab, "eos" if vocab.add_eos else None),
        strip_space=vocab.add_space_prefix or merge_spaces,
    )


def _rwkv(vocab: Vocab, metadata: Metadata) -> TokenizerParts:
    return TokenizerParts(
        vocab,
        around_specials(vocab, rwkv_encoder(vocab), _strips(vocab, metadata)),
        lambda i: unescape(vocab.tokens[i]),
        before=_ids(vocab, "bos" if vocab.add_bos else None),
        after=_ids(vocab, "eos" if vocab.add_eos else None),
    )


def _plamo2(vocab: Vocab, metadata: Metadata) -> TokenizerParts:
    return TokenizerParts(
        vocab,
        around_specials(vocab, plamo_encoder(vocab), _strips(vocab, metadata)),
        piece_decoder(vocab, byte_level=False, escaped=False),
        before=_ids(vocab, "bos" if vocab.add_bos else None),
        after=_ids(vocab, "eos" if vocab.add_eos else None),
    )


_BUILDERS: Mapping[str, Callable[[Vocab, Metadata], TokenizerParts]] = {
    "spm": _spm,
    "wpm": _wpm,
    "ugm": _ugm,
    "rwkv": _rwkv,
    "plamo2": _plamo2,
}


def _ids(vocab: Vocab, name: str | None) -> list[int]:
    """The id of that name as a list, [] for None; TokenizerError where the file asks for a token it does not name."""
    if name is None:
        return []
    if name not in vocab.ids:
        raise TokenizerError(
            f"{vocab.file}: its tokenizer puts {name.upper()} around a text, but tokenizer.ggml.{name}_token_id is missing. "
            f"Add the id, or set tokenizer.ggml.add_{name}_token to false."
        )
    return [vocab.ids[name]]


def _bpe_adds_bos(vocab: Vocab, row: PreTokenizer, notes: list[str]) -> bool:
    adds = row.add_bos if vocab.add_bos is None or row.whole_newlines else vocab.add_bos
    if adds and "bos" not in vocab.ids and not vocab.add_bos:
        notes.append(
            f"{vocab.file}: its pre-tokenizer asks for BOS, but tokenizer.ggml.bos_token_id is missing; none is added."
        )
        return False
    return adds


def _strips(vocab: Vocab, metadata: Metadata) -> Strip:
    """Tokens that swallow blanks, which GGUF cannot say: llama.cpp goes by the names of models, and so do we."""
    name = str(metadata.get("general.name", "")).lower()
    pre, architecture = str(metadata.get(PREFIX + "pre", "")), str(metadata.get("general.architecture", ""))

    def mask(text: str) -> Strip:
        return Strip(left=frozenset({vocab.index[text]} if text in vocab.index else ()))

    if any(n in pre for n in ("jina-v2-de", "jina-v2-es", "jina-v2-code")):
        return mask("<mask>")
    if any(n in architecture for n in ("nomic-bert-moe", "jina-bert-v3")):
        return mask("<mask>")
    if "phi-3" in name or "phi3" in name:
        keep = {vocab.index.get(t) for t in ("<unk>", "<s>", "<|endoftext|>")}
        return Strip(right=(vocab.control_ids | vocab.user_ids) - keep)
    if "modern-bert" in name:
        return mask("[MASK]")
    return Strip()
