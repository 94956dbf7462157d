"""The files of a model that lies in several: names, and the checks that they belong together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import GGUFError, ShardError
from qtransformers.gguf.header import Header

_NAME = re.compile(r"(?P<prefix>.*)-(?P<no>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)
MAX_SHARDS = 99_999  # five digits of the name
SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
SPLIT_KEYS = frozenset({SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS})


def shard_name(prefix: str, no: int, count: int) -> str:
    """llama.cpp's name of shard `no`, counted from 0."""
    return f"{prefix}-{no + 1:05d}-of-{count:05d}.gguf"


def number(header: Header, data: NDArray[np.uint8], key: str) -> int | None:
    """An integer of the header, or None where it is absent."""
    field = header.fields.get(key)
    if field is None:
        return None
    return int(np.frombuffer(data, np.dtype(header.order + field.kind.code), 1, field.start)[0])


def shard_paths(first: Path, header: Header, data: NDArray[np.uint8]) -> list[Path]:
    """The paths of all shards, `first` included; ShardError names a wrong start or missing files."""
    count = number(header, data, SPLIT_COUNT) or 0
    no = number(header, data, SPLIT_NO) or 0
    if count < 0 or count > MAX_SHARDS or (count and not 0 <= no < count):
        raise GGUFError(
            f"{first.name}: {SPLIT_NO} is {no} and {SPLIT_COUNT} {count}; expected a shard of at most {MAX_SHARDS}. Split it again."
        )
    if count <= 1:
        return [first]
    match = _NAME.fullmatch(first.name)
    if match is None or int(match["count"]) != count or int(match["no"]) != no + 1:
        raise ShardError(
            f"{first.name} is shard {no + 1} of {count} but not named so; expected {shard_name('<name>', no, count)}. "
            "Rename the shards as they were."
        )
    paths = [first.with_name(shard_name(match["prefix"], i, count)) for i in range(count)]
    if no:
        raise ShardError(f"{first.name} is shard {no + 1} of {count}. Open the first: {paths[0].name}.")
    missing = [p.name for p in paths if not p.exists()]
    if missing:
        named = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
        raise ShardError(
            f"{first}: {len(missing)} of {count} shards are missing: {named}. Download them into the same folder."
        )
    return paths


def check_shards(paths: Sequence[Path], headers: Sequence[Header], datas: Sequence[NDArray[np.uint8]]) -> None:
    """That shards are of one model and complete; ShardError names both files and both values."""
    first = headers[0]
    seen: dict[str, str] = {}
    for i, (path, header, data) in enumerate(zip(paths, headers, datas, strict=True)):
        if header.big_endian != first.big_endian:
            raise ShardError(f"{path.name} and {paths[0].name} differ in byte order; they belong to different models.")
        for key, expected in ((SPLIT_NO, i), (SPLIT_COUNT, len(paths))):
            if (found := number(header, data, key)) != expected:
                raise ShardError(
                    f"{path.name}: {key} is {found}; expected {expected} after {paths[0].name}. It is of another model or another split."
                )
        for key in (SPLIT_TENSORS, "general.architecture", "general.name", "general.uuid"):
            a, b = _raw(first, datas[0], key), _raw(header, data, key)
            if a is not None and b is not None and a != b:
                raise ShardError(
                    f"{path.name} and {paths[0].name} differ in {key}: {_show(b)} and {_show(a)}. They belong to different models."
                )
        for name in header.tensors:
            if name in seen:
                raise ShardError(
                    f"{name} is in both {seen[name]} and {path.name}; they belong to different models or splits."
                )
            seen[name] = path.name
    total = number(first, datas[0], SPLIT_TENSORS)
    if total is not None and total != len(seen):
        raise ShardError(
            f"{paths[0].name}: {SPLIT_TENSORS} is {total}, but its {len(paths)} shards hold {len(seen)} tensors. They belong to different models: download them again."
        )


def _raw(header: Header, data: NDArray[np.uint8], key: str) -> bytes | None:
    field = header.fields.get(key)
    return None if field is None else data[field.start : field.stop].tobytes()


def _show(raw: bytes) -> str:
    return repr(raw[8:].decode("utf-8", "replace")) if len(raw) > 8 else str(int.from_bytes(raw, "little"))
