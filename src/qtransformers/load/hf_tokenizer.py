"""The tokenizer of a Hugging Face directory: tokenizer.json run by the `tokenizers` library, with tokenizer_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qtransformers.errors import ModelNotFoundError, TokenizerError
from qtransformers.load.decoding import piece_decoder
from qtransformers.load.parts import TokenizerParts
from qtransformers.load.vocab import BYTE, CONTROL, NORMAL, UNUSED, USER_DEFINED, Kind, Vocab, make_vocab

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
NAMED_TOKENS = {
    "bos": "bos_token",
    "eos": "eos_token",
    "unk": "unk_token",
    "pad": "pad_token",
    "sep": "sep_token",
    "mask": "mask_token",
}


def read_file(folder: Path, name: str) -> bytes | None:
    """The bytes of a file, or None; ModelNotFoundError where git-LFS left its pointer."""
    path = folder / name
    if not path.is_file():
        return None
    data = path.read_bytes()
    if data.startswith(LFS_POINTER):
        raise ModelNotFoundError(
            f"{path} is a git-LFS pointer, not the file itself. Fetch it: git -C {folder} lfs pull --include {name}"
        )
    return data


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object, {} where the file is not there; TokenizerError where it is no JSON object."""
    data = read_file(folder, name)
    if data is None:
        return {}
    try:
        value = json.loads(data)
    except ValueError as error:
        raise TokenizerError(f"{folder / name}: no JSON: {error}. Download it again.") from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{folder / name}: a JSON {type(value).__name__}; expected an object. Download it again.")
    return value


def hub_tokenizer(folder: Path) -> TokenizerParts:
    """The tokenizer of a directory; ModelNotFoundError where there is none, TokenizerError where it cannot be built."""
    if not folder.is_dir():
        raise ModelNotFoundError(f"{folder} is no directory; expected one with tokenizer.json.")
    config = read_json(folder, "tokenizer_config.json")
    data = read_file(folder, "tokenizer.json")
    if data is None:
        raise ModelNotFoundError(f"{folder}: no tokenizer.json. Copy it there from the model's repository.")
    return _from_json(data, config, str(folder / "tokenizer.json"))


def _from_json(data: bytes, config: Mapping[str, Any], file: str) -> TokenizerParts:
    plain = _load(data, config, file)
    plain.encode_special_tokens = True  # the library's name for: leave special tokens in a text unrecognised
    described = json.loads(data)
    vocab = _vocab(plain, described, config, file)
    lazily: list[Any] = []

    def encode(text: str, encode_special: bool) -> list[int]:
        if not encode_special:
            return plain.encode(text, add_special_tokens=False).ids
        if not lazily:
            lazily.append(_load(data, config, file))
        return lazily[0].encode(text, add_special_tokens=False).ids

    before, after = _around(plain, config, vocab)
    steps = _decoder_steps(described.get("decoder"))
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
    return TokenizerParts(vocab, encode, piece, before, after, strip_space=_strips(steps))


def _load(data: bytes, config: Mapping[str, Any], file: str) -> Any:
    from tokenizers import AddedToken, Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(data)
    except Exception as error:
        raise TokenizerError(
            f"{file}: the tokenizers library cannot read it: {error}. Download it again, or upgrade tokenizers."
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    known = {t.content for t in tokenizer.get_added_tokens_decoder().values()}
    extra = [t for _, t in sorted(_added_in_config(config).items()) if t["content"] not in known]
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    tokenizer.add_tokens([AddedToken(t["content"], **{f: t[f] for f in flags if f in t}) for t in extra])
    named = [text for key in NAMED_TOKENS.values() if (text := token_text(config.get(key)))]
    tokenizer.add_special_tokens([t for t in named if tokenizer.token_to_id(t) is not None])
    return tokenizer


def _added_in_config(config: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    added = config.get("added_tokens_decoder")
    if not isinstance(added, dict):
        return {}
    return {
        int(i): t
        for i, t in added.items()
        if i.isdecimal() and isinstance(t, dict) and isinstance(t.get("content"), str)
    }


def token_text(value: Any) -> str | None:
    """The text of a token in tokenizer_config.json, where it is a string or an object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _vocab(tokenizer: Any, described: Mapping[str, Any], config: Mapping[str, Any], file: str) -> Vocab:
    texts = tokenizer.get_vocab(with_added_tokens=True)
    n = max(texts.values(), default=-1) + 1
    tokens: list[str | None] = [None] * n
    for text, i in texts.items():
        tokens[i] = text
    types = np.full(n, NORMAL, np.uint8)
    if described.get("model", {}).get("byte_fallback"):
        types[[i for b in range(256) if (i := texts.get(f"<0x{b:02X}>")) is not None]] = BYTE
    for i, added in tokenizer.get_added_tokens_decoder().items():
        types[i] = CONTROL if added.special else USER_DEFINED
    types[[i for i, t in enumerate(tokens) if t is None]] = UNUSED
    ids = {
        name: texts[text]
        for name, key in NAMED_TOKENS.items()
        if (text := token_text(config.get(key))) is not None and text in texts
    }
    return make_vocab(
        file,
        Kind("hub"),
        "tokenizer.json",
        [t if t is not None else f"[EMPTY_{i}]" for i, t in enumerate(tokens)],
        types,
        np.zeros(n, np.float32),
        ids,
        add_bos=None,
        add_eos=False,
        add_space_prefix=False,
    )


def _around(tokenizer: Any, config: Mapping[str, Any], vocab: Vocab) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids put before and behind a text: tokenizer_config.json's add_bos_token and add_eos_token, or the post-processor."""
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
        f"{vocab.file}: its post_processor rearranges the tokens of a text; only tokens around it are supported."
    )


def _decoder_steps(decoder: Any) -> list[dict[str, Any]]:
    if not isinstance(decoder, dict):
        return []
    if decoder.get("type") == "Sequence":
        return [step for inner in decoder.get("decoders", []) for step in _decoder_steps(inner)]
    return [decoder]


def _strips(steps: list[dict[str, Any]]) -> bool:
    """Whether a text's first blank is the tokenizer's own and goes away in decoding."""
    for step in steps:
        if step["type"] == "Strip" and step.get("start", 0) > 0:
            return True
        if (
            step["type"] == "Metaspace"
            and step.get("prepend_scheme", "always") != "never"
            and step.get("add_prefix_space", True)
        ):
            return True
        if step["type"] == "WordPiece":
            return True
    return False
