"""Files of the Hub over plain HTTP: parts of them, or all of one into the usual cache, resumed where it was interrupted.

The layout of the cache is huggingface_hub's public one: blobs by hash, snapshots of links to them, refs by branch.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from qtransformers.errors import NetworkError, QTransformersError
from qtransformers.load.files import memory_text

CHUNK = 1 << 20  # bytes
STALLS = 2  # attempts in a row that bring nothing
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # a hash or commit that may be a file's name

Progress = Callable[[int, int], None]  # (bytes at hand, bytes in all)


@dataclass(frozen=True)
class Remote:
    """A file of the Hub at one commit: where its bytes are, and what they must be."""

    name: str
    url: str
    size: int
    etag: str  # the sha256 of large files
    headers: Mapping[str, str]
    timeout: float  # seconds without a byte
    repo: str = ""

    @property
    def title(self) -> str:
        """Repository and name, for messages."""
        return f"{self.repo}: {self.name}" if self.repo else self.name

    def part(self, start: int, stop: int) -> bytes:
        """Bytes `[start, stop)` of it."""
        found = b"".join(_take(stream(self, start, stop), stop - start))
        if len(found) != stop - start:
            raise NetworkError(
                f"{self.title}: the server sent {len(found)} bytes where {stop - start} were asked for. Try again."
            )
        return found


def locate(url: str, name: str, token: str | None, timeout: float, repo: str = "") -> Remote:
    """Where the bytes of a file are, by one request without a body; credentials stay with the host they are for."""
    from huggingface_hub import get_hf_file_metadata
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    found = get_hf_file_metadata(url, token=token, timeout=timeout)
    headers = build_hf_headers(token=token)
    if urlsplit(found.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)
    if found.size is None or not found.etag:
        raise NetworkError(f"{name}: the server states neither size nor hash of it. Download it by hand.")
    if not _PLAIN.fullmatch(found.etag):
        raise NetworkError(
            f"{name}: the server states the hash {found.etag[:60]!r}, which is none. Download it by hand."
        )
    return Remote(name, found.location, found.size, found.etag, headers, timeout, repo)


def stream(remote: Remote, start: int, stop: int) -> Iterator[bytes]:
    """Bytes `[start, stop)` as they come; from a server that knows no ranges, those before are passed over."""
    headers = {**remote.headers, "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    with _answer(remote.url, headers, remote.timeout) as (status, pieces):
        if status not in (200, 206):
            raise NetworkError(f"{remote.title}: the server answered {status}. Run again: what came is kept.")
        passed = start if status == 200 else 0
        left = stop - start
        for piece in pieces:
            skipped = min(passed, len(piece))
            passed -= skipped
            found = piece[skipped : skipped + left]
            left -= len(found)
            yield found
            if not left:
                return


@contextmanager
def _answer(url: str, headers: Mapping[str, str], timeout: float) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Status and body of a request, in either of the HTTP libraries that huggingface_hub has been built on."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    session: Any = get_session()
    if hasattr(session, "stream"):  # httpx
        with session.stream("GET", url, headers=dict(headers), timeout=timeout, follow_redirects=True) as answer:
            yield answer.status_code, answer.iter_raw()
    else:  # requests
        with session.get(url, headers=dict(headers), timeout=timeout, stream=True) as answer:
            yield answer.status_code, answer.iter_content(1 << 16)


def _take(pieces: Iterator[bytes], most: int) -> Iterator[bytes]:
    for piece in pieces:
        yield piece[:most]
        most -= len(piece)
        if most <= 0:
            return


def store(remote: Remote, folder: Path, commit: str, progress: Progress = lambda done, total: None) -> Path:
    """Bring a file into the cache's `folder` of its repository; the path in the snapshot of `commit`.

    What was fetched before an interruption is kept and continued. NetworkError: no connection, or bytes that are not the
    listed ones, which are then removed. QTransformersError where the disk has no room.
    """
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    inside = PurePosixPath(remote.name)
    if inside.is_absolute() or ".." in inside.parts or "\\" in remote.name or not _PLAIN.fullmatch(commit):
        raise NetworkError(f"{remote.name[:60]!r} at {commit[:60]!r} is no place in a cache. The listing is damaged.")
    blob = folder / "blobs" / remote.etag
    link = folder / "snapshots" / commit / remote.name
    blob.parent.mkdir(parents=True, exist_ok=True)
    locks = folder.parent / ".locks" / folder.name
    locks.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(locks / f"{remote.etag}.lock"):
        if not blob.is_file():
            _fetch(remote, blob, progress)
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        with suppress(FileNotFoundError):
            link.unlink()  # a link whose blob is gone
        try:
            link.symlink_to(os.path.relpath(blob, link.parent))
        except OSError:  # a file system without links
            shutil.copyfile(blob, link)
    return link


def _fetch(remote: Remote, blob: Path, progress: Progress) -> None:
    """Fill the blob's unfinished file, check it, give it its name."""
    part = blob.with_name(f"{blob.name}.incomplete")
    done = part.stat().st_size if part.is_file() else 0
    if done > remote.size:
        part.unlink()
        done = 0
    free = shutil.disk_usage(blob.parent).free
    if remote.size - done > free:
        raise QTransformersError(
            f"{remote.title} needs {memory_text(remote.size - done)} more on disk; {blob.parent} has {memory_text(free)} free. "
            "Free some (qtransformers list, qtransformers rm), or set HF_HOME to another disk."
        )
    digest = hashlib.sha256()
    with open(part, "ab+") as file:
        file.seek(0)
        while piece := file.read(CHUNK):
            digest.update(piece)
        _append(remote, file, digest, progress)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):  # read back from disk it comes in huge pages
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if _SHA256.fullmatch(remote.etag) and digest.hexdigest() != remote.etag:
        part.unlink()
        raise NetworkError(
            f"{remote.title} came with sha256 {digest.hexdigest()[:16]}...; the Hub lists {remote.etag[:16]}... "
            "It was damaged on its way or is damaged there. What came was removed: run again."
        )
    os.replace(part, blob)


def _append(remote: Remote, file: Any, digest: Any, progress: Progress) -> None:
    """The rest of the file, with new attempts as long as they bring something."""
    stalls = 0
    while (done := file.tell()) < remote.size:
        progress(done, remote.size)
        try:
            for piece in stream(remote, done, remote.size):
                file.write(piece)
                digest.update(piece)
                progress(file.tell(), remote.size)
        except NetworkError:
            raise
        except Exception as e:  # each HTTP library has its own family of errors
            lost: Exception | None = e
        else:
            lost = None
        if file.tell() == remote.size:
            break
        stalls = stalls + 1 if file.tell() == done else 0
        if stalls >= STALLS:
            reason = (
                f"{type(lost).__name__}: {lost}, timeout {remote.timeout:g} s"
                if lost
                else "the server ended the connection"
            )
            raise NetworkError(
                f"{remote.title}: {memory_text(done)} of {memory_text(remote.size)} came, and then no more ({reason}). "
                "Check the connection and run again: it goes on from there."
            )
    progress(remote.size, remote.size)
