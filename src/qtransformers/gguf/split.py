"""One file into shards, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtransformers.errors import ConfigError
from qtransformers.gguf.encode import TensorSpec
from qtransformers.gguf.reader import GGUFFile
from qtransformers.gguf.shards import SPLIT_KEYS
from qtransformers.gguf.writer import GGUFWriter


def split(
    path: str | Path,
    out_prefix: str | Path,
    *,
    max_bytes: int | None = None,
    max_tensors: int | None = None,
    overwrite: bool = False,
) -> tuple[Path, ...]:
    """Write a model as `<out_prefix>-0000i-of-0000n.gguf` of at most `max_bytes` or `max_tensors` each; the paths.

    ConfigError where a limit cannot be kept or a file exists (unless `overwrite`).
    """
    if max_bytes is None and max_tensors is None:
        raise ConfigError("split needs a limit: max_bytes or max_tensors.")
    with GGUFFile(path) as file:
        return _copy(file, Path(out_prefix), max_bytes=max_bytes, max_tensors=max_tensors, overwrite=overwrite)


def merge(first_shard: str | Path, out: str | Path, *, overwrite: bool = False) -> Path:
    """Write a model in shards as one file; ConfigError where `out` exists (unless `overwrite`)."""
    with GGUFFile(first_shard) as file:
        if Path(out).resolve() in [p.resolve() for p in file.paths]:
            raise ConfigError(f"{out} is one of the shards to merge. Choose another name.")
        return _copy(file, Path(out), overwrite=overwrite)[0]


def _copy(file: GGUFFile, out: Path, **options: Any) -> tuple[Path, ...]:
    """Write a file's metadata and tensors as they are."""
    metadata = {key: file.metadata.encoded(key) for key in file.metadata if key not in SPLIT_KEYS}
    specs = [TensorSpec(t.name, t.shape, t.type) for t in file.tensors.infos()]
    with GGUFWriter(out, metadata, specs, big_endian=file.big_endian, **options) as writer:
        for spec in specs:
            writer.write(spec.name, file.tensors[spec.name])
    return writer.paths
