"""Safetensors checkpoints: one file or shards under an index, mapped, never read whole.

Format: 8 bytes little-endian header length, a JSON header, then the data (huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import LoadError, ModelNotFoundError, UnsupportedError
from qtransformers.load.files import lfs_remedy, pointer_size
from qtransformers.types import BY_NAME, QuantType

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DIFFUSERS = "diffusion_pytorch_model"  # what diffusers calls them instead of `model`
MAX_HEADER = 100 << 20  # bytes; the format's own limit
# Bytes of a value by its name in a header; those of quantised checkpoints that GGUF has no type for among them
DTYPES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "U16": 2, "U32": 4, "U64": 8, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
}  # fmt: skip
FLOATS = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor of a checkpoint as it lies in its file, row-major, little-endian."""

    name: str
    dtype: str  # one of DTYPES
    shape: tuple[int, ...]
    data: NDArray[np.uint8] = field(repr=False)  # [nbytes]
    file: str

    @property
    def type(self) -> QuantType:
        """The type of its floats; UnsupportedError where it holds something else."""
        if self.dtype not in FLOATS:
            raise UnsupportedError(
                f"{self.file}: {self.name} has dtype {self.dtype}; expected F32, F16, BF16 or F64. Convert from the unquantised model."
            )
        return BY_NAME[self.dtype]

    def view(self) -> NDArray[Any]:
        """Its values `[*shape]` where NumPy has the type; those of 8 bits as bytes."""
        kind = {"F": "f", "I": "i", "U": "u"}.get(self.dtype[0], "u")
        size = DTYPES[self.dtype]
        return self.data.view(f"<{kind if size > 1 or kind == 'i' else 'u'}{size}").reshape(self.shape)


def interleave(n_rows: int, n_heads: int) -> NDArray[np.intp]:
    """Rows of a Q or K projection in the order that rotates neighbours: NORM rope from the two halves of a head.

    Hugging Face pairs i with i + head_dim / 2; row 2i of the result is row i of a head, row 2i + 1 its partner.
    """
    return np.arange(n_rows).reshape(n_heads, 2, -1).swapaxes(1, 2).reshape(-1)


def open_checkpoint(folder: Path, stem: str = "model") -> dict[str, Stored]:
    """Every tensor of the checkpoint in `folder`, by name; its files are called `<stem>.safetensors` and the like.

    ModelNotFoundError when a file is absent or a git-LFS pointer; LoadError when a header and its file disagree.
    """
    index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
    if not index.exists():
        if not single.exists():
            raise ModelNotFoundError(
                f"{folder}: no {single.name} and no {index.name}; conversion needs the weights of a Hugging Face model in safetensors."
            )
        return open_file(single)
    places = _index_of(index)
    tensors: dict[str, Stored] = {}
    for file in sorted(set(places.values())):
        if Path(file).name != file:
            raise LoadError(f"{index}: weight_map names {file!r}; expected a file name in the same folder.")
        tensors.update({name: t for name, t in open_file(folder / file).items() if places.get(name) == file})
    if missing := sorted(set(places) - set(tensors)):
        raise LoadError(
            f"{index}: {missing[0]} should be in {places[missing[0]]} and is not ({len(missing)} such tensors). Download the shards again."
        )
    return tensors


def checkpoint_files(folder: Path, stem: str = "model") -> set[str]:
    """Names of the files that `open_checkpoint` reads in `folder`; LoadError for an index that is none."""
    index = folder / f"{stem}.safetensors.index.json"
    return set(_index_of(index).values()) if index.exists() else {f"{stem}.safetensors"}


def _index_of(path: Path) -> dict[str, str]:
    try:
        places = json.loads(path.read_bytes())["weight_map"]
        if not all(isinstance(k, str) and isinstance(v, str) for k, v in places.items()):
            raise ValueError("weight_map is no mapping of names to files")
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise LoadError(f"{path}: not a checkpoint index ({e}). Download it again.") from e
    return dict(places)


def open_file(path: Path) -> dict[str, Stored]:
    """Every tensor of one safetensors file, by name; errors as `open_checkpoint`."""
    if not path.is_file():
        raise ModelNotFoundError(f"{path}: no such file. Download the missing shard.")
    if pointer_size(path) is not None:
        raise ModelNotFoundError(
            f"{path}: a git-LFS pointer, not the weights themselves. {lfs_remedy([path.name], path.parent)}"
        )
    if path.stat().st_size < 8:
        raise LoadError(f"{path}: {path.stat().st_size} bytes; expected a safetensors file. Download it again.")
    with path.open("rb") as f:
        data = np.frombuffer(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    n = int.from_bytes(data[:8].tobytes(), "little")
    if n > min(MAX_HEADER, data.size - 8):
        raise LoadError(f"{path}: its header claims {n} bytes, the file has {data.size}. Download it again.")
    try:
        header = json.loads(data[8 : 8 + n].tobytes())
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, AttributeError) as e:
        raise LoadError(f"{path}: its header is no JSON object ({e}). Download it again.") from e
    return {name: _tensor(name, entry, data[8 + n :], path) for name, entry in entries.items()}


def _tensor(name: str, entry: Mapping[str, Any], data: NDArray[np.uint8], path: Path) -> Stored:
    try:
        dtype, shape, (start, stop) = str(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(n) is int and n >= 0 for n in (*shape, start, stop)):
            raise ValueError("sizes and offsets must be whole numbers")
    except (KeyError, TypeError, ValueError) as e:
        raise LoadError(f"{path}: the header's entry for {name} is broken ({e}). Download the file again.") from e
    if dtype not in DTYPES:
        raise UnsupportedError(
            f"{path}: {name} has dtype {dtype}; expected one of {', '.join(DTYPES)}. Convert from the unquantised model."
        )
    if not start <= stop <= data.size or stop - start != math.prod(shape) * DTYPES[dtype]:
        raise LoadError(
            f"{path}: {name} is {dtype} {list(shape)} at bytes {start}..{stop} of {data.size}: that does not fit. The file is truncated or damaged; download it again."
        )
    return Stored(name, dtype, shape, data[start:stop], str(path))
