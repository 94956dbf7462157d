"""IQ types: 256 values, 4 or 8 neighbours at a time points of a codebook. Source: ggml-quants.c of llama.cpp."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.quants.bits import (
    F32,
    Blocks,
    Fields,
    Values,
    Whole,
    column,
    neighbours,
    pack_neighbours,
    pack_planes,
    planes,
)
from qtransformers.quants.codebooks import codebook
from qtransformers.quants.points import BOOKS, Nearest, encode
from qtransformers.quants.weights import weigh
from qtransformers.types import BY_NAME

HALF, QUARTER, EIGHTH = np.float32(0.5), np.float32(0.25), np.float32(0.125)


def _signs(bits: NDArray[np.uint8]) -> NDArray[Any]:
    """1, or -1 where a bit is set: `[n, k]` to `[n, k, 8]`."""
    return 1 - 2 * neighbours(bits, 1, 8).astype(np.int8)


def iq2_xxs(b: Blocks) -> Values:
    """8 groups of 32 in two words: four points, then four patterns of signs of 7 bits and a scale of 4."""
    index, rest = neighbours(b["qs"][:, ::2], 8, 4), b["qs"][:, 1::2]
    q = codebook("iq2_xxs")[index] * codebook("signs")[neighbours(rest, 7, 4)]
    d = column(b, "d") * (HALF + (rest >> 28)).astype(np.float32) * QUARTER
    return d[..., None, None] * q


def iq2_xs(b: Blocks) -> Values:
    """16 groups of 16: points of 9 bits under patterns of signs of 7; scales of 4 bits."""
    q = codebook("iq2_xs")[b["qs"] & 511] * codebook("signs")[b["qs"] >> 9]
    return _quarter_scales(b) * q.reshape(-1, 16, 16)


def iq2_s(b: Blocks) -> Values:
    """16 groups of 16: points of 10 bits, the upper two in `qh`, and a sign bit for each value."""
    index = b["qs"] | neighbours(b["qh"], 2, 4).reshape(-1, 32).astype(np.uint16) << 8
    q = codebook("iq2_s")[index] * _signs(b["signs"])
    return _quarter_scales(b) * q.reshape(-1, 16, 16)


def _quarter_scales(b: Blocks) -> NDArray[Any]:
    """`d (scale + 1/2) / 4` of 16 groups, `[n, 16, 1]`."""
    scale = neighbours(b["scales"], 4, 2).reshape(-1, 16)
    return (column(b, "d") * (HALF + scale) * QUARTER)[..., None]


def iq3_xxs(b: Blocks) -> Values:
    """8 groups of 32: eight points of 4 values, then, as in IQ2_XXS, signs and scale."""
    rest = b["signs"]
    q = codebook("iq3_xxs")[b["qs"]].reshape(-1, 8, 4, 8) * codebook("signs")[neighbours(rest, 7, 4)]
    d = column(b, "d") * (HALF + (rest >> 28)).astype(np.float32) * HALF
    return d[..., None, None] * q


def iq3_s(b: Blocks) -> Values:
    """8 groups of 32: points of 9 bits, the upper one in `qh`; a sign bit for each value; odd scales."""
    index = b["qs"] | neighbours(b["qh"], 1, 8).reshape(-1, 64).astype(np.uint16) << 8
    q = codebook("iq3_s")[index].reshape(-1, 32, 8) * _signs(b["signs"])
    scale = 2 * neighbours(b["scales"], 4, 2).reshape(-1, 8) + 1
    return (column(b, "d") * scale)[..., None] * q.reshape(-1, 8, 32)


def iq1_s(b: Blocks) -> Values:
    """8 groups of 32: points of 11 bits, the upper three in `qh`, with scale and sign of the shift."""
    index = b["qs"] | neighbours(b["qh"], 3, 4).reshape(-1, 32) << 8
    shift = np.where(b["qh"] & 0x8000, -EIGHTH, EIGHTH)[..., None]
    d = column(b, "d") * (2 * (b["qh"] >> 12 & 7) + 1)
    return d[..., None] * (codebook("iq1")[index].reshape(-1, 8, 32) + shift)


def iq1_m(b: Blocks) -> Values:
    """16 groups of 16: as IQ1_S, with a shift for each point; `d` is spread over the top nibbles of the scales."""
    bits = neighbours(b["qh"], 4, 2).reshape(-1, 32)  # of each point: three of its index, one of its shift
    index = b["qs"] | (bits & 7).astype(np.uint16) << 8
    points = codebook("iq1")[index] + np.where(bits & 8, -EIGHTH, EIGHTH)[..., None]
    nibbles = b["scales"] >> 12 << np.array([0, 4, 8, 12], np.uint16)
    d = np.bitwise_or.reduce(nibbles, 1).view("<f2").astype(np.float32)[:, None]
    scale = 2 * neighbours(b["scales"], 3, 4).reshape(-1, 16) + 1
    return (d * scale)[..., None] * points.reshape(-1, 16, 16)


def _pack_scales(b: Blocks, s: Whole) -> None:
    b["scales"] = pack_neighbours(s.reshape(len(b), -1, 2), 4, "u1")


def _pack_iq2_xxs(b: Blocks, d: F32, s: Whole, found: Nearest, signs: Whole) -> None:
    b["d"] = d
    b["qs"][:, ::2] = pack_neighbours(found.ids, 8, "<u4")
    b["qs"][:, 1::2] = _signs_and_scale(signs, s)


def _signs_and_scale(signs: Whole, s: Whole) -> Whole:
    return pack_neighbours(signs.reshape(len(s), 8, 4) & 127, 7, "<u4") | s.astype("<u4") << 28


def _pack_iq2_xs(b: Blocks, d: F32, s: Whole, found: Nearest, signs: Whole) -> None:
    b["d"] = d
    b["qs"] = found.ids.reshape(-1, 32) | (signs & 127).astype("<u2") << 9
    _pack_scales(b, s)


def _pack_iq2_s(b: Blocks, d: F32, s: Whole, found: Nearest, signs: Whole) -> None:
    b["d"] = d
    b["qs"], b["signs"] = found.ids.reshape(-1, 32) & 255, signs
    b["qh"] = pack_neighbours(found.ids.reshape(-1, 8, 4) >> 8, 2, "u1")
    _pack_scales(b, s)


def _pack_iq3_xxs(b: Blocks, d: F32, s: Whole, found: Nearest, signs: Whole) -> None:
    b["d"] = d
    b["qs"], b["signs"] = found.ids.reshape(-1, 64), _signs_and_scale(signs, s)


def _pack_iq3_s(b: Blocks, d: F32, s: Whole, found: Nearest, signs: Whole) -> None:
    b["d"] = d
    b["qs"], b["signs"] = found.ids.reshape(-1, 64) & 255, signs
    b["qh"] = pack_neighbours(found.ids.reshape(-1, 8, 8) >> 8, 1, "u1")
    _pack_scales(b, s)


def _pack_iq1_s(b: Blocks, d: F32, s: Whole, found: Nearest, signs: Whole) -> None:
    b["d"] = d
    b["qs"] = found.ids.reshape(-1, 32) & 255
    down = found.down[..., 0].astype("<u2")
    b["qh"] = pack_neighbours(found.ids >> 8, 3, "<u2") | s.astype("<u2") << 12 | down << 15


def _pack_iq1_m(b: Blocks, d: F32, s: Whole, found: Nearest, signs: Whole) -> None:
    b["qs"] = found.ids.reshape(-1, 32) & 255
    bits = found.ids >> 8 | found.down.astype("<u2") << 3
    b["qh"] = pack_neighbours(bits.reshape(-1, 16, 2), 4, "u1")
    half = d.astype("<f2").view("<u2")
    nibbles = half[:, None] >> np.array([0, 4, 8, 12], "<u2") & 15
    b["scales"] = pack_neighbours(s.reshape(-1, 4, 4), 3, "<u2") | nibbles << 12


def encode_points(x: F32, type_name: str, importance: F32 | None, power: F32 | None) -> Blocks:
    """Blocks of `x [n, 256]`."""
    b = np.zeros(len(x), BY_NAME[type_name].block)
    w = weigh(np.ascontiguousarray(x.T), type_name, None if importance is None else importance.T, power)
    PACK_POINTS[type_name](b, *encode(x, np.ascontiguousarray(w.T), BOOKS[type_name]))
    return b


def _nibbles_of(q: Whole) -> Whole:
    """The places of values in the codebook of the 4-bit types."""
    return np.searchsorted(codebook("iq4")[0], q)


def _unpack_iq4_nl(b: Blocks) -> Fields:
    return codebook("iq4")[0][planes(b["qs"], 4).reshape(-1, 1, 32)], None, None


def _pack_iq4_nl(b: Blocks, q: Whole, sc: Whole, m: Whole) -> None:
    b["qs"] = pack_planes(_nibbles_of(q).reshape(-1, 2, 16), 4)


def _unpack_iq4_xs(b: Blocks) -> Fields:
    """8 groups of 32 with scales of 6 bits less 32, the upper two in `scales_h`."""
    low, high = neighbours(b["scales_l"], 4, 2).reshape(-1, 8), neighbours(b["scales_h"], 2, 8)
    scale = (low | high.astype(np.uint8) << 4).astype(np.int8) - 32
    return codebook("iq4")[0][planes(b["qs"].reshape(-1, 8, 16), 4).reshape(-1, 8, 32)], scale, None


def _pack_iq4_xs(b: Blocks, q: Whole, sc: Whole, m: Whole) -> None:
    scale = sc + 32
    b["scales_l"] = pack_neighbours((scale & 15).reshape(-1, 4, 2), 4, "u1")
    b["scales_h"] = pack_neighbours(scale >> 4, 2, "<u2")
    b["qs"] = pack_planes(_nibbles_of(q).reshape(-1, 8, 2, 16), 4).reshape(-1, 128)


def _iq4(unpack: Callable[[Blocks], Fields], b: Blocks) -> Values:
    """`d scale` times one of 16 values."""
    q, scale, _ = unpack(b)
    d = column(b, "d")
    return (d if scale is None else d * scale)[..., None] * q


UNPACK = {"IQ4_NL": _unpack_iq4_nl, "IQ4_XS": _unpack_iq4_xs}
PACK = {"IQ4_NL": _pack_iq4_nl, "IQ4_XS": _pack_iq4_xs}
DECODE: dict[str, Callable[[Blocks], Values]] = {
    "IQ2_XXS": iq2_xxs, "IQ2_XS": iq2_xs, "IQ2_S": iq2_s, "IQ3_XXS": iq3_xxs, "IQ3_S": iq3_s,
    "IQ1_S": iq1_s, "IQ1_M": iq1_m, **{name: partial(_iq4, unpack) for name, unpack in UNPACK.items()},
}  # fmt: skip
PACK_POINTS: dict[str, Callable[[Blocks, F32, Whole, Nearest, Whole], None]] = {
    "IQ2_XXS": _pack_iq2_xxs, "IQ2_XS": _pack_iq2_xs, "IQ2_S": _pack_iq2_s, "IQ3_XXS": _pack_iq3_xxs, "IQ3_S": _pack_iq3_s,
    "IQ1_S": _pack_iq1_s, "IQ1_M": _pack_iq1_m,
}  # fmt: skip
SEARCH = dict.fromkeys(PACK_POINTS, encode_points)
