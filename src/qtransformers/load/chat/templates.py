"""Where a model's chat templates are kept; what they mean is `chat`'s business."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qtransformers.errors import LoadError
from qtransformers.load.config import read_json

_GGUF_KEY = "tokenizer.chat_template"
_FOLDERS = ("chat_templates/", "additional_chat_templates/")


@dataclass(frozen=True)
class ChatTemplates:
    """Jinja sources by name; the usual one is `default`."""

    by_name: Mapping[str, str] = field(default_factory=dict)
    origin: str = ""  # the file they were read from

    @property
    def default(self) -> str | None:
        """The template for a plain chat; the only one there is, when none is called default."""
        if "default" in self.by_name or len(self.by_name) != 1:
            return self.by_name.get("default")
        return next(iter(self.by_name.values()))


def templates_from_gguf(metadata: Mapping[str, Any], file: str) -> ChatTemplates:
    """The templates a GGUF file carries, named ones included."""
    found = {}
    for key in metadata:
        if key == _GGUF_KEY or key.startswith(_GGUF_KEY + "."):
            value = metadata[key]
            if not isinstance(value, str):
                raise LoadError(f"{file}: {key} is {type(value).__name__}; expected text. Remove or correct the key.")
            found[key[len(_GGUF_KEY) + 1 :] or "default"] = value
    return ChatTemplates(found, file)


def templates_from_files(files: Mapping[str, Path]) -> ChatTemplates:
    """The templates of a model directory: files of their own, else what tokenizer_config.json or chat_template.json hold."""
    found = {}
    for name, path in files.items():
        if name == "chat_template.jinja":
            found["default"] = _text(path)
        elif name.startswith(_FOLDERS):
            found[path.stem] = _text(path)
    if found:
        return ChatTemplates(found, str(files.get("chat_template.jinja", next(iter(files.values())).parent)))
    for name in ("tokenizer_config.json", "chat_template.json"):
        if name in files:
            found = _embedded(read_json(files[name]).get("chat_template"), files[name])
            if found:
                return ChatTemplates(found, str(files[name]))
    return ChatTemplates()


def _embedded(value: Any, path: Path) -> dict[str, str]:
    if value is None:
        return {}
    named = [{"name": "default", "template": value}] if isinstance(value, str) else value
    try:
        found = {entry["name"]: entry["template"] for entry in named}
        if all(isinstance(text, str) for pair in found.items() for text in pair):
            return found
    except (TypeError, KeyError):
        pass
    raise LoadError(f"{path}: chat_template is neither text nor a list of names and templates. Correct or remove it.")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise LoadError(f"{path} is no UTF-8 text ({e.reason} at byte {e.start}). Save it as UTF-8.") from e
