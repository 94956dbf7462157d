"""How keys and values lie in a cache page: the table of cache types, the layout, and its codecs in plain NumPy.

In a page of 256 tokens every KV head has `head_bytes` of its own: its keys, then its values.

- Keys: tiles of 16 tokens, lanes are tokens. Floats `[16 tiles][D][16]`, D rounded up to 4; codes in planes of 8, 4 or 2 bits,
  F = 8 / bits of them in a byte: `[16 tiles][D / 4F][16 lanes][4]`, byte j of vector e holding dimensions 4Fe + 4f + j for
  f < F, lowest bits first. Then scales `[16 tiles][D / group][16]` f16.
- Values: rows of D rounded up to 16. Floats `[256][D]`; codes as 32-bit words `[256 / 64F][16][D]`, word i of block b holding
  tokens 64Fb + 64f + 16h + i at bit `bits * f + 8h`. Then scales `[D / group][256]` f16.

Six bits are a plane of four (the low ones) and a plane of two. A code c stands for (c - 2^(bits - 1)) * scale. Before they are
rounded, keys and values are rotated by a Hadamard matrix as long as a group, 32 or what power of two below divides D.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
PAGE_TOKENS = 256
TILE = 16  # tokens of a tile of keys, and what rows of values are padded to


@dataclass(frozen=True)
class Kind:
    """How keys, or values, are kept. `id` is that of `csrc/kv.h`."""

    id: int
    bits: int
    planes: tuple[int, ...] = ()  # bits of each plane of codes, the lowest first; none: floats
    query: int = 0  # queries are rounded to -query..query of each group's largest before they meet such keys


KINDS = {
    "f32": Kind(0, 32),
    "f16": Kind(1, 16),
    "q8": Kind(2, 8, (8,), 32512),
    "q6": Kind(3, 6, (4, 2), 127),
    "q4": Kind(4, 4, (4,), 127),
}
# A cache type: how it keeps keys, how values.
CODECS = {name: (kind, kind) for name, kind in KINDS.items()} | {"k8v4": (KINDS["q8"], KINDS["q4"])}


def group(d: int) -> int:
    """Values that share a scale, and are rotated together."""
    return min(32, d & -d) or 1


def why_not(codec: str, dk: int, dv: int) -> str | None:
    """Why heads of these sizes cannot be kept so; None where they can."""
    for kind, d, what in zip(CODECS[codec], (dk, dv), ("keys", "values"), strict=True):
        if kind.planes and d % 8:
            return f"heads of {d} {what} cannot be kept in {codec}, which needs a multiple of 8"
    return None


def key_bytes(kind: Kind, d: int) -> int:
    """Bytes of a head's keys in a page."""
    if not kind.planes:
        return PAGE_TOKENS * _up(d, 4) * kind.bits // 8
    return sum(_up(d, 32 // b) * PAGE_TOKENS * b // 8 for b in kind.planes) + d // group(d) * PAGE_TOKENS * 2


def value_bytes(kind: Kind, d: int) -> int:
    """Bytes of a head's values in a page."""
    scales = d // group(d) * PAGE_TOKENS * 2 if kind.planes else 0
    return PAGE_TOKENS * _up(d, TILE) * kind.bits // 8 + scales


def head_bytes(codec: str, dk: int, dv: int) -> int:
    """Bytes of a head in a page."""
    keys, values = CODECS[codec]
    return key_bytes(keys, dk) + value_bytes(values, dv)


def bytes_per_token(codec: str, n_kv_heads: int, dk: int, dv: int) -> int:
    """Bytes that a token takes in one layer."""
    return n_kv_heads * head_bytes(codec, dk, dv) // PAGE_TOKENS


def rotate(x: NDArray[Any], n: int) -> NDArray[Any]:
    """Hadamard matrix of order `n`, divided by its root, times every `n` values of the last axis; its own inverse."""
    y = x
    for h in (1 << i for i in range(n.bit_length() - 1)):
        y = y.reshape(*x.shape[:-1], -1, 2, h)
        a, b = y[..., :1, :], y[..., 1:, :]
        y = np.concatenate([a + b, a - b], -2)
    return y.reshape(x.shape) * x.dtype.type(n**-0.5)


def quantise(x: NDArray[np.float32], bits: int) -> tuple[Bytes, NDArray[np.float16]]:
    """Codes `[..., D]` and scales `[..., D / group]` of `[..., D]`. The value farthest from 0 gets the lowest code.

    A group with an infinity or NaN, or too large for a half, decodes to NaN.
    """
    g = x.reshape(*x.shape[:-1], -1, group(x.shape[-1]))
    half = 1 << (bits - 1)
    with np.errstate(all="ignore"):
        low, high = g.min(-1), g.max(-1)
        scales = (np.where(-low >= high, low, high) / np.float32(-half) + np.float32(0)).astype(np.float16)
        wide = scales.astype(np.float32)
        inverse = np.where(wide == 0, np.float32(0), np.float32(1) / wide)[..., None]
        codes = np.clip(np.rint(g * inverse) + half, 0, 2 * half - 1)
    bad = ~np.isfinite(g).all(-1)
    codes[bad] = 0
    scales[bad] = np.nan
    return codes.astype(np.uint8).reshape(x.shape), scales


def quantise_query(x: NDArray[np.float32], limit: int) -> NDArray[np.float32]:
    """Queries `[..., D]` rounded to whole multiples, up to `limit`, of what makes each group's largest just that."""
    g = x.reshape(*x.shape[:-1], -1, group(x.shape[-1]))
    with np.errstate(all="ignore"):
        largest = np.abs(g).max(-1, keepdims=True)
        step, inverse = largest / np.float32(limit), np.where(largest == 0, np.float32(0), np.float32(limit) / largest)
        y = np.rint(g * inverse) * step
    y[~np.isfinite(g).all(-1)] = np.nan
    return y.reshape(x.shape)


def encode_page(x: NDArray[np.float32], kind: Kind, is_key: bool) -> Bytes:
    """A head's page of bytes from `[256, D]` keys or values."""
    d = x.shape[-1]
    if not kind.planes:
        with np.errstate(over="ignore"):
            return lay_floats(x.astype(np.float32 if kind.bits == 32 else np.float16), is_key)
    return lay_codes(*quantise(rotate(x, group(d)), kind.bits), kind, is_key)


def lay_floats(x: NDArray[Any], is_key: bool) -> Bytes:
    """A head's page of bytes from floats `[256, D]`, as wide as they are kept."""
    wide = np.pad(x, ((0, 0), (0, _up(x.shape[1], 4 if is_key else TILE) - x.shape[1])))
    return _by_tile(wide) if is_key else wide.ravel().view(np.uint8)


def lay_codes(codes: Bytes, scales: NDArray[np.float16], kind: Kind, is_key: bool) -> Bytes:
    """A head's page of bytes from codes `[256, D]` and scales `[256, D / group]`."""
    lay = _lay_keys if is_key else _lay_values
    planes = [
        lay(codes >> np.uint8(sum(kind.planes[:i])) & np.uint8((1 << b) - 1), b) for i, b in enumerate(kind.planes)
    ]
    return np.concatenate([*planes, _by_tile(scales) if is_key else scales.T.ravel().view(np.uint8)])


def decode_page(page: Bytes, kind: Kind, is_key: bool, d: int) -> NDArray[np.float32]:
    """Keys or values `[..., 256, D]` of pages `[..., bytes]`, rotated as they are kept."""
    if not kind.planes:
        return read_floats(page, kind, is_key, d).astype(np.float32)
    codes, scales = read_codes(page, kind, is_key, d)
    with np.errstate(invalid="ignore"):
        return (codes.astype(np.float32) - (1 << (kind.bits - 1))) * scales.astype(np.float32).repeat(group(d), -1)


def read_floats(page: Bytes, kind: Kind, is_key: bool, d: int) -> NDArray[Any]:
    """Floats `[..., 256, D]` of pages `[..., bytes]`, as wide as they are kept."""
    lead = page.shape[:-1]
    x = np.ascontiguousarray(page).view(np.float32 if kind.bits == 32 else np.float16)
    x = x.reshape(*lead, 16, -1, 16).swapaxes(-1, -2) if is_key else x
    return x.reshape(*lead, PAGE_TOKENS, -1)[..., :d]


def read_codes(page: Bytes, kind: Kind, is_key: bool, d: int) -> tuple[Bytes, NDArray[np.float16]]:
    """Codes `[..., 256, D]` and scales `[..., 256, D / group]` of pages `[..., bytes]`."""
    lead = page.shape[:-1]
    codes = np.zeros((*lead, PAGE_TOKENS, d), np.uint8)
    at = shift = 0
    for b in kind.planes:
        n = _up(d, 32 // b if is_key else TILE) * PAGE_TOKENS * b // 8
        codes |= (_read_keys if is_key else _read_values)(page[..., at : at + n], b)[..., :d] << shift
        at, shift = at + n, shift + b
    scales = np.ascontiguousarray(page[..., at:]).view(np.float16)
    scales = scales.reshape((*lead, 16, -1, 16) if is_key else (*lead, -1, PAGE_TOKENS)).swapaxes(-1, -2)
    return codes, scales.reshape(*lead, PAGE_TOKENS, -1)


def store(page: Bytes, kind: Kind, is_key: bool, slots: NDArray[np.integer], x: NDArray[np.float32]) -> None:
    """Put `[n, D]` keys or values into a head's page at `slots [n]`; all other slots keep their bytes."""
    whole = np.zeros((PAGE_TOKENS, x.shape[-1]), np.float32)
    whole[slots] = x
    mask = slot_bits(slots, kind, is_key, x.shape[-1])
    page[:] = (page & ~mask) | (encode_page(whole, kind, is_key) & mask)


def slot_bits(slots: NDArray[np.integer], kind: Kind, is_key: bool, d: int) -> Bytes:
    """The bits of a head's page that belong to some slots, set."""
    mine = np.zeros((PAGE_TOKENS, 1), np.uint32)
    mine[slots] = 0xFFFFFFFF
    if not kind.planes:
        whole = np.repeat(mine, _up(d, 4 if is_key else TILE), 1).astype(np.uint32 if kind.bits == 32 else np.uint16)
        return _by_tile(whole) if is_key else whole.ravel().view(np.uint8)
    lay, unit = (_lay_keys, 32) if is_key else (_lay_values, 0)
    planes = [
        lay((np.repeat(mine, _up(d, unit // b or TILE), 1) & ((1 << b) - 1)).astype(np.uint8), b) for b in kind.planes
    ]
    scales = np.repeat(mine, d // group(d), 1).astype(np.uint16)
    return np.concatenate([*planes, _by_tile(scales) if is_key else scales.T.ravel().view(np.uint8)])


def _by_tile(x: NDArray[Any]) -> Bytes:
    """`[256, n]` as `[16 tiles][n][16]`."""
    return x.reshape(16, 16, -1).swapaxes(1, 2).ravel().view(np.uint8)


def _lay_keys(codes: Bytes, bits: int) -> Bytes:
    fields = 8 // bits
    wide = np.pad(codes, ((0, 0), (0, _up(codes.shape[1], 4 * fields) - codes.shape[1])))
    x = wide.reshape(16, 16, -1, fields, 4).transpose(0, 2, 3, 1, 4)  # tile, vector, field, lane, byte
    shifts = np.array([bits * f for f in range(fields)], np.uint8)[:, None, None]
    return np.bitwise_or.reduce(x << shifts, 2).ravel()


def _read_keys(plane: Bytes, bits: int) -> Bytes:
    fields = 8 // bits
    x = plane.reshape(*plane.shape[:-1], 16, -1, 1, 16, 4)
    shifts = np.array([bits * f for f in range(fields)], np.uint8)[:, None, None]
    x = np.moveaxis((x >> shifts) & np.uint8((1 << bits) - 1), -2, -4)  # tile, lane, vector, field, byte
    return x.reshape(*plane.shape[:-1], PAGE_TOKENS, -1)


def _lay_values(codes: Bytes, bits: int) -> Bytes:
    wide = np.pad(codes, ((0, 0), (0, _up(codes.shape[1], TILE) - codes.shape[1])))
    x = wide.reshape(-1, 8 // bits * 4, 16, wide.shape[1]).astype(np.uint32) << _value_bits(bits)
    return np.bitwise_or.reduce(x, 1).ravel().view(np.uint8)


def _read_values(plane: Bytes, bits: int) -> Bytes:
    words = np.ascontiguousarray(plane).view(np.uint32)
    words = words.reshape(*plane.shape[:-1], PAGE_TOKENS * bits // 512, 1, 16, -1)
    codes = (words >> _value_bits(bits)) & np.uint32((1 << bits) - 1)
    return codes.astype(np.uint8).reshape(*plane.shape[:-1], PAGE_TOKENS, -1)


def _value_bits(bits: int) -> NDArray[np.uint32]:
    """Where the tokens of a word lie, `[fields * 4, 1, 1]`."""
    return np.array([bits * f + 8 * h for f in range(8 // bits) for h in range(4)], np.uint32)[:, None, None]


def _up(n: int, to: int) -> int:
    return -(-n // to) * to
