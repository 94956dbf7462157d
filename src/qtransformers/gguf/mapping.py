"""Mapping a GGUF file into memory, or saying what is at its path instead."""

from __future__ import annotations

import mmap
import os
import stat
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import GGUFError, ModelNotFoundError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"

# First bytes of what people have in place of a GGUF: (prefixes, what it is, what to do).
_CONVERT = "Convert the model to GGUF: qtransformers convert"
_AGAIN = "Download the file itself again"
_KINDS = (
    ((b"PK\x03\x04",), "a zip archive or PyTorch checkpoint", _CONVERT),
    (
        (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        "a Python pickle, likely an old PyTorch checkpoint",
        _CONVERT,
    ),
    ((b"\x89HDF",), "an HDF5 file", _CONVERT),
    ((b"\x93NUMPY",), "a NumPy array", _CONVERT),
    ((b"lmgg", b"fmgg", b"tjgg"), "llama.cpp's format before GGUF", "Convert the original model again"),
    ((b"\x1f\x8b",), "gzip data", "Unpack it first"),
    ((b"\x28\xb5\x2f\xfd",), "zstd data", "Unpack it first"),
    ((b"\xfd7zXZ",), "xz data", "Unpack it first"),
    ((b"7z\xbc\xaf",), "a 7-Zip archive", "Unpack it first"),
    ((b"<",), "a web page or XML, likely an error page saved as a file", _AGAIN),
    ((b"{", b"["), "JSON", "Pass the .gguf file beside it"),
    ((b"Entry not found", b"Invalid username"), "an error message of the Hub saved as a file", _AGAIN),
    ((b"\0\0\0\0",), "zeros, likely an unfinished download", _AGAIN),
)


def map_file(path: Path) -> tuple[mmap.mmap, NDArray[np.uint8]]:
    """Map a GGUF file, shared and read-only; ModelNotFoundError or GGUFError says what else is there, and the remedy."""
    _check_path(path)
    try:
        with open(path, "rb") as f:
            size = os.fstat(f.fileno()).st_size
            if size == 0:
                raise GGUFError(f"{path} is empty; expected a GGUF file. Download or convert it again.")
            mapped = mmap.mmap(f.fileno(), size, access=mmap.ACCESS_READ)
    except OSError as e:
        raise ModelNotFoundError(
            f"{path} cannot be opened: {e.strerror or e}. Check the path and its permissions."
        ) from e
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel or file system without huge pages for files
            mapped.madvise(mmap.MADV_HUGEPAGE)  # before the first touch, or the page cache keeps 4 KB pieces
    check_kind(mapped[:512], path)
    return mapped, np.frombuffer(mapped, np.uint8)


def _check_path(path: Path) -> None:
    """That a path is a readable regular file: a pipe would hang, a folder has many files to choose from."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or e
        raise ModelNotFoundError(f"{path}: {reason}. Expected a GGUF file: check the path.") from e
    if stat.S_ISDIR(mode):
        found = sorted(p.name for p in path.glob("*.gguf"))[:5]
        inside = f" It holds {', '.join(found)}: pass one of them." if found else " It holds no .gguf file."
        raise ModelNotFoundError(f"{path} is a folder; expected a GGUF file.{inside}")
    if not stat.S_ISREG(mode):
        raise ModelNotFoundError(f"{path} is no regular file; expected a GGUF file on disk.")


def check_kind(head: bytes, path: Path) -> None:
    """Raise what a file is when its first bytes are not GGUF's (a git-LFS pointer: ModelNotFoundError)."""
    if head.startswith(b"GGUF"):
        return
    if head.startswith(LFS_POINTER):
        raise ModelNotFoundError(
            f'{path} is a git-LFS pointer, not the file itself. Fetch it: git lfs pull --include "{path.name}"'
        )
    if b"GGUF".startswith(head):
        raise GGUFError(
            f"{path.name} ends after {len(head)} bytes; expected a GGUF header. Download or convert it again."
        )
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        found, remedy = "a safetensors file", _CONVERT
    else:
        found, remedy = next(
            (
                (what, do)
                for prefixes, what, do in _KINDS
                if head.startswith(prefixes) or head.lstrip().startswith(prefixes)
            ),
            (f"unknown data that starts with {head[:8]!r}", "Check the path, or download the file again"),
        )
    raise GGUFError(f"{path.name} is not a GGUF file but {found}. {remedy}.")
