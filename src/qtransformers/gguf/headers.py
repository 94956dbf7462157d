"""GGUF headers without their tensors: what is known of a model before its weights are at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import GGUFError
from qtransformers.gguf.header import Header, parse_header
from qtransformers.gguf.mapping import check_kind
from qtransformers.gguf.reader import Metadata
from qtransformers.gguf.shards import check_shards
from qtransformers.tensor import QTensor
from qtransformers.types import QuantType

FIRST_BYTES = 2 << 20  # of a file, enough for small vocabularies; doubled until the header is whole
MOST_BYTES = 256 << 20

Fetch = Callable[[int, int], bytes]  # (start, stop) of a file to its bytes there


class HeaderTensor(QTensor):
    """A tensor of which only the header is known; asking for its data is a GGUFError."""

    def __init__(self, name: str, type: QuantType, shape: tuple[int, ...], nbytes: int, file: str) -> None:
        for key, value in {"name": name, "type": type, "shape": shape, "_nbytes": nbytes, "file": file}.items():
            object.__setattr__(self, key, value)

    _nbytes: int

    @property
    def data(self) -> NoReturn:  # type: ignore[override]
        """None is at hand."""
        raise GGUFError(f"{self.file}: only the header is at hand, not the data of {self.name}. Download the file.")

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return self._nbytes

    def reshaped(self, shape: tuple[int, ...]) -> QTensor:
        """The same under another shape of as many values."""
        return HeaderTensor(self.name, self.type, shape, self._nbytes, self.file)


class HeaderFile:
    """What `GGUFFile` tells, without data; `fetches` read parts of the shards, whose names and sizes are given.

    Raises GGUFError and ShardError as `GGUFFile` does.
    """

    def __init__(self, names: Sequence[str], sizes: Sequence[int], fetches: Sequence[Fetch], where: str = "") -> None:
        parsed = [_header(*args, where) for args in zip(names, sizes, fetches, strict=True)]
        headers, datas = [h for h, _ in parsed], [d for _, d in parsed]
        self.paths = tuple(Path(name) for name in names)
        self.path = Path(where) / names[0] if where else self.paths[0]
        if len(names) > 1:
            check_shards(self.paths, headers, datas)
        self.version, self.big_endian = headers[0].version, headers[0].big_endian
        self.alignment, self.data_offset = headers[0].alignment, headers[0].data_offset
        self.nbytes = sum(sizes)
        self.metadata = Metadata(headers[0], datas[0])
        self.tensors = {
            info.name: HeaderTensor(info.name, info.type, info.shape, info.nbytes, h.file)
            for h in headers
            for info in h.tensors.values()
        }

    def close(self) -> None:
        """Nothing is held open."""


def _header(name: str, size: int, fetch: Fetch, where: str) -> tuple[Header, NDArray[np.uint8]]:
    """The header of one file, read in growing parts until it is whole."""
    raw, said = b"", ""
    stop = min(FIRST_BYTES, size)
    while True:
        raw += fetch(len(raw), stop)
        check_kind(raw[:512], Path(where) / name)
        data = np.frombuffer(raw, np.uint8)
        try:
            return parse_header(data, name, size), data
        except GGUFError as e:
            # Damage is told in the same words however much is read; a part too small is not.
            if str(e) == said or len(raw) >= min(size, MOST_BYTES):
                raise
            said = str(e)
        stop = min(2 * len(raw), size, MOST_BYTES)
