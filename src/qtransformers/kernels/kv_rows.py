"""How keys and values lie in a page on the GPU: token by token, the same numbers in the same number of bytes as `kernels.kv`.

A head's keys begin where its page does, its values `kv.key_bytes` further. Both are rows of tokens:

- Floats `[256][D]`.
- Codes in planes of bytes: q8 `[256][D]`; q4 `[256][D / 2]`, byte c holding dimension 2c in its low half, 2c + 1 in its high
  half; q6 three of `[256][D / 4]`, the low four bits of dimensions 4c and 4c + 2, those of 4c + 1 and 4c + 3, and the upper
  two of 4c, 4c + 1, 4c + 2, 4c + 3, lowest first. Then scales `[256][D / group]` f16.

What rows need less than the tiles of a CPU is left unused at the end of keys, and of values.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qtransformers.kernels import kv
from qtransformers.kernels.kv import PAGE_TOKENS, Bytes, Kind


def from_cpu_layout(pages: Bytes, codec: str, dk: int, dv: int) -> Bytes:
    """Pages `[..., head_bytes]` of rows, from pages as `kernels.kv` lays them."""
    return _turn(pages, codec, dk, dv, _of_tiles)


def to_cpu_layout(pages: Bytes, codec: str, dk: int, dv: int) -> Bytes:
    """Pages `[..., head_bytes]` as `kernels.kv` lays them, from pages of rows."""
    return _turn(pages, codec, dk, dv, _to_tiles)


def read_codes(part: Bytes, kind: Kind, d: int) -> tuple[Bytes, NDArray[np.float16]]:
    """Codes `[256, D]` and scales `[256, D / group]` of a head's keys or values in rows."""
    n = PAGE_TOKENS * d * kind.bits // 8
    planes, scales = part[:n], part[n : n + PAGE_TOKENS * d // kv.group(d) * 2]
    if kind.bits == 8:
        codes = planes
    elif kind.bits == 4:
        codes = np.stack([planes & 15, planes >> 4], -1)
    else:
        even, odd, high = planes.reshape(3, -1)
        low = np.stack([even & 15, odd & 15, even >> 4, odd >> 4], -1)
        codes = low | (high[:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3) << 4
    return codes.reshape(PAGE_TOKENS, d), scales.view(np.float16).reshape(PAGE_TOKENS, -1)


def lay_codes(codes: Bytes, scales: NDArray[np.float16], kind: Kind) -> Bytes:
    """A head's keys or values in rows, from codes `[256, D]` and scales `[256, D / group]`."""
    if kind.bits == 8:
        planes = codes
    elif kind.bits == 4:
        planes = _join(codes[:, 0::2], codes[:, 1::2], bits=4)
    else:
        fours = [codes[:, i::4] for i in range(4)]
        a, b, c, d = (x & np.uint8(15) for x in fours)
        high = _join(*(x >> np.uint8(4) for x in fours), bits=2)
        planes = np.stack([_join(a, c, bits=4), _join(b, d, bits=4), high])
    return np.concatenate([planes.ravel(), scales.ravel().view(np.uint8)])


def _turn(pages: Bytes, codec: str, dk: int, dv: int, turn: Callable[[Bytes, Kind, bool, int], Bytes]) -> Bytes:
    sides = zip(kv.CODECS[codec], (dk, dv), (True, False), strict=True)
    cut = kv.key_bytes(kv.CODECS[codec][0], dk)
    flat = np.ascontiguousarray(pages).reshape(-1, pages.shape[-1])
    out = np.zeros_like(flat)
    for (kind, d, is_key), part in zip(sides, (slice(None, cut), slice(cut, None)), strict=True):
        for source, target in zip(flat[:, part], out[:, part], strict=True):
            moved = turn(np.ascontiguousarray(source), kind, is_key, d)
            target[: len(moved)] = moved
    return out.reshape(pages.shape)


def _of_tiles(part: Bytes, kind: Kind, is_key: bool, d: int) -> Bytes:
    if kind.planes:
        return lay_codes(*kv.read_codes(part, kind, is_key, d), kind)
    return np.ascontiguousarray(kv.read_floats(part, kind, is_key, d)).ravel().view(np.uint8)


def _to_tiles(part: Bytes, kind: Kind, is_key: bool, d: int) -> Bytes:
    if kind.planes:
        return kv.lay_codes(*read_codes(part, kind, d), kind, is_key)
    n = PAGE_TOKENS * d * kind.bits // 8
    floats = part[:n].view(np.float32 if kind.bits == 32 else np.float16)
    return kv.lay_floats(floats.reshape(PAGE_TOKENS, d), is_key)


def _join(*fields: Bytes, bits: int) -> Bytes:
    """Bytes of small numbers, the first in the lowest bits."""
    joined: Bytes = np.bitwise_or.reduce([x << np.uint8(bits * i) for i, x in enumerate(fields)])
    return joined
