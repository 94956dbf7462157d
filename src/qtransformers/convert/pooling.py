"""How sentence-transformers makes one vector of a text: its modules beside the model, as a key of config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtransformers.errors import UnsupportedError
from qtransformers.load.config import read_json, read_json_value

# What a pooling module may call its mode, in the order in which one is looked for, and GGUF's `pooling_type`
_MODES = {"mean": ("pooling_mode_mean_tokens", 1), "cls": ("pooling_mode_cls_token", 2), "lasttoken": ("pooling_mode_lasttoken", 3)}  # fmt: skip


def pooling(folder: Path) -> dict[str, Any]:
    """`pooling_type` of the model in `folder`, nothing where no module pools; UnsupportedError for a way GGUF has no word for."""
    if not (folder / "modules.json").is_file():
        return {}
    modules = read_json_value(folder / "modules.json", list)
    paths = [str(m.get("path")) for m in modules if isinstance(m, dict) and str(m.get("type")).endswith("Pooling")]
    if not paths:
        return {}
    file = folder / paths[0] / "config.json"
    said = read_json(file)
    on = [number for name, (key, number) in _MODES.items() if said.get(key) is True or said.get("pooling_mode") == name]
    others = [key for key, value in said.items() if key.startswith("pooling_mode_") and value is True]
    if len(on) != 1 or len(others) > 1:
        raise UnsupportedError(f"{file}: its pooling is none of {', '.join(_MODES)}. Another version may know it.")
    return {"pooling_type": on[0]}
