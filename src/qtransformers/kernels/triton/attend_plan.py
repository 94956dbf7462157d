"""What attention launches, and in which tiles: by the sizes of heads, the cache type, and the shared memory of the card."""

from __future__ import annotations

from typing import NamedTuple

FEW = 8  # rows of a sequence up to which its context is cut in parts
PROGRAMS = 2048  # that parts of contexts may make
PARTS = 64  # of one context at most
ANY = 1 << 30
LARGE, MIDDLE = (
    200 << 10,
    160 << 10,
)  # bytes of shared memory that a program may have: H100 and B200 227 KB, A100 163, others 99


class Tile(NamedTuple):
    """Rows and keys of a tile, and the threads and loads under way that it is for."""

    M: int
    N: int
    num_warps: int
    num_stages: int
    card: int = 0  # bytes of shared memory from which on it is for a card


class Launch(NamedTuple):
    """One launch of the kernel, for the sequences that have `least` to `most` rows."""

    least: int
    most: int
    n_tiles: int
    tiles: int  # of each sequence; 0: as many as its rows need
    parts: int  # of a context
    tile: dict[str, int]  # of a Tile, what the launch wants


# Widest head -> bits of a key's number at least -> tiles, the best first. None spills, as tests/kernels/triton/ahead_attend.py
# shows by compiling; which is fastest was reasoned, and not measured on a card.
# Few rows, where the cache's bytes are what takes time.
FEW_ROWS: dict[int, dict[int, tuple[Tile, ...]]] = {
    128: {32: (Tile(16, 16, 4, 2),), 0: (Tile(64, 64, 4, 3),)},
    256: {32: (Tile(16, 16, 4, 2),), 0: (Tile(64, 32, 8, 3),)},
    576: {
        32: (Tile(16, 16, 8, 1),),
        16: (Tile(32, 32, 8, 2, MIDDLE), Tile(32, 16, 8, 2)),
        8: (Tile(32, 32, 8, 2),),
        0: (Tile(16, 32, 4, 2),),
    },
    ANY: {0: (Tile(16, 16, 8, 1),)},
}
# Many rows, where products are.
MANY_ROWS: dict[int, dict[int, tuple[Tile, ...]]] = {
    128: {32: (Tile(32, 16, 4, 1),), 0: (Tile(128, 64, 8, 3, LARGE), Tile(64, 64, 8, 3))},
    256: {
        32: (Tile(16, 16, 4, 1),),
        16: (Tile(64, 32, 8, 2),),
        8: (Tile(64, 32, 8, 2, LARGE), Tile(32, 32, 4, 2)),
        0: (Tile(32, 32, 4, 2),),
    },
    576: {**FEW_ROWS[576], 0: (Tile(32, 32, 8, 1),)},
    ANY: FEW_ROWS[ANY],
}


def plan(
    n_tokens: int, n_sequences: int, most: int, n_kv_heads: int, group: int, context: int, d: int, dv: int, bits: int, shared: int
) -> list[Launch]:  # fmt: skip
    """What is launched for `n_tokens` rows of `n_sequences`, of which one has `most` at most, over `context` tokens at most.

    Keys have `d` numbers of `bits`, values `dv`; `shared` are the bytes of shared memory that a program may have.
    """
    wide = max(d, dv)
    few = min(FEW, most)
    tile = _tile(FEW_ROWS, wide, bits, shared)
    if (m := max(16, _ceil(few * group))) < tile.M:
        tile = tile._replace(M=m, num_warps=4 if wide <= 256 else tile.num_warps)
    tiles = -(-few * group // tile.M)
    parts = min(PARTS, _floor(PROGRAMS // (n_sequences * tiles * n_kv_heads)), _floor(context // tile.N))
    launches = [_launch(1, few, n_sequences * tiles, tiles, parts, tile)]
    if most > FEW:
        tile = _tile(MANY_ROWS, wide, bits, shared)
        n_tiles = n_tokens * group // tile.M + n_sequences
        parts = min(16, _floor(512 // (n_tiles * n_kv_heads)), _floor(context // 512))
        launches.append(_launch(FEW + 1, ANY, n_tiles, 0, parts, tile))
    return launches


def _tile(table: dict[int, dict[int, tuple[Tile, ...]]], wide: int, bits: int, shared: int) -> Tile:
    kinds = next(kinds for widest, kinds in table.items() if wide <= widest)
    tiles = next(tiles for least, tiles in kinds.items() if bits >= least)
    return next(tile for tile in tiles if shared >= tile.card)


def _launch(least: int, most: int, n_tiles: int, tiles: int, parts: int, tile: Tile) -> Launch:
    sizes = {name: value for name, value in tile._asdict().items() if name != "card"}
    return Launch(least, most, n_tiles, tiles, max(parts, 1), sizes)


def _ceil(n: int) -> int:
    """The smallest power of two that is not smaller."""
    return 1 << (n - 1).bit_length()


def _floor(n: int) -> int:
    """The largest power of two that is not larger; 0 for 0."""
    return 1 << n.bit_length() - 1 if n else 0
