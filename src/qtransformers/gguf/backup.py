"""Old and new header of an edit in place, kept beside the file while the new one is written: a write cut short can be undone."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from qtransformers.gguf.writer import sync_folder

BACKUP_SUFFIX = ".header-backup"


def write_over(path: Path, old: bytes, new: bytes) -> None:
    """Put the header `new` in the place of `old`, of the same length; `restore_header` undoes it where it was cut short."""
    backup = _backup(path)
    try:
        with open(backup, "wb") as f:
            f.write(old + new)
            _sync(f)
        sync_folder(path.parent)
        _pwrite(path, new)
    except OSError:
        with suppress(OSError):  # where even this fails, the backup stays
            _pwrite(path, old)
            backup.unlink()
        raise
    backup.unlink()
    sync_folder(path.parent)


def restore_header(path: str | Path) -> bool:
    """Undo an edit in place that was interrupted; whether there was one. What the edit finished is left as it is."""
    path = Path(path)
    if not _backup(path).is_file():
        return False
    with open(path, "rb") as f:
        kept = _kept(path, np.frombuffer(f.read(_backup(path).stat().st_size // 2), np.uint8))
    if kept is not None:
        _pwrite(path, kept.tobytes())
    _backup(path).unlink()
    return kept is not None


def is_torn(path: Path, data: NDArray[np.uint8]) -> bool:
    """Whether an edit was interrupted that left a header of the file `data` which is neither the old nor the new one."""
    if not _backup(path).is_file():
        return False
    old = _kept(path, data)
    return old is not None and not np.array_equal(data[: len(old)], old)


def _kept(path: Path, data: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """The old header, where each byte of the header in `data` is the old or the new one's; None where the edit came to its
    end, the backup is cut short, or another file has taken the place of the edited one.
    """
    raw = np.fromfile(_backup(path), np.uint8)
    n = len(raw) // 2
    old, new, now = raw[:n], raw[n : 2 * n], data[:n]
    if len(raw) % 2 or len(now) != n or np.array_equal(now, new):
        return None
    return old if bool(((now == old) | (now == new)).all()) else None


def _backup(path: Path) -> Path:
    return path.with_name(path.name + BACKUP_SUFFIX)


def _pwrite(path: Path, header: bytes) -> None:
    with open(path, "r+b") as f:
        f.write(header)
        _sync(f)


def _sync(f: IO[bytes]) -> None:
    f.flush()
    os.fsync(f.fileno())
