"""The tokenizer of a Hugging Face directory: tokenizer.json run by the `tokenizers` library, with tokenizer_config.json."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qtransformers.errors import ModelNotFoundError, TokenizerError
from qtransformers.load.files import BYTE_LEVEL, SENTENCEPIECE, TOKENIZER_JSON
from qtransformers.load.tokenizer.decoding import piece_decoder
from qtransformers.load.tokenizer.hf_config import (
    NAMED_TOKENS,
    added_tokens,
    named_ids,
    read_file,
    read_json,
    token_text,
)
from qtransformers.load.tokenizer.hf_legacy import byte_level_files, sentencepiece_file
from qtransformers.load.tokenizer.parts import TokenizerParts
from qtransformers.load.tokenizer.vocab import BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED, Kind, Vocab, make_vocab


def hub_tokenizer(folder: Path) -> TokenizerParts:
    """The tokenizer of a directory; ModelNotFoundError where there is none, TokenizerError where it cannot be built."""
    if not folder.is_dir():
        raise ModelNotFoundError(f"{folder} is no directory; expected one with {TOKENIZER_JSON}.")
    config = read_json(folder, "tokenizer_config.json")
    data = read_file(folder, TOKENIZER_JSON)
    if data is not None:
        return _from_json(data, config, str(folder / TOKENIZER_JSON))
    for name in SENTENCEPIECE:
        data = read_file(folder, name)
        if data is not None:
            return sentencepiece_file(data, config, str(folder / name))
    vocab, merges = (read_file(folder, name) for name in BYTE_LEVEL)
    if vocab is not None and merges is not None:
        return byte_level_files(vocab, merges, config, str(folder))
    raise ModelNotFoundError(
        f"{folder}: no {TOKENIZER_JSON}, nor {', '.join(SENTENCEPIECE)}, nor {' with '.join(BYTE_LEVEL)}. "
        "Copy the tokenizer there from the model's repository, or leave out model_path to use the GGUF's own."
    )


def _from_json(data: bytes, config: Mapping[str, Any], file: str) -> TokenizerParts:
    tokenizer = _load(data, config, file)
    vocab = _vocab(tokenizer, config, file)
    added = tokenizer.get_added_tokens_decoder()
    tokenizer.add_special_tokens(
        [added[i].content for i in vocab.control_ids if i in added]
    )  # also those known by text
    turn = threading.Lock()  # the library keeps the choice below in the tokenizer

    def encode(text: str, encode_special: bool) -> list[int]:
        with turn:
            tokenizer.encode_special_tokens = not encode_special  # its name for: leave them in a text unrecognised
            return tokenizer.encode(text, add_special_tokens=False).ids

    before, after = _around(tokenizer, config, vocab)
    steps = _decoder_steps(json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else None)
    names = {s["type"] for s in steps}
    word_piece = next((s for s in steps if s["type"] == "WordPiece"), None)
    bpe_words = next((s for s in steps if s["type"] == "BPEDecoder"), None)
    piece = piece_decoder(
        vocab,
        byte_level="ByteLevel" in names,
        escaped="Metaspace" in names or any(s["type"] == "Replace" and s.get("content") == " " for s in steps),
        word_prefix=word_piece.get("prefix", "##") if word_piece else "",
        word_suffix=bpe_words.get("suffix", "</w>") if bpe_words else "",
    )
    return TokenizerParts(vocab, encode, piece, before, after, strip_space=any(map(_strips, steps)))


def parse_tokenizer(data: bytes, file: str) -> Any:
    """The `tokenizers.Tokenizer` in the bytes of a tokenizer.json; TokenizerError where the library refuses or panics."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_buffer(data)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        raise TokenizerError(
            f"{file}: the tokenizers library cannot read it ({error}). Fetch it again, or upgrade tokenizers."
        ) from None


def _load(data: bytes, config: Mapping[str, Any], file: str) -> Any:
    from tokenizers import AddedToken

    tokenizer = parse_tokenizer(data, file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    known = {t.content for t in tokenizer.get_added_tokens_decoder().values()}
    extra = [t for _, t in sorted(added_tokens(config).items()) if t["content"] not in known]
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    tokenizer.add_tokens([AddedToken(t["content"], **{f: bool(t[f]) for f in flags if f in t}) for t in extra])
    named = [text for key in NAMED_TOKENS.values() if (text := token_text(config.get(key)))]
    tokenizer.add_special_tokens([t for t in named if tokenizer.token_to_id(t) is not None])
    return tokenizer


def _vocab(tokenizer: Any, config: Mapping[str, Any], file: str) -> Vocab:
    index = tokenizer.get_vocab(with_added_tokens=True)
    n = max(index.values(), default=-1) + 1
    tokens: list[str | None] = [None] * n
    for text, i in index.items():
        tokens[i] = text
    types = np.full(n, NORMAL, np.uint8)
    if getattr(tokenizer.model, "byte_fallback", False):
        types[[i for b in range(256) if (i := index.get(f"<0x{b:02X}>")) is not None]] = BYTE
    for i, added in tokenizer.get_added_tokens_decoder().items():
        types[i] = CONTROL if added.special else USER_DEFINED
    types[[i for i, t in enumerate(tokens) if t is None]] = UNUSED
    return make_vocab(
        file,
        Kind("hub"),
        TOKENIZER_JSON,
        [t if t is not None else f"[EMPTY_{i}]" for i, t in enumerate(tokens)],
        types,
        np.zeros(n, np.float32),
        named_ids(config, index),
        add_bos=None,
        add_eos=False,
        add_space_prefix=False,
    )


def _around(tokenizer: Any, config: Mapping[str, Any], vocab: Vocab) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids put before and behind a text: what tokenizer_config.json says, else what the post-processor does."""
    if "add_bos_token" in config or "add_eos_token" in config:
        bos, eos = vocab.ids.get("bos"), vocab.ids.get("eos")
        return (
            (bos,) if config.get("add_bos_token") and bos is not None else (),
            (eos,) if config.get("add_eos_token") and eos is not None else (),
        )
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start]), tuple(full[start + len(bare) :])
    raise TokenizerError(
        f"{vocab.file}: its post_processor rearranges the tokens of a text; only tokens around it are supported. "
        "Use the GGUF's own tokenizer: leave out model_path."
    )


def _decoder_steps(decoder: Any) -> list[dict[str, Any]]:
    if not isinstance(decoder, dict):
        return []
    if decoder.get("type") == "Sequence":
        return [step for inner in decoder.get("decoders", []) for step in _decoder_steps(inner)]
    return [decoder]


def _strips(step: Mapping[str, Any]) -> bool:
    """Whether decoding takes away a text's first blank."""
    return (
        (step["type"] == "Strip" and step.get("content") == " " and step.get("start", 0) > 0)
        or (step["type"] == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        or step["type"] == "WordPiece"
    )
