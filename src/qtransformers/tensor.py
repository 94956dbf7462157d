"""QTensor: a named tensor over the bytes of a GGUF file. Nothing is decoded unless asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import ConfigError, GGUFError, UnsupportedError
from qtransformers.types import QuantType


@dataclass(frozen=True, eq=False)
class QTensor:
    """A tensor as it lies in the file: `shape` is logical and row-major, (out, in), the reverse of GGUF's order."""

    name: str
    type: QuantType
    shape: tuple[int, ...]
    data: NDArray[np.uint8] = field(repr=False)  # [nbytes], read-only, usually a view of the mmap
    file: str = ""  # for messages
    device: str = "cpu"

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return self.data.nbytes

    @property
    def n_values(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def n_rows(self) -> int:
        """Number of rows: the product of all dimensions but the last."""
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of the last dimension."""
        return self.type.row_bytes(self.shape[-1] if self.shape else 1)

    def reshaped(self, shape: tuple[int, ...]) -> QTensor:
        """The same bytes under another shape of as many values."""
        return QTensor(self.name, self.type, shape, self.data, self.file, self.device)

    def dequantize(self) -> NDArray[np.float32]:
        """Decode the whole tensor to f32 `[*shape]`; UnsupportedError for whole numbers, GGUFError for bytes that do not fit the shape."""
        return self._decode(0, self.n_rows).reshape(self.shape)

    def rows(self, start: int, stop: int) -> NDArray[np.float32]:
        """Decode rows start..stop, stop excluded, of the `[n_rows, shape[-1]]` matrix to f32; errors as for `dequantize`."""
        if not 0 <= start <= stop <= self.n_rows:
            raise ConfigError(
                f"{self._where}: rows {start}..{stop} asked for; expected a range within 0..{self.n_rows}."
            )
        return self._decode(start, stop)

    def numpy(self) -> NDArray[Any]:
        """The values as they are, without a copy, for the types NumPy has (F16, I32, ...); UnsupportedError for others."""
        if self.type.is_quantized or self.type.name == "BF16":
            raise UnsupportedError(
                f"{self._where} is {self.type.name}, which NumPy has no type for; use dequantize() to get numbers."
            )
        self._check()
        return self.data.view(self.type.block[0]).reshape(self.shape)

    def _decode(self, start: int, stop: int) -> NDArray[np.float32]:
        from qtransformers.quants import dequantize  # the extension loads only when numbers are wanted

        if self.type.family == "int":
            raise UnsupportedError(
                f"{self._where} is {self.type.name}, whole numbers that need no decoding; use numpy()."
            )
        self._check()
        raw = self.data[start * self.row_bytes : stop * self.row_bytes]
        width = self.shape[-1] if self.shape else 1
        return dequantize(raw, self.type).reshape(stop - start, width)

    def _check(self) -> None:
        width = self.shape[-1] if self.shape else 1
        expected = self.n_rows * self.row_bytes
        if width % self.type.block_size or self.data.nbytes != expected:
            raise GGUFError(
                f"{self._where} is {list(self.shape)} of {self.type.name} in {self.data.nbytes} bytes; expected {expected} bytes and rows "
                f"of a multiple of {self.type.block_size} values. The file is damaged or was read wrongly."
            )

    @property
    def _where(self) -> str:
        return f"{self.file}: {self.name}" if self.file else self.name


class SwappedQTensor(QTensor):
    """A tensor of a file in the other byte order: `data` is a swapped copy, made on first use and then kept."""

    def __init__(
        self, name: str, type: QuantType, shape: tuple[int, ...], raw: NDArray[np.uint8], file: str = ""
    ) -> None:
        for key, value in {"name": name, "type": type, "shape": shape, "raw": raw, "file": file}.items():
            object.__setattr__(self, key, value)

    raw: NDArray[np.uint8]  # the bytes as they lie in the file

    @cached_property
    def data(self) -> NDArray[np.uint8]:  # type: ignore[override]
        """Bytes in the little-endian order of `type.block`."""
        swapped = swap_bytes(self.raw, self.type)
        swapped.setflags(write=False)
        return swapped

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return self.raw.nbytes


def swap_bytes(data: NDArray[np.uint8], type: QuantType) -> NDArray[np.uint8]:
    """A copy of whole blocks with the bytes of every field of `type.block` reversed."""
    return data.view(type.block.newbyteorder(">")).astype(type.block).view(np.uint8)
