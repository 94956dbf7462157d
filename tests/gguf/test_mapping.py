"""What is found where a GGUF file should be, and what to do about it."""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from qtransformers.errors import GGUFError, ModelNotFoundError
from qtransformers.gguf import GGUFFile


def archive():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("archive/data.pkl", b"x")
    return out.getvalue()


def safetensors():
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    return struct.pack("<Q", len(header)) + header + bytes(4)


def numpy():
    out = io.BytesIO()
    np.save(out, np.zeros(3))
    return out.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
OTHERS = {
    "zip": (archive(), "a zip archive or PyTorch checkpoint. Convert"),
    "pickle": (pickle.dumps({"a": 1}, 2), "a Python pickle"),
    "safetensors": (safetensors(), "a safetensors file. Convert"),
    "numpy": (numpy(), "a NumPy array"),
    "html": (b"\n <!DOCTYPE html><html><title>404</title></html>", "a web page.*Download"),
    "xml": (b'<?xml version="1.0"?><Error>', "a web page or XML"),
    "json": (b'{"error":"Repository not found"}', "JSON"),
    "hub error": (b"Entry not found", "an error message of the Hub"),
    "ggml": (b"lmgg" + bytes(20), "format before GGUF"),
    "ggjt": (b"tjgg" + bytes(20), "format before GGUF"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "gzip data. Unpack"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(20), "zstd data"),
    "zeros": (bytes(5000), "zeros, likely an unfinished download"),
    "text": (b"hello there, this is a text", "unknown data that starts with b'hello th'"),
    "empty": (b"", "is empty; expected a GGUF file. Download"),
    "one byte": (b"G", "ends after 1 bytes"),
    "three bytes": (b"GGU", "ends after 3 bytes"),
    "one other byte": (b"x", "unknown data"),
}  # fmt: skip


@pytest.mark.parametrize("raw, message", OTHERS.values(), ids=OTHERS)
def test_other_files(tmp_path, raw, message):
    path = tmp_path / "model.gguf"
    path.write_bytes(raw)
    with pytest.raises(GGUFError, match=message) as e:
        GGUFFile(path)
    assert "model.gguf" in str(e.value)


def test_a_git_lfs_pointer(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(POINTER)
    with pytest.raises(ModelNotFoundError, match=r'is a git-LFS pointer.*git lfs pull --include "model.gguf"'):
        GGUFFile(path)


def test_what_is_not_there(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"absent.gguf: No such file or directory"):
        GGUFFile(tmp_path / "absent.gguf")
    with pytest.raises(FileNotFoundError):
        GGUFFile(str(tmp_path / "absent.gguf"))
    (tmp_path / "dangling.gguf").symlink_to(tmp_path / "absent.gguf")
    for path in (tmp_path / "dangling.gguf", "a\0b.gguf", tmp_path / ("n" * 300), "", tmp_path / "a" / "b"):
        with pytest.raises(ModelNotFoundError):
            GGUFFile(path)


def test_a_folder(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"is a folder.*It holds no .gguf file"):
        GGUFFile(tmp_path)
    (tmp_path / "a.gguf").touch()
    with pytest.raises(ModelNotFoundError, match=r"is a folder.*It holds a.gguf: pass one of them"):
        GGUFFile(tmp_path)


def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path / "pipe.gguf", "/dev/zero"):
        with pytest.raises(ModelNotFoundError, match="no regular file"):
            GGUFFile(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF")
    path.chmod(0)
    with pytest.raises(ModelNotFoundError, match="Permission denied"):
        GGUFFile(path)
