"""Settings of a diffusion transformer that a caller gives: as they are, in a file, a folder, or on the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtransformers.checks import shown
from qtransformers.errors import ConfigError, ModelNotFoundError
from qtransformers.load.config import read_json
from qtransformers.load.hub import Hub, fetch_files
from qtransformers.load.references import parse_reference

CONFIGS = ("transformer/config.json", "unet/config.json", "config.json")  # of a pipeline, or of the transformer itself


def read_config(
    config: Mapping[str, Any] | str | Path | None, hub: Hub, asked: str = "config="
) -> tuple[Mapping[str, Any] | None, str]:
    """The settings that a caller gives as `asked`, and what to call them in messages; ModelNotFoundError where a path or Hub id has none."""
    if config is None or isinstance(config, Mapping):
        return config, asked
    if not isinstance(config, (str, Path)):
        raise ConfigError(f"{asked}{shown(config)}; expected settings, a config.json, a folder with one, or a Hub id.")
    path = Path(config)
    for file in (path, *(path / name for name in CONFIGS)):
        if file.is_file():
            return read_json(file), str(file)
    ref = None if path.exists() else parse_reference(str(config))
    if ref is None or ref.quant:
        raise ModelNotFoundError(f"{asked}{str(config)!r}: no config.json there. Pass the folder or Hub id of the model's transformer, or its settings.")  # fmt: skip
    found = fetch_files(ref, CONFIGS, hub)
    if not found:
        raise ModelNotFoundError(f"{asked}{str(config)!r}: {ref} on the Hub has none of {', '.join(CONFIGS)}.")
    file = next(found[name] for name in CONFIGS if name in found)
    return read_json(file), str(file)
