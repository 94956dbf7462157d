"""Models made for one test: the demo file with changes, tiny Hugging Face directories."""

import json
import shutil
import struct

import numpy as np
import pytest

from qtransformers.gguf import GGUFFile
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME

_ARRAYS = {"i1": 1, "u1": 0, "u2": 2, "i2": 3, "u4": 4, "i4": 5, "f4": 6, "u8": 10, "i8": 11, "f8": 12}


def _text(text):
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value):
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<Iq" if value < 0 else "<IQ", 11 if value < 0 else 10, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", 9, _ARRAYS[value.dtype.str[1:]], len(value)) + value.tobytes()
    return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))


def write(path, metadata, tensors):
    """A GGUF file, written apart from the library's own writer."""
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    head += [_text(key) + _value(value) for key, value in metadata.items()]
    offset, blobs = 0, []
    for t in tensors:
        dims = t.shape[::-1]
        head.append(_text(t.name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, t.type.id, offset))
        raw = t.data.tobytes()
        blobs.append(raw + bytes(-len(raw) % 32))
        offset += len(blobs[-1])
    header = b"".join(head)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + bytes(-len(header) % 32) + b"".join(blobs))
    return path


def tensor(name, values, type="F32"):
    """A plain float tensor."""
    values = np.asarray(values, {"F32": np.float32, "F16": np.float16, "I32": np.int32}[type])
    return QTensor(name, BY_NAME[type], values.shape, values.reshape(-1).view(np.uint8), "made.gguf")


@pytest.fixture
def make():
    """`make(path, metadata, tensors)` writes a GGUF file; `make.tensor(name, values)` makes its tensors."""
    write.tensor = tensor
    return write


@pytest.fixture
def remake(data, tmp_path):
    """`remake(metadata=..., drop=..., add=...)`: the demo file with keys set (None: removed), tensors dropped and added."""

    def changed(name="changed.gguf", metadata=None, drop=(), add=(), source=data / "demo-Q8_0.gguf"):
        with GGUFFile(source) as file:
            keys = {**dict(file.metadata), **(metadata or {})}
            new = {t.name: t for t in add}
            kept = [new.pop(n, t) for n, t in file.tensors.items() if n not in drop]
            return write(tmp_path / name, {k: v for k, v in keys.items() if v is not None}, [*kept, *new.values()])

    return changed


@pytest.fixture
def hf_dir(data, tmp_path):
    """`hf_dir(config={...}, drop=[...])`: the demo model's directory, copied without its weights, config.json changed."""

    def changed(config=None, drop=("model.safetensors",), name="hf"):
        folder = tmp_path / name
        shutil.copytree(data / "demo_model", folder)
        for file in drop:
            (folder / file).unlink()
        if config:
            path = folder / "config.json"
            merged = {**json.loads(path.read_text()), **config}
            path.write_text(json.dumps({k: v for k, v in merged.items() if v is not ...}))
        return folder

    return changed
