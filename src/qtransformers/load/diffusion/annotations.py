"""What GGUF files of diffusion transformers that we wrote say of themselves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from qtransformers.archs.diffusion import DiffusionSpec
from qtransformers.archs.spec import Problem
from qtransformers.checks import shown
from qtransformers.errors import LoadError, UnsupportedError
from qtransformers.load.diffusion.detection import Detected
from qtransformers.load.diffusion.matching import Part

SCHEMA = 1  # of the annotations we write
SCHEMA_KEY, CONFIG_KEY, LAYOUT_KEY = "qtransformers.schema", "qtransformers.config", "qtransformers.layout"
BIASES_KEY = "qtransformers.biases"  # layers that have one, by their names in the class; `{i}`: all of that kind


def annotated(metadata: Mapping[str, Any], file: str) -> dict[str, Any] | None:
    """The config in a file that we wrote; LoadError where it is garbled, None where there is none."""
    text, schema = metadata.get(CONFIG_KEY), metadata.get(SCHEMA_KEY)
    if text is None and schema is None:
        return None
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise UnsupportedError(f"{file}: {SCHEMA_KEY} is {shown(schema)}; this version reads up to {SCHEMA}. Use a newer version of qtransformers.")  # fmt: skip
    if text is None:
        return None
    try:
        config = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise LoadError(f"{file}: {CONFIG_KEY} is {shown(text)}; expected a JSON object. Convert the model again.")
    return config


def of_keys(spec: DiffusionSpec, metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """Settings in the metadata that other tools write for an architecture, None where it has no such keys."""
    found = {name: metadata.get(f"{spec.id}.{key}") for name, key in spec.keys.items()}
    return {name: _shortest(value) for name, value in found.items() if value is not None} or None


def _shortest(value: Any) -> Any:
    """A float of 32 bits as it was written: 1e-06, and not 9.99999997e-07."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def other_layout(said: Any, found: Detected, file: str) -> list[Problem]:
    """What the file says of its layout that is not so."""
    if said is None or said == found.layout:
        return []
    return [Problem(f"{file}: {LAYOUT_KEY} is {shown(said)}, but its tensors have the names of the {found.layout} layout of {found.spec.title}. The file is damaged: convert the model again.")]  # fmt: skip


def biases(parts: Iterable[Part]) -> list[str]:
    """The layers that have a bias, by their names in the class: with `{i}` where all of the kind do, else one by one."""
    rows: dict[str, tuple[list[str], list[str]]] = {}
    for part in parts:
        weights, found = rows.setdefault(part.declared.row.name, ([], []))
        (found if part.declared.part == "bias" else weights).append(part.name.rpartition(".")[0])
    return [name for row, (weights, found) in rows.items() for name in ((row,) if found and len(found) == len(weights) else found)]  # fmt: skip


def other_biases(said: Any, parts: Iterable[Part], file: str) -> Iterable[Problem]:
    """What the file says of its biases that is not so."""
    if said is None:
        return
    found, listed = set(biases(parts)), set(map(str, said)) if isinstance(said, (list, tuple)) else set()
    for name in sorted(listed ^ found):
        what = "is said to have a bias, which is not there" if name in listed else "has a bias that the file does not list"  # fmt: skip
        yield Problem(f"{file}: {name} {what} ({BIASES_KEY}). The file is damaged: convert the model again.")
