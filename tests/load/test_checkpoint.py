import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from qtransformers.errors import LoadError, ModelNotFoundError, UnsupportedError
from qtransformers.load.checkpoint import open_checkpoint


def write(path, header, data=b""):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_reads_what_the_library_wrote(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.arange(4, dtype=np.float16), "c": np.zeros(())}
    save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = open_checkpoint(tmp_path)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        t = found[name]
        np.testing.assert_array_equal(t.data.view(t.type.block[0]).reshape(t.shape), array)
        assert t.file == str(tmp_path / "model.safetensors")


def test_shards_under_an_index(tmp_path):
    save_file({"a": np.ones(2, np.float32), "stray": np.ones(1, np.float32)}, tmp_path / "m-1.safetensors")
    save_file({"b": np.ones(3, np.float32)}, tmp_path / "m-2.safetensors")
    places = {"a": "m-1.safetensors", "b": "m-2.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert {n: t.file for n, t in open_checkpoint(tmp_path).items()} == {
        n: str(tmp_path / f) for n, f in places.items()
    }
    index.write_text(json.dumps({"weight_map": places | {"c": "m-2.safetensors"}}))
    with pytest.raises(LoadError, match=r"c should be in m-2\.safetensors and is not"):
        open_checkpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "m-3.safetensors"}}))
    with pytest.raises(ModelNotFoundError, match=r"m-3\.safetensors: no such file"):
        open_checkpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../m-1.safetensors"}}))
    with pytest.raises(LoadError, match="expected a file name in the same folder"):
        open_checkpoint(tmp_path)
    index.write_text("[]")
    with pytest.raises(LoadError, match="not a checkpoint index"):
        open_checkpoint(tmp_path)


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"no model\.safetensors"):
        open_checkpoint(tmp_path)


def test_a_pointer_names_the_command_that_helps(tmp_path):
    (tmp_path / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7348736\n"
    )
    with pytest.raises(ModelNotFoundError, match=r'git lfs pull --include="model\.safetensors"'):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "header, data, error",
    [
        (b"", b"", LoadError),
        (b"[]", b"", LoadError),
        (b"{", b"", LoadError),
        ({"a": entry(offsets=(0, 8))}, b"\0" * 7, LoadError),
        ({"a": entry(offsets=(8, 0))}, b"\0" * 8, LoadError),
        ({"a": entry(offsets=(-8, 0))}, b"\0" * 8, LoadError),
        ({"a": entry(offsets=(0, 4))}, b"\0" * 8, LoadError),
        ({"a": entry(shape=(-2,))}, b"\0" * 8, LoadError),
        ({"a": entry(shape=(2.0,))}, b"\0" * 8, LoadError),
        ({"a": entry(shape=(2**62, 4), offsets=(0, 0))}, b"\0" * 8, LoadError),
        ({"a": {"dtype": "F32"}}, b"", LoadError),
        ({"a": 1}, b"", LoadError),
        ({"a": entry("F6_E3M2", (8,))}, b"\0" * 8, UnsupportedError),
    ],
)
def test_headers_that_lie(header, data, error, tmp_path):
    write(tmp_path / "model.safetensors", header, data)
    with pytest.raises(error, match=r"model\.safetensors: "):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("raw", [b"", b"\x01", struct.pack("<Q", 2**63), struct.pack("<Q", 100) + b"{}"])
def test_files_too_short_for_their_header(raw, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(LoadError, match=r"model\.safetensors: "):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("dtype, kind", [("F8_E4M3", "u1"), ("I8", "i1"), ("U8", "u1"), ("I32", "<i4"), ("I64", "<i8"), ("F16", "<f2"), ("BF16", "<u2")])  # fmt: skip
def test_values_of_other_types_are_seen_but_are_no_floats(dtype, kind, tmp_path):
    raw = bytes(range(16))
    write(tmp_path / "model.safetensors", {"a": entry(dtype, (16 // np.dtype(kind).itemsize,), offsets=(0, 16))}, raw)
    found = open_checkpoint(tmp_path)["a"]
    np.testing.assert_array_equal(found.view(), np.frombuffer(raw, kind))
    if "F" in dtype and "8" not in dtype:
        assert found.type.name == dtype
    else:
        with pytest.raises(UnsupportedError, match=rf"a has dtype {dtype}"):
            _ = found.type
