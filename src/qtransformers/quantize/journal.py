"""What a conversion that learns has found out so far, in a file beside its output: a run that was killed goes on from there.

Records follow one another: the length of a head (8 bytes), the head as JSON, its bytes. One that is cut or damaged ends the file.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import QTransformersError
from qtransformers.gguf.writer import AtomicFile

Key = tuple[str, str]  # what it is (`weight`, `fold`, `types`), and of what
HEAD_LIMIT = 1 << 24  # bytes


class Journal:
    """Records by key; of this process alone, or with `path` and `resume` (which is the same for the same work) for the next too.

    ConfigError while another process does the same work; QTransformersError where there is no room for a record.
    """

    def __init__(self, path: Path | None = None, resume: str = "") -> None:
        self._kept = AtomicFile(path, resume) if path is not None else None
        self._file: IO[bytes] = self._kept.file if self._kept else tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._at: dict[Key, tuple[int, int, Mapping[str, Any]]] = {}  # where, how many bytes, and facts
        self._end = 0
        while self._read_next():
            pass
        self._file.truncate(self._end)

    def __contains__(self, key: Key) -> bool:
        return key in self._at

    def facts(self, key: Key) -> Mapping[str, Any]:
        """What was put beside the bytes."""
        return self._at[key][2]

    def data(self, key: Key) -> NDArray[np.uint8]:
        """The bytes."""
        at, n, _ = self._at[key]
        self._file.seek(at)
        return np.frombuffer(self._file.read(n), np.uint8)

    def put(self, key: Key, data: NDArray[Any] | bytes = b"", **facts: Any) -> None:
        """Append a record, which a later one of the same key replaces."""
        raw = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else np.ascontiguousarray(data).reshape(-1).view(np.uint8)  # fmt: skip
        head = json.dumps({"key": key, "n": raw.nbytes, "crc": zlib.crc32(raw.data), "facts": facts}).encode()
        try:
            self._file.seek(self._end)
            self._file.write(len(head).to_bytes(8, "little") + head)
            self._file.write(raw.data)
            self._file.flush()
        except OSError as e:
            where = self._kept.path if self._kept else tempfile.gettempdir()
            after = "what is found out so far is kept: make room and run the same again" if self._kept else "make room"
            raise QTransformersError(f"{where}: {e.strerror or e}; {after}.") from e
        self._at[key] = self._end + 8 + len(head), raw.nbytes, facts
        self._end += 8 + len(head) + raw.nbytes

    def close(self, keep: bool = False) -> None:
        """Remove it, or let it stay for the next run."""
        if self._kept is None:
            self._file.close()
        elif keep:
            self._kept.keep()
        else:
            self._kept.discard()

    def _read_next(self) -> bool:
        self._file.seek(self._end)
        n = int.from_bytes(self._file.read(8), "little")
        if not 0 < n <= HEAD_LIMIT:
            return False
        try:
            head = json.loads(self._file.read(n))
            (kind, name), size, facts = head["key"], head["n"], head["facts"]
            data = self._file.read(size)
            whole = len(data) == size and zlib.crc32(data) == head["crc"]
        except (ValueError, KeyError, TypeError):
            return False
        if whole:
            self._at[kind, name] = self._end + 8 + n, size, facts
            self._end += 8 + n + size
        return whole
