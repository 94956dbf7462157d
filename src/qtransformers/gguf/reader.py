"""Opening a GGUF file: header walked and checked, tensors as views of the mmap."""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from qtransformers.errors import GGUFError
from qtransformers.tensor import QTensor
from qtransformers.types import type_of

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class GGUFFile:
    """A GGUF file: `.path`, `.version`, `.metadata` (a mapping; arrays are lists or NumPy arrays), `.tensors` (name -> QTensor)."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with open(path, "rb") as f:
            self._map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0
        if self._map[:4] != b"GGUF":
            raise GGUFError(f"{path}: not a GGUF file.")
        self._at = 4
        self.version, n_tensors, n_kv = self._read("<IQQ")
        metadata: dict[str, Any] = {}
        for _ in range(n_kv):
            key = self._string()
            metadata[key] = self._value(self._read("<I")[0])
        self.metadata: Mapping[str, Any] = MappingProxyType(metadata)
        infos = []
        for _ in range(n_tensors):
            name = self._string()
            (n_dims,) = self._read("<I")
            dims = self._read(f"<{n_dims}Q")
            infos.append((name, dims[::-1], *self._read("<IQ")))
        align = metadata.get("general.alignment", 32)
        base = -(-self._at // align) * align
        data = np.frombuffer(self._map, np.uint8)
        self.tensors: dict[str, QTensor] = {}
        for name, shape, type_id, offset in infos:
            t = type_of(type_id, name, self.path.name)
            n = math.prod(shape) // t.block_size * t.block_bytes
            self.tensors[name] = QTensor(name, t, shape, data[base + offset : base + offset + n], self.path.name)

    def _read(self, form: str) -> tuple[Any, ...]:
        out = struct.unpack_from(form, self._map, self._at)
        self._at += struct.calcsize(form)
        return out

    def _string(self) -> str:
        (n,) = self._read("<Q")
        self._at += n
        return self._map[self._at - n : self._at].decode("utf-8", "replace")

    def _value(self, kind: int) -> Any:
        if kind == 8:
            return self._string()
        if kind != 9:
            return self._read("<" + _SCALARS[kind])[0]
        inner, n = self._read("<IQ")
        if inner == 8:
            return [self._string() for _ in range(n)]
        dtype = np.dtype("<" + _SCALARS[inner])
        self._at += n * dtype.itemsize
        return np.frombuffer(self._map, dtype, n, self._at - n * dtype.itemsize)
