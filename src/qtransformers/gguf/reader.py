"""Opening GGUF files: header checked, arrays decoded on demand, tensors as views of the map."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import GGUFError
from qtransformers.gguf.backup import is_torn
from qtransformers.gguf.header import Field, Header, TensorInfo, parse_header
from qtransformers.gguf.mapping import map_file
from qtransformers.gguf.shards import check_shards, shard_paths
from qtransformers.gguf.values import ESCAPE, Encoded, Typed, dtype_of
from qtransformers.tensor import QTensor, SwappedQTensor

PADDING_KEY = "gguf.padding"  # room that `edit_metadata` left in the header; no metadata of the model
_EAGER_BYTES = 1 << 20  # strings decoded at opening, in total


class ValueInfo(NamedTuple):
    """A metadata value's type, such as `u32` or `arr[str]`, and the number of elements of an array (None: single)."""

    type: str
    length: int | None


class Metadata(Mapping[str, Any]):
    """A header's keys and values: int, float, bool, str, read-only NumPy arrays, list[str].

    Single values are read at opening. Arrays (and strings past the first MiB) are decoded when first asked for, once;
    numeric arrays are views of the map, which may be unaligned. Strings that are no UTF-8 hold lone surrogates
    ("surrogateescape"), so encoding them the same way gives back the file's bytes.
    """

    def __init__(self, header: Header, data: NDArray[np.uint8]) -> None:
        self._file, self._big_endian = header.file, header.big_endian
        self._fields = {k: f for k, f in header.fields.items() if k != PADDING_KEY}
        self._data: NDArray[np.uint8] | None = data
        self._values: dict[str, Any] = {}
        room = _EAGER_BYTES
        for key, field in self._fields.items():
            if field.length is not None:
                continue
            if field.kind.name == "str":
                room -= field.stop - field.start
            if field.kind.name != "str" or room >= 0:
                self._values[key] = self._decode(field)

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            self._values[key] = self._decode(self._fields[key])
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __contains__(self, key: object) -> bool:
        return key in self._fields

    def __repr__(self) -> str:
        return f"<Metadata of {self._file}: {len(self)} keys>"

    def info(self, key: str) -> ValueInfo:
        """Type and length without decoding; KeyError where there is no such key."""
        field = self._fields[key]
        return ValueInfo(field.type, field.length)

    def typed(self, key: str) -> Typed:
        """A value with its type in the file, as the writer takes it."""
        return Typed(self._fields[key].kind.name, self[key])

    def encoded(self, key: str) -> Encoded:
        """A value as it lies in the file, as the writer takes it: nothing is decoded."""
        field = self._fields[key]
        return Encoded(self._open()[field.typed : field.stop].tobytes(), self._big_endian)

    def forget(self, key: str) -> None:
        """Let go of a decoded array; asked for again, it is decoded again."""
        if key in self._fields and self._fields[key].length is not None:
            self._values.pop(key, None)

    def close(self) -> None:
        """Let go of the map; what was decoded stays."""
        self._data = None

    def _open(self) -> NDArray[np.uint8]:
        if self._data is None:
            raise GGUFError(f"{self._file} is closed; read what you need of its metadata before.")
        return self._data

    def _decode(self, field: Field) -> Any:
        data = self._open()
        if field.kind.name != "str":
            dtype = dtype_of(field.kind, self._big_endian)
            if field.length is None:
                return np.frombuffer(data, dtype, 1, field.start)[0].item()
            numbers = np.frombuffer(data, dtype, field.length, field.start)
            if self._big_endian:
                numbers = numbers.astype(dtype.newbyteorder("<"))
                numbers.setflags(write=False)
            return numbers
        if field.length is None:
            return data[field.start + 8 : field.stop].tobytes().decode("utf-8", ESCAPE)
        if not field.length:
            return []
        from qtransformers.native import lib

        try:
            return lib.decode_strings(data, field.start, field.length, self._big_endian)
        except ValueError as e:  # it was whole when the file was opened
            raise GGUFError(f"{self._file} changed while it was open ({e}). Do not write to a file in use.") from e


