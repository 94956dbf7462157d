"""Changing a file's metadata: in its header where that fits, else by writing the file anew."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtransformers.errors import ConfigError
from qtransformers.gguf.backup import restore_header, write_over
from qtransformers.gguf.encode import checked, encode_fields, encode_header
from qtransformers.gguf.header import Header, align_up, parse_header
from qtransformers.gguf.mapping import map_file
from qtransformers.gguf.reader import PADDING_KEY
from qtransformers.gguf.shards import SPLIT_KEYS
from qtransformers.gguf.values import Encoded
from qtransformers.gguf.writer import CHUNK, AtomicFile, check_room

_LAYOUT_KEYS = SPLIT_KEYS | {"general.alignment", PADDING_KEY}  # they say how the file lies, not what it holds


@dataclass(frozen=True)
class MetadataEdit:
    """What an edit did: `in_place` is False where the header outgrew its room and the file was written anew."""

    path: Path
    in_place: bool
    bytes_written: int


def edit_metadata(path: str | Path, set: Mapping[str, Any] | None = None, remove: Iterable[str] = ()) -> MetadataEdit:
    """Set and remove keys of a GGUF file (of a model in shards: of the first), values as `GGUFWriter` takes them.

    Where the new header fits into the old one and its padding, only the header is written: tensor data is not touched,
    what room is left stays as the key `gguf.padding`, and both headers lie beside the file (`<name>.header-backup`) until
    the new one is on disk; an edit that was interrupted is undone by the next. Otherwise
    the whole file is written under a temporary name, which then takes its place. ConfigError for keys or values that
    cannot be; GGUFError for what a reader would refuse.
    """
    path = Path(os.path.realpath(path))
    if path.is_file() and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        raise ConfigError(f"{path} may not be written to. Change its permissions and its folder's, or edit a copy.")
    restore_header(path)
    mapped, data = map_file(path)
    header = parse_header(data, path.name)
    kept = _changed(header, data, dict(set or {}), frozenset([remove] if isinstance(remove, str) else remove))
    infos, old = data[header.infos : header.end].tobytes(), data[: header.data_offset].tobytes()
    size = len(data)
    del data
    mapped.close()

    new = _fit(kept, infos, header)
    if new is not None:
        checked(new, path.name, size)
        write_over(path, old, new)
        return MetadataEdit(path, True, len(new))
    new = _encode(kept, infos, header)
    new = new.ljust(align_up(len(new), header.alignment), b"\0") if header.tensors else new
    total = len(new) + size - header.data_offset
    checked(new, path.name, total)
    _write_anew(path, new, header.data_offset, total)
    return MetadataEdit(path, False, total)


def _changed(header: Header, data: Any, set: dict[str, Any], remove: frozenset[str]) -> dict[str, Any]:
    """The new metadata in file order, new keys last; untouched values as they lie in the file."""
    for key in sorted(_LAYOUT_KEYS & (set.keys() | remove)):
        raise ConfigError(
            f"{header.file}: {key} says how the file is laid out. Write the file anew (split, merge, convert) to change it."
        )
    if both := sorted(set.keys() & remove):
        raise ConfigError(f"{header.file}: {', '.join(both)} would be both set and removed. Ask for one.")
    if absent := sorted(remove - header.fields.keys()):
        raise ConfigError(
            f"{header.file} has no {', '.join(absent)} to remove. See its keys: qtransformers show {header.file}."
        )
    kept: dict[str, Any] = {}
    for key, field in header.fields.items():
        if key not in remove and key != PADDING_KEY:
            kept[key] = (
                set.pop(key) if key in set else Encoded(data[field.typed : field.stop].tobytes(), header.big_endian)
            )
    return kept | set


def _encode(metadata: Mapping[str, Any], infos: bytes, header: Header) -> bytes:
    fields = encode_fields(metadata, header.big_endian)
    return encode_header(fields, len(metadata), infos, len(header.tensors), header.big_endian)


def _fit(metadata: Mapping[str, Any], infos: bytes, header: Header) -> bytes | None:
    """The new header at exactly the length of the old one and its padding; None where that cannot be."""
    room = header.data_offset
    new = _encode(metadata, infos, header)
    if not header.tensors:
        return new if len(new) == room else None  # nothing follows that would have to stay in its place
    if align_up(len(new), header.alignment) < room:  # data begins at the next aligned byte, so the gap must be filled
        gap = room - len(_encode({**metadata, PADDING_KEY: ""}, infos, header))
        if gap < 0:
            return None
        new = _encode({**metadata, PADDING_KEY: " " * gap}, infos, header)
    return new.ljust(room, b"\0") if align_up(len(new), header.alignment) == room else None


def _write_anew(path: Path, header: bytes, data_offset: int, total: int) -> None:
    """The file with another header, through a temporary one of the same permissions."""
    check_room(path.parent, total)
    out = AtomicFile(path)
    try:
        with open(path, "rb") as source:
            out.file.write(header)
            source.seek(data_offset)
            while chunk := source.read(CHUNK):
                out.file.write(chunk)
            out.flush()
            out.temporary.chmod(os.fstat(source.fileno()).st_mode & 0o7777)
        out.commit()
    except BaseException:
        out.discard()
        raise
