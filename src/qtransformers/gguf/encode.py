"""A header as bytes, and how tensors are spread over files: everything a writer knows before the first tensor byte."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qtransformers.errors import ConfigError
from qtransformers.gguf.header import MAGIC, MAX_PRODUCT, Header, align_up, parse_header
from qtransformers.gguf.shards import SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS
from qtransformers.gguf.values import Typed, encode, encode_string
from qtransformers.types import QuantType

VERSION = 3


@dataclass(frozen=True)
class TensorSpec:
    """A tensor before its data: `shape` is logical and row-major, (out, in), as in QTensor."""

    name: str
    shape: tuple[int, ...]
    type: QuantType

    @property
    def nbytes(self) -> int:
        """Bytes of data."""
        return self.type.row_bytes(math.prod(self.shape))

    @property
    def info_bytes(self) -> int:
        """Bytes of its entry in a header."""
        return 8 + len(self.name.encode()) + 4 + 8 * len(self.shape) + 12


def encode_fields(metadata: Mapping[str, Any], big_endian: bool = False) -> bytes:
    """Keys, types and values; ConfigError names the key that GGUF cannot hold."""
    order = ">" if big_endian else "<"
    return b"".join(
        encode_string(key, f"the key {key!r}", order) + encode(value, key, big_endian)
        for key, value in metadata.items()
    )


def encode_infos(specs: Sequence[TensorSpec], alignment: int, big_endian: bool = False) -> bytes:
    """Names, shapes, types and offsets of tensors laid one after the other."""
    order = ">" if big_endian else "<"
    parts, offset = [], 0
    for spec in specs:
        if math.prod(d for d in spec.shape if d) > MAX_PRODUCT or min(spec.shape, default=0) < 0:
            raise ConfigError(
                f"{spec.name} is {list(spec.shape)}; expected dimensions of 0 or more that can be counted."
            )
        n = len(spec.shape)
        parts.append(encode_string(spec.name, f"the name {spec.name!r}", order))
        parts.append(struct.pack(f"{order}I{n}QIQ", n, *reversed(spec.shape), spec.type.id, offset))
        offset += align_up(spec.nbytes, alignment)
    return b"".join(parts)


def encode_header(fields: bytes, n_fields: int, infos: bytes, n_tensors: int, big_endian: bool = False) -> bytes:
    """Magic to tensor infos, without padding."""
    return MAGIC + struct.pack(">IQQ" if big_endian else "<IQQ", VERSION, n_tensors, n_fields) + fields + infos


def checked(header: bytes, file: str, size: int) -> Header:
    """Read a header back as the reader would, for a file of `size` bytes; GGUFError says what it would refuse."""
    return parse_header(np.frombuffer(header, np.uint8), file, size)


@dataclass(frozen=True)
class FilePlan:
    """One file to write: header with its padding, and the tensors that follow."""

    header: bytes
    specs: tuple[TensorSpec, ...]
    nbytes: int  # of the whole file


def plan_file(
    metadata: Mapping[str, Any], specs: Sequence[TensorSpec], alignment: int, file: str, big_endian: bool = False
) -> FilePlan:
    """The file that holds `specs`, checked as a reader would."""
    header = encode_header(
        encode_fields(metadata, big_endian),
        len(metadata),
        encode_infos(specs, alignment, big_endian),
        len(specs),
        big_endian,
    )
    padded = header.ljust(align_up(len(header), alignment), b"\0") if specs else header
    nbytes = len(padded) + sum(align_up(s.nbytes, alignment) for s in specs)
    checked(header, file, nbytes)
    return FilePlan(padded, tuple(specs), nbytes)


def shard_metadata(metadata: Mapping[str, Any], no: int, count: int, n_tensors: int) -> dict[str, Any]:
    """A shard's metadata: all of it in the first; the others only say what they belong to, and their alignment."""
    kept = (
        dict(metadata)
        if no == 0
        else {k: metadata[k] for k in ("general.architecture", "general.alignment") if k in metadata}
    )
    return kept | {SPLIT_NO: Typed("u16", no), SPLIT_COUNT: Typed("u16", count), SPLIT_TENSORS: Typed("i32", n_tensors)}


def spread(
    metadata: Mapping[str, Any],
    specs: Sequence[TensorSpec],
    alignment: int,
    max_bytes: int | None,
    max_tensors: int | None,
    big_endian: bool = False,
) -> list[list[TensorSpec]]:
    """Tensors of each shard, in order, so that no file passes `max_bytes` or `max_tensors`; ConfigError where one must.

    The first shard holds the metadata, and only that where no tensor fits beside it.
    """
    if (max_bytes is not None and max_bytes < 1) or (max_tensors is not None and max_tensors < 1):
        raise ConfigError(f"shards of at most {max_bytes} bytes and {max_tensors} tensors; expected positive limits.")
    fixed = [len(encode_fields(shard_metadata(metadata, no, 1, 0), big_endian)) + 24 for no in (0, 1)]
    if max_bytes is not None and fixed[0] > max_bytes:
        raise ConfigError(
            f"the metadata alone takes {fixed[0]} bytes; at most {max_bytes} are allowed. Allow larger shards."
        )
    shards: list[list[TensorSpec]] = [[]]
    header, data = fixed[0], 0
    for spec in specs:
        size = align_up(header + spec.info_bytes, alignment) + data + align_up(spec.nbytes, alignment)
        full = max_tensors is not None and len(shards[-1]) >= max_tensors
        if full or (max_bytes is not None and size > max_bytes and (shards[-1] or len(shards) == 1)):
            shards.append([])
            header, data = fixed[1], 0
            size = align_up(header + spec.info_bytes, alignment) + align_up(spec.nbytes, alignment)
        if max_bytes is not None and size > max_bytes:
            raise ConfigError(
                f"{spec.name} alone makes a shard of {size} bytes; at most {max_bytes} are allowed. Allow larger shards."
            )
        header += spec.info_bytes
        data += align_up(spec.nbytes, alignment)
        shards[-1].append(spec)
    if len(shards) > 0xFFFF:
        raise ConfigError(f"{len(shards)} shards; expected at most {0xFFFF}. Allow larger ones.")
    return shards