class Tensors(Mapping[str, QTensor]):
    """Name -> QTensor, in file order; each is made when first asked for."""

    def __init__(self, headers: list[Header], datas: list[NDArray[np.uint8]]) -> None:
        self._datas, self._bases = datas, [h.data_offset for h in headers]
        self._infos = {name: (i, info) for i, header in enumerate(headers) for name, info in header.tensors.items()}
        self._swapped, self._files = headers[0].big_endian, [h.file for h in headers]
        self._made: WeakValueDictionary[str, QTensor] = WeakValueDictionary()  # swapped copies end with their tensor

    def __getitem__(self, name: str) -> QTensor:
        tensor = self._made.get(name)
        if tensor is None:
            tensor = self._made[name] = self._make(*self._infos[name])
        return tensor

    def infos(self) -> Iterator[TensorInfo]:
        """Name, type, shape, place and size of each, without making tensors."""
        return (info for _, info in self._infos.values())

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def __repr__(self) -> str:
        return f"<{len(self)} tensors of {self._files[0]}>"

    def close(self) -> None:
        """Let go of the maps; tensors already handed out keep theirs."""
        self._datas = []
        self._made.clear()

    def _make(self, shard: int, info: TensorInfo) -> QTensor:
        if not self._datas:
            raise GGUFError(f"{self._files[shard]} is closed; take what you need of its tensors before.")
        start = self._bases[shard] + info.offset
        data = self._datas[shard][start : start + info.nbytes]
        cls = SwappedQTensor if self._swapped else QTensor
        return cls(info.name, info.type, info.shape, data, self._files[shard])


class GGUFFile:
    """A GGUF file, or all shards of one given the first, mapped and checked; nothing is copied.

    With `alone` a shard is opened without the others, whichever it is.

    Raises ModelNotFoundError (no such file, a git-LFS pointer), ShardError (shards that are missing or do not belong
    together) and GGUFError (anything malformed). The files must not be written to while open.
    """

    path: Path
    paths: tuple[Path, ...]  # of all shards
    version: int
    big_endian: bool  # tensors of such a file are swapped into a copy when their data is first used
    alignment: int  # bytes
    data_offset: int  # bytes, of the (first) file's tensor data
    nbytes: int  # of all files together
    metadata: Metadata
    tensors: Tensors

    def __init__(self, path: str | Path, *, alone: bool = False) -> None:
        self.path = Path(path)
        mapped, data = map_file(self.path)
        header = _parse(data, self.path)
        self.paths = (self.path,) if alone else tuple(shard_paths(self.path, header, data))
        maps, headers, datas = [mapped], [header], [data]
        for shard in self.paths[1:]:
            mapped, data = map_file(shard)
            maps.append(mapped)
            datas.append(data)
            headers.append(_parse(data, shard))
        if len(headers) > 1:
            check_shards(self.paths, headers, datas)
        self._maps: list[mmap.mmap] = maps
        self.version, self.big_endian = header.version, header.big_endian
        self.alignment, self.data_offset = header.alignment, header.data_offset
        self.nbytes = sum(len(d) for d in datas)
        self.metadata = Metadata(header, datas[0])
        self.tensors = Tensors(headers, datas)

    def views(self) -> list[NDArray[np.uint8]]:
        """The mapped bytes of each file."""
        return [np.frombuffer(mapped, np.uint8) for mapped in self._maps]

    def close(self) -> None:
        """Unmap the file, once no tensor or array taken from it is alive any more."""
        self.metadata.close()
        self.tensors.close()
        while self._maps:
            with suppress(BufferError):  # views still out there keep a map, and end it
                self._maps.pop().close()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<GGUFFile {self.path}: {len(self.metadata)} keys, {len(self.tensors)} tensors, {self.nbytes} bytes>"


def _parse(data: NDArray[np.uint8], path: Path) -> Header:
    if is_torn(path, data):
        raise GGUFError(
            f"{path.name}: an edit of its metadata was interrupted, and its header is part old, part new. "
            "gguf.restore_header undoes the edit."
        )
    return parse_header(data, path.name)
