"""Checkpoints of real sizes that take no room: safetensors whose data is a hole."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qtransformers.archs.diffusion import SPECS, Layout
from qtransformers.load.diffusion import source_name, whole_shape


def shapes_of(id: str, config: Mapping[str, Any], layout: Layout) -> dict[str, tuple[int, ...]]:
    """The tensors of a model in a layout, those that are optional left out."""
    sharers: dict[str, list[Any]] = {}
    for d in SPECS[id].declared(config):
        if d.presence == "required" and (name := source_name(d, layout)):
            sharers.setdefault(name, []).append(d)
    return {name: whole_shape(these, layout) for name, these in sharers.items()}


def write_sparse(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Path:
    """A safetensors file of BF16 zeros, of which only the header is on disk."""
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return path
