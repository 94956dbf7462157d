"""Writing GGUF files: header first, then tensor by tensor, under a temporary name until all is on disk."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import ConfigError, QTransformersError
from qtransformers.gguf.encode import FilePlan, TensorSpec, plan_file, shard_metadata, spread
from qtransformers.gguf.header import DEFAULT_ALIGNMENT, MAX_ALIGNMENT, align_up, is_alignment
from qtransformers.gguf.shards import SPLIT_KEYS, shard_name
from qtransformers.gguf.values import Typed, encode
from qtransformers.tensor import QTensor, swap_bytes
from qtransformers.types import BY_NAME, QuantType

CHUNK = 16 << 20  # bytes


class AtomicFile:
    """A file under a temporary name beside `path`, which takes its place only when whole and on disk.

    With `key` the temporary name is always the same, and what an earlier run has left there is `found`; ConfigError
    while another process writes it.
    """

    def __init__(self, path: Path, key: str = "") -> None:
        self.path = path
        self.temporary = _temporary(path, key or os.urandom(4).hex())
        flags = os.O_RDWR | os.O_CREAT | (0 if key else os.O_EXCL) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(self.temporary, flags, 0o666)
        if key and not _locked(descriptor):
            os.close(descriptor)
            raise ConfigError(f"{path} is being written by another process. Wait for it, or choose another name.")
        self.committed = False
        self.found = os.fstat(descriptor).st_size  # bytes
        self.file: IO[bytes] = os.fdopen(descriptor, "r+b", buffering=1 << 20)

    def flush(self) -> None:
        """Bring everything to disk and out of the page cache: read back from disk it comes in huge pages."""
        if self.file.closed:
            return
        self.file.flush()
        os.fsync(self.file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        self.file.close()

    def commit(self) -> None:
        """Take the final name."""
        self.flush()
        os.replace(self.temporary, self.path)
        self.committed = True
        sync_folder(self.path.parent)

    def discard(self) -> None:
        """Remove what was written."""
        with suppress(OSError):
            self.file.close()
        with suppress(OSError):
            (self.path if self.committed else self.temporary).unlink()

    def keep(self) -> None:
        """Let what was written stay for the next run."""
        with suppress(OSError):
            self.file.close()


def _temporary(path: Path, key: str) -> Path:
    return path.with_name(f".{path.name[:40]}.{key}.part")


def key_of(path: Path, resume: str) -> str:
    """What marks the unfinished file of `path`, whose own name may be too long to be told from others."""
    return hashlib.sha256(f"{resume} {path.name}".encode()).hexdigest()[:12]


def _locked(descriptor: int) -> bool:
    """Take a file for this process, where the system can; False when another has it."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def sweep(path: Path, *keys: str, before: int | None = None) -> None:
    """Remove what runs of other `keys` have left of `path`, unless one is at it; only what was written `before` (ns), where that is said."""
    ours = [_temporary(path, key) for key in keys]
    pattern = re.compile(rf"\.{re.escape(path.name[:40])}\.[0-9a-f]{{12}}\.part")
    for left in path.parent.iterdir():
        if pattern.fullmatch(left.name) and left not in ours:
            with suppress(OSError), left.open("rb") as file:
                if (before is None or left.stat().st_mtime_ns <= before) and _locked(file.fileno()):
                    left.unlink()


