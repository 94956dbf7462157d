"""What weights take for themselves on their way to a GPU, beside what they take there."""

from __future__ import annotations

from dataclasses import dataclass

CHUNK = 64 << 20  # bytes of a buffer


@dataclass(frozen=True)
class Staging:
    """Bytes, free again when all has arrived: pinned in main memory, and on the device."""

    pinned: int
    device: int


def staging(decoded: bool = False, chunk: int = CHUNK) -> Staging:
    """Two buffers of `chunk` bytes that take turns, and one on the device where blocks become floats on arrival."""
    return Staging(2 * chunk, chunk if decoded else 0)
