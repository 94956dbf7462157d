"""What GPUs take beside weights and cache, as far as plans count it without torch: on the way there, and for products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[int, int, float], None]  # bytes that were sent, bytes in all, GB/s until now
CHUNK = 64 << 20  # bytes of a buffer
SLAB_BYTES = 1 << 27  # of weights decoded at once for a product of many tokens
# Up to which tiles are decoded in registers: two of them. A tile decodes anew, 10 instructions a weight of Q4_K where an H200 issues 30 T/s,
# which is 0.34 ps; a scratch is 2.6 bytes a weight at 4.8 TB/s, 0.53 ps, however many tokens read it, and 0.42 ps to read once.
TILE_TOKENS = {"fast": 128, "high": 32, "exact": 32}
PARTS_BYTES = (
    528 * 64 * 64 * 4
)  # of a product of fewer tokens that is computed in parts: a tile for each program of a busy card
WORKSPACES = 2 * (32 << 20)  # of the vendor's library: of the stream of forwards, and of that of captures


@dataclass(frozen=True)
class Staging:
    """Bytes, free again when all has arrived: pinned in main memory, and on the device."""

    pinned: int
    device: int


def staging(decoded: bool = False, chunk: int = CHUNK) -> Staging:
    """Two buffers of `chunk` bytes that take turns, and one on the device where blocks become floats on arrival."""
    return Staging(2 * chunk, chunk if decoded else 0)


def slab_rows(rows: int, columns: int, accuracy: str) -> int:
    """Rows of a matrix decoded at once for a product of many tokens."""
    return min(rows, max(1, SLAB_BYTES // max(columns * float_bytes(accuracy), 1)))


def product_bytes(rows: int, columns: int, tokens: int, accuracy: str) -> int:
    """The most that a product of a matrix takes beside x and y: x in its order, and decoded rows, or results in parts."""
    each = float_bytes(accuracy)
    if tokens > TILE_TOKENS[accuracy]:
        return (tokens + slab_rows(rows, columns, accuracy)) * columns * each
    return tokens * columns * each + min(PARTS_BYTES, 8 * 4 * tokens * rows)


def float_bytes(accuracy: str) -> int:
    """Of a number as products of many tokens take it."""
    return 2 if accuracy == "fast" else 4