def sync_folder(folder: Path) -> None:
    """Make a rename durable, where folders can be synced."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_room(folder: Path, nbytes: int) -> None:
    """That a folder is there and has room for a file; QTransformersError with both numbers."""
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder to write to. Make it first, or choose another.")
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise QTransformersError(f"{folder} has {free} bytes free; {nbytes} are needed. Free some, or write elsewhere.")


class GGUFWriter:
    """Writes a model as one GGUF file, or as shards: `write` each tensor in the order given, then `close`.

    `metadata` maps keys to int, float, bool, str, bytes, NumPy values, flat lists of them, or `Typed(type, value)`; `tensors` are
    (name, shape, type), shapes row-major as in QTensor. With `max_bytes` or `max_tensors` (of each file) the files are
    `<path without .gguf>-00001-of-0000N.gguf`. Nothing appears under its final name before `close`; leaving the `with`
    block by an error removes what was written. ConfigError: values GGUF cannot hold, wrong order or size of data, a
    file that exists (unless `overwrite`). GGUFError: what a reader would refuse.

    With `resume`, a text that is the same for the same data, a run that was killed, interrupted or out of disk leaves what
    it has written under a hidden name; `finished` tells how many tensors are there already, and the next to write comes after.
    """

    def __init__(
        self,
        path: str | Path,
        metadata: Mapping[str, Any],
        tensors: Iterable[TensorSpec | tuple[str, tuple[int, ...], QuantType | str]],
        *,
        alignment: int | None = None,
        max_bytes: int | None = None,
        max_tensors: int | None = None,
        overwrite: bool = False,
        big_endian: bool = False,
        resume: str = "",
    ) -> None:
        specs = [t if isinstance(t, TensorSpec) else _spec(*t) for t in tensors]
        metadata, self.alignment = _with_alignment(metadata, alignment, big_endian)
        self.big_endian = big_endian
        path = Path(path)
        self._name = path.name
        self.paths, self._plans = _plan_files(path, metadata, specs, self.alignment, max_bytes, max_tensors, big_endian)
        for p in self.paths:
            check_free(p, overwrite)
        self._resume, self._keep = resume, False
        there = 0
        if resume and path.parent.is_dir():
            for p in self.paths:
                sweep(p, key_of(p, resume))
                left = _temporary(p, key_of(p, resume))
                there += left.stat().st_size if left.exists() else 0
        check_room(path.parent, sum(plan.nbytes for plan in self._plans) - there)
        self._pending = [(i, spec) for i, plan in enumerate(self._plans) for spec in plan.specs]
        self._empty = {spec.name for _, spec in self._pending if not spec.nbytes}
        self._next = 0  # of _pending
        self._written = 0  # bytes of that tensor
        self._files: list[AtomicFile] = []
        self._overwrite = overwrite
        try:
            self._open_next()
        except BaseException:
            self.abort()
            raise
        self.finished = self._next  # tensors that an earlier run has written

    def write(self, name: str, data: QTensor | NDArray[Any] | bytes) -> None:
        """Append to a tensor: whole blocks as bytes (uint8), or values of the tensor's own plain type."""
        if not self._files:
            raise ConfigError(f"{self._name} is closed; data of {name} came too late.")
        if name in self._empty:
            return
        if self._next == len(self._pending) or self._pending[self._next][1].name != name:
            wanted = self._pending[self._next][1].name if self._next < len(self._pending) else "no more"
            raise ConfigError(
                f"{self._name}: data of {name} came where {wanted} was expected. Write tensors in the order declared, each in full."
            )
        shard, spec = self._pending[self._next]
        raw = _raw(data, spec, self._name)
        if self._written + raw.nbytes > spec.nbytes:
            raise ConfigError(
                f"{self._name}: {name} got {self._written + raw.nbytes} bytes; its shape and type make {spec.nbytes}."
            )
        if raw.nbytes % spec.type.block_bytes:
            raise ConfigError(
                f"{self._name}: {name} got {raw.nbytes} bytes; expected whole blocks of {spec.type.block_bytes}."
            )
        step = max(1, CHUNK // spec.type.block_bytes) * spec.type.block_bytes
        for at in range(0, raw.nbytes, step):
            chunk = raw[at : at + step]
            with self._naming_errors():
                self._files[shard].file.write((swap_bytes(chunk, spec.type) if self.big_endian else chunk).data)
        self._written += raw.nbytes
        if self._written == spec.nbytes:
            self._finish_tensor()

    def close(self) -> None:
        """Check that all tensors came, bring the files to disk and give them their names, the first shard last."""
        if self._next < len(self._pending):
            spec = self._pending[self._next][1]
            left = len(self._pending) - self._next
            self.abort()
            raise ConfigError(
                f"{self._name} was closed with {left} tensors unwritten, from {spec.name} ({self._written} of {spec.nbytes} bytes) on."
            )
        try:
            with self._naming_errors():
                for file in self._files:
                    file.flush()
            for file in self._files:
                check_free(file.path, self._overwrite)
            for file in reversed(self._files):
                file.commit()
        except BaseException:
            self.abort()
            raise
        self._files = []

    def abort(self) -> None:
        """Remove everything written so far, but what is kept for the next run."""
        for file in self._files:
            if self._keep and not file.committed:
                file.keep()
            else:
                file.discard()
        self._files = []

    @property
    def nbytes(self) -> int:
        """Bytes of all files together."""
        return sum(plan.nbytes for plan in self._plans)

    def _open_next(self) -> None:
        """Open files up to the one of the next tensor, passing tensors without bytes."""
        while True:
            until = self._pending[self._next][0] if self._next < len(self._pending) else len(self._plans) - 1
            while len(self._files) <= until:
                no = len(self._files)
                with self._naming_errors():
                    if self._files:
                        self._files[-1].flush()
                    file = AtomicFile(self.paths[no], key_of(self.paths[no], self._resume) if self._resume else "")
                    self._files.append(file)
                    self._next += self._go_on(file, self._plans[no])
            if self._next == len(self._pending):
                return
            shard, spec = self._pending[self._next]
            if shard < len(self._files):
                if spec.nbytes:
                    return
                self._next += 1

    def _go_on(self, file: AtomicFile, plan: FilePlan) -> int:
        """Put a file where writing goes on: after its header, or after the tensors that are whole, whose number it is.

        The last of them is written again unless the file is complete: a machine that went down may have lost its end.
        """
        ends = [len(plan.header)]
        for spec in plan.specs:
            ends.append(ends[-1] + align_up(spec.nbytes, self.alignment))
        whole = 0
        if file.found >= ends[0] and file.file.read(ends[0]) == plan.header:
            whole = sum(end <= file.found for end in ends[1:])
            whole = whole if file.found == ends[-1] else max(0, whole - 1)
        file.file.seek(0)
        if not whole:
            file.file.write(plan.header)
        file.file.seek(ends[whole])
        file.file.truncate()
        return whole

    @contextmanager
    def _naming_errors(self) -> Iterator[None]:
        """What the system refuses, with the file's name and what becomes of what is there."""
        try:
            yield
        except OSError as e:
            if isinstance(e, QTransformersError):
                raise
            self._keep = bool(self._resume)
            after = (
                "what is written so far is kept: run the same again to go on"
                if self._resume
                else "nothing is left behind"
            )
            raise QTransformersError(f"{self.paths[0].parent / self._name}: {e.strerror or e}; {after}.") from e

    def _finish_tensor(self) -> None:
        shard, spec = self._pending[self._next]
        with self._naming_errors():
            self._files[shard].file.write(b"\0" * (align_up(spec.nbytes, self.alignment) - spec.nbytes))
        self._next, self._written = self._next + 1, 0
        self._open_next()

    def __enter__(self) -> GGUFWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        interrupted = isinstance(error, (KeyboardInterrupt, OSError, MemoryError)) and not isinstance(
            error, QTransformersError
        )
        self._keep |= bool(self._resume) and interrupted
        self.abort()


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse a path that is taken, unless overwriting was asked for, and a folder in any case."""
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; expected the name of a file to write.")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists. Choose another name, or ask to overwrite it.")


def in_the_way(path: Path, split: bool) -> Path | None:
    """What lies where a file is to be written; of one that is `split`, any shard of its name. ConfigError for a folder."""
    if not path.name:
        raise ConfigError(f"{path} is a folder; expected the name of a file to write.")
    if split:
        return min(path.parent.glob(f"{escape(path.name.removesuffix('.gguf'))}-?????-of-?????.gguf"), default=None)
    check_free(path, overwrite=True)
    return path if path.exists() else None


def _spec(name: str, shape: tuple[int, ...], type: QuantType | str) -> TensorSpec:
    if isinstance(type, str):
        if type not in BY_NAME:
            raise ConfigError(f"{name} asks for type {type!r}; expected one of {', '.join(BY_NAME)}.")
        type = BY_NAME[type]
    return TensorSpec(name, tuple(int(d) for d in shape), type)


def _with_alignment(metadata: Mapping[str, Any], alignment: int | None, big_endian: bool) -> tuple[dict[str, Any], int]:
    """The metadata and alignment to write, each in accord with the other; keys about shards are the writer's own."""
    kept = {k: v for k, v in metadata.items() if k not in SPLIT_KEYS}
    stated = kept.get("general.alignment")
    if stated is not None:
        raw = encode(stated, "general.alignment", big_endian)
        found = int.from_bytes(raw[4:8], "big" if big_endian else "little")
        if alignment not in (None, found):
            raise ConfigError(f"alignment is {alignment}, but general.alignment is {found}. Give one of them.")
        alignment = found
    elif alignment not in (None, DEFAULT_ALIGNMENT):
        kept["general.alignment"] = Typed("u32", alignment)
    alignment = DEFAULT_ALIGNMENT if alignment is None else alignment
    if not is_alignment(alignment):
        raise ConfigError(f"alignment is {alignment}; expected a power of two up to {MAX_ALIGNMENT}.")
    return kept, alignment


def _plan_files(
    path: Path, metadata: dict[str, Any], specs: list[TensorSpec], alignment: int,
    max_bytes: int | None, max_tensors: int | None, big_endian: bool,
) -> tuple[tuple[Path, ...], list[FilePlan]]:  # fmt: skip
    """The files to write and what goes into each."""
    if max_bytes is None and max_tensors is None:
        return (path,), [plan_file(metadata, specs, alignment, path.name, big_endian)]
    shards = spread(metadata, specs, alignment, max_bytes, max_tensors, big_endian)
    prefix = path.name[: -len(".gguf")] if path.name.endswith(".gguf") else path.name
    paths = tuple(path.with_name(shard_name(prefix, no, len(shards))) for no in range(len(shards)))
    plans = [
        plan_file(shard_metadata(metadata, no, len(shards), len(specs)), shard, alignment, paths[no].name, big_endian)
        for no, shard in enumerate(shards)
    ]
    return paths, plans


def _raw(data: QTensor | NDArray[Any] | bytes, spec: TensorSpec, file: str) -> NDArray[np.uint8]:
    """The bytes to append, little-endian; ConfigError where they are of another type."""
    if isinstance(data, QTensor):
        if data.type is not spec.type:
            raise ConfigError(f"{file}: {spec.name} got {data.type} data; it was declared {spec.type}.")
        return data.data
    values = np.frombuffer(data, np.uint8) if isinstance(data, (bytes, bytearray, memoryview)) else data
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values).reshape(-1)
    plain = spec.type.block[0] if not spec.type.is_quantized else None
    if values.dtype.newbyteorder("<") != plain:
        raise ConfigError(
            f"{file}: {spec.name} got {values.dtype} values; expected {plain or 'blocks as uint8'} for {spec.type}."
        )
    return np.ascontiguousarray(values, plain).reshape(-1).view(np.uint8)
