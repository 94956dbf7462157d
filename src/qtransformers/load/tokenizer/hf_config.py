"""The files of a Hugging Face directory that say how to tokenize: reading them, and the tokens that they name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtransformers.errors import ModelNotFoundError, TokenizerError
from qtransformers.load.files import POINTER_START, lfs_remedy

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
    if data.startswith(POINTER_START):
        raise ModelNotFoundError(
            f"{path} is a git-LFS pointer; the tokenizer needs the file itself. {lfs_remedy([name], folder)}"
        )
    return data


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object, {} where the file is not there; TokenizerError where it is no JSON object."""
    data = read_file(folder, name)
    return {} if data is None else parse_json(data, str(folder / name))


def parse_json(data: bytes, file: str) -> dict[str, Any]:
    """The JSON object in `data`; TokenizerError naming `file` where it is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TokenizerError(
            f"{file} is no valid JSON ({error}). Fetch it again from the model's repository."
        ) from None
    if not isinstance(value, dict):
        raise TokenizerError(f"{file} holds a {type(value).__name__}; expected a JSON object. Fetch it again.")
    return value


def token_text(value: Any) -> str | None:
    """The text of a token in tokenizer_config.json, where it is a string or an object."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def named_ids(config: Mapping[str, Any], index: Mapping[str, int]) -> dict[str, int]:
    """The ids of the tokens that tokenizer_config.json names: "bos", "eos", ..."""
    texts = {name: token_text(config.get(key)) for name, key in NAMED_TOKENS.items()}
    return {name: index[text] for name, text in texts.items() if text is not None and text in index}


def added_tokens(config: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """`added_tokens_decoder` of tokenizer_config.json: id -> content and flags."""
    added = config.get("added_tokens_decoder")
    if not isinstance(added, dict):
        return {}
    return {
        int(i): t
        for i, t in added.items()
        if i.isdecimal() and isinstance(t, dict) and isinstance(t.get("content"), str)
    }
