"""A GGUF file as targets for another: the same metadata and tensors in other types."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from qtransformers.convert.plan import QUANTIZATION_VERSION, Asked, ConversionPlan, Target, file_type_of, typed
from qtransformers.convert.recipes import recipe_of
from qtransformers.convert.sources import Lying
from qtransformers.errors import ConfigError
from qtransformers.gguf import GGUFFile
from qtransformers.gguf.shards import SPLIT_KEYS
from qtransformers.load.source import open_model


def plan_requantization(path: Path, asked: Asked) -> ConversionPlan:
    """What writing the model in the GGUF file (or first shard, or folder) `path` in other types will write.

    Tensors that have their type already are copied. Errors as for `plan_conversion`.
    """
    if asked.pre is not None:
        raise ConfigError(f"{path} is a GGUF file, whose tokenizer stays as it is; leave out pre.")
    file_type, _ = recipe_of(asked.type)
    gguf = open_model(path)
    targets = typed(
        [Target(t.name, t.type, t.shape, (Lying(t),)) for t in gguf.tensors.values()], gguf.metadata, asked, kept=None
    )
    warn_of_requantizing(str(gguf.path), targets)
    metadata = {
        **kept_metadata(gguf),
        **({"general.name": asked.name} if asked.name else {}),
        "general.file_type": np.uint32(file_type_of(targets, file_type)),
        "general.quantization_version": np.uint32(QUANTIZATION_VERSION),
    }
    return ConversionPlan(Path(gguf.path), metadata, targets, file_type, gguf.paths, asked.force)


def warn_of_requantizing(file: str, targets: Iterable[Target]) -> None:
    """A warning where what is quantised is quantised again."""
    again = [t for t in targets if t.stored and t.stored.is_quantized and t.stored is not t.type]
    if again:
        warnings.warn(
            f"{file}: {len(again)} tensors are quantised already ({again[0].name} is {again[0].stored}); quantising them again "
            "adds to their error. Convert the original model where you have it.",
            stacklevel=3,
        )


def kept_metadata(gguf: GGUFFile) -> dict[str, Any]:
    """All keys of a file with their types, but those of shards."""
    said = gguf.metadata
    return {key: said.typed(key) if gguf.big_endian else said.encoded(key) for key in said if key not in SPLIT_KEYS}
