"""Encoders of the IQ types whose neighbours are together a point of a codebook: which point, which signs, which scale.

As in search.py, scales of a group are tried, each with the points that are nearest at it, and fitted to them in closed form; then
rounded together, an odd number each. The nearest point, by weighted error, is sought among the few that lie nearest to the place to
which the values round one by one. csrc/isa/points.h has the same operations in the same order, and the same bits.

Arrays are `[n, groups, cells, values]`: blocks, groups with a scale, cells that are points.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from qtransformers.quants.bits import F32, Whole
from qtransformers.quants.codebooks import codebook
from qtransformers.quants.search import clip, inverse, ratio, steps, to_half, whole

NEAR = 16  # points among which the nearest is sought


@dataclass(frozen=True)
class Book:
    """How a type uses a codebook."""

    name: str
    group: int  # values that share a scale
    signs: str  # even: each 8 have an even number of minuses; free: a bit each; none: points have signs
    unit: float  # a group's scale is `d unit` times an odd number
    odd: int  # the largest of these
    tries: tuple[float, float, int]  # first, step, number: reach of the book over the largest magnitude of a group
    shifts: str = "none"  # points are shifted by 1/8 up or down: each group, each cell


BOOKS = {
    "IQ2_XXS": Book("iq2_xxs", 32, "even", 1 / 8, 31, (0.6, 0.12, 7)),
    "IQ2_XS": Book("iq2_xs", 16, "even", 1 / 8, 31, (0.6, 0.12, 7)),
    "IQ2_S": Book("iq2_s", 16, "free", 1 / 8, 31, (0.6, 0.12, 7)),
    "IQ3_XXS": Book("iq3_xxs", 32, "even", 1 / 4, 31, (0.6, 0.12, 7)),
    "IQ3_S": Book("iq3_s", 32, "free", 1, 31, (0.6, 0.12, 7)),
    "IQ1_S": Book("iq1", 32, "none", 1, 15, (0.5, 0.25, 6), "group"),
    "IQ1_M": Book("iq1", 16, "none", 1, 15, (0.5, 0.25, 6), "cell"),
}
ROUNDS = 2
SHIFT = np.float32(0.125)


@dataclass(frozen=True)
class Table:
    """A codebook prepared for the search."""

    levels: F32  # [L] values of a coordinate, rising
    ids: NDArray[np.uint16]  # [L ** values, NEAR] the points nearest to each place of levels, nearest first
    values: NDArray[np.int8]  # [L ** values, values, NEAR] these points


@cache
def table(name: str) -> Table:
    """The points nearest to every combination of levels, ties by index."""
    book = codebook(name).astype(np.int32)
    levels = np.unique(book)
    size = book.shape[1]
    ids = np.empty((len(levels) ** size, NEAR), np.uint16)
    for start in range(0, len(ids), 1024):
        place = np.arange(start, min(start + 1024, len(ids)))
        at = levels[place[:, None] // len(levels) ** np.arange(size) % len(levels)]
        distance = (at**2).sum(1)[:, None] - 2 * at @ book.T + (book**2).sum(1)
        order = distance.astype(np.int64) * len(book) + np.arange(len(book))  # no two are alike
        ids[start : start + 1024] = np.sort(np.partition(order, NEAR, 1)[:, :NEAR], 1) % len(book)
    values = np.ascontiguousarray(codebook(name)[ids].swapaxes(1, 2))
    for array in (ids, values):
        array.setflags(write=False)
    return Table(levels.astype(np.float32), ids, values)


@dataclass
class Nearest:
    """Points at some scale, and weighted sums over groups."""

    ids: NDArray[np.uint16]  # [n, groups, cells]
    down: NDArray[np.bool_]  # [n, groups, cells] whether a point is shifted down
    qq: F32  # [n, groups]
    qx: F32


def _nearest(x: F32, w: F32, scale: F32, book: Book) -> Nearest:
    """The nearest points at scales `[n, groups]`."""
    if book.shifts == "none":
        ids, qq, qx = _points(x, w, scale, book, np.float32(0))
        return Nearest(ids, np.zeros(ids.shape, bool), _over_cells(qq), _over_cells(qx))
    up, down = (_points(x, w, scale, book, shift) for shift in (SHIFT, -SHIFT))
    s = scale[..., None]
    if book.shifts == "cell":
        lower = s * (s * down[1] - 2 * down[2]) < s * (s * up[1] - 2 * up[2])
        ids = np.where(lower, down[0], up[0])
        qq, qx = (np.where(lower, b, a) for a, b in zip(up[1:], down[1:], strict=True))
        return Nearest(ids, lower, _over_cells(qq), _over_cells(qx))
    sums = [(_over_cells(qq), _over_cells(qx)) for _, qq, qx in (up, down)]
    lower = scale * (scale * sums[1][0] - 2 * sums[1][1]) < scale * (scale * sums[0][0] - 2 * sums[0][1])
    qq, qx = (np.where(lower, b, a) for a, b in zip(*sums, strict=True))
    each = np.broadcast_to(lower[..., None], up[0].shape)
    return Nearest(np.where(each, down[0], up[0]), each, qq, qx)


def _over_cells(v: F32) -> F32:
    """Sums over the last axis, one after the other."""
    acc = v[..., 0].copy()
    for i in range(1, v.shape[-1]):
        acc += v[..., i]
    return acc


def _points(x: F32, w: F32, scale: F32, book: Book, shift: np.float32) -> tuple[NDArray[np.uint16], F32, F32]:
    """Of each cell the point, and the weighted sums of its squared values, and of its values times x."""
    t = table(book.name)
    v = x * inverse(scale)[..., None, None] - shift
    middles = (t.levels[1:] + t.levels[:-1]) / 2
    level = np.searchsorted(middles, v)
    place = (level * len(t.levels) ** np.arange(x.shape[-1])).sum(-1)
    near = t.values[place]
    qq = np.zeros((*place.shape, NEAR), np.float32)
    qx = np.zeros_like(qq)
    for i in range(x.shape[-1]):
        q = near[..., i, :].astype(np.float32) + shift
        wq = w[..., i, None] * q
        qq += wq * q
        qx += wq * x[..., i, None]
    s = scale[..., None, None]
    best = (s * (s * qq - 2 * qx)).argmin(-1)[..., None]
    ids, qq, qx = (np.take_along_axis(v, best, -1)[..., 0] for v in (t.ids[place], qq, qx))
    return ids, qq, qx


def _signed(x: F32, w: F32, book: Book) -> tuple[F32, NDArray[np.uint8]]:
    """Values `[n, 256]` with their signs taken off, and these, a byte for each eight values `[n, 32]`."""
    if book.signs == "none":
        return x, np.zeros((len(x), 32), np.uint8)
    eights, cost = x.reshape(len(x), 32, 8), (w * x * x).reshape(len(x), 32, 8)
    minus = eights < 0
    if book.signs == "even":  # the sign that costs least is wrong where their number is odd
        wrong = np.arange(8) == cost.argmin(-1)[..., None]
        minus = minus ^ (wrong & (minus.sum(-1) % 2 == 1)[..., None])
    bare = np.where(minus, -eights, eights).reshape(x.shape)
    return bare, np.packbits(minus, axis=-1, bitorder="little")[..., 0]


def _groups(x: F32, w: F32, book: Book) -> F32:
    """The scale of each group on its own."""
    top = table(book.name).levels[-1] + (SHIFT if book.shifts != "none" else np.float32(0))
    reach = np.abs(x).max((-1, -2))
    scale, gain = np.zeros_like(reach), np.zeros_like(reach)

    def attempt(at: F32) -> None:
        nonlocal scale, gain
        found = _nearest(x, w, at, book)
        s = ratio(found.qx, found.qq)
        g = s * found.qx
        better = (g > gain) & (s > 0)
        scale, gain = np.where(better, s, scale), np.where(better, g, gain)

    for part in steps(*book.tries):
        attempt(reach * (part / top))
    attempt(scale)
    return scale


def _odd(v: F32, book: Book) -> F32:
    return 2 * whole(clip((v - 1) * np.float32(0.5), 0, (book.odd - 1) / 2)) + 1


def search(x: F32, w: F32, book: Book) -> tuple[F32, F32, Nearest]:
    """`d [n]`, odd scales `[n, groups]` and points of values and weights `[n, groups, cells, values]`."""
    unit = np.float32(book.unit)
    scale = _groups(x, w, book)
    curvature = _nearest(x, w, scale, book).qq
    d = _rounding(scale, curvature, book)
    sc = _odd(scale * inverse(d * unit)[:, None], book)
    for turn in range(ROUNDS):
        error, old = np.full_like(scale, np.inf), sc
        qq, qx = scale, scale
        for step in (0, -2, 2, -4, 4) if turn == 0 else (0, -2, 2):
            trial = clip(old + np.float32(step), 1, book.odd)
            s = trial * (d * unit)[:, None]
            found = _nearest(x, w, s, book)
            e = s * (s * found.qq - 2 * found.qx)
            better = e < error
            error, sc = np.where(better, e, error), np.where(better, trial, sc)
            qq, qx = np.where(better, found.qq, qq), np.where(better, found.qx, qx)
        t = sc * unit
        a, p = _over_cells(t * t * qq), _over_cells(t * qx)
        new = to_half(ratio(p, a))
        d = np.where((new > 0) & (new * (new * a - 2 * p) < d * (d * a - 2 * p)), new, d)
    return d, sc, _nearest(x, w, sc * (d * unit)[:, None], book)


def _rounding(scale: F32, curvature: F32, book: Book) -> F32:
    """The half by which scales become odd numbers with the least weighted error."""
    unit = np.float32(book.unit)
    extreme = scale.max(-1)
    best, gain = extreme / np.float32(book.odd * book.unit), np.zeros_like(extreme)
    for more in steps(-4, 1, 9):
        t = _odd(scale * ((book.odd + more) * inverse(extreme))[:, None], book) * unit
        ct = curvature * t
        a, p = _over_cells(ct * t), _over_cells(ct * scale)
        d = ratio(p, a)
        better = d * p > gain
        best, gain = np.where(better, d, best), np.where(better, d * p, gain)
    return to_half(best)


def encode(x: F32, w: F32, book: Book) -> tuple[F32, Whole, Nearest, NDArray[np.uint8]]:
    """What blocks `x [n, 256]` with weights alike are made of: `d`, scales from 0, points, signs."""
    bare, signs = _signed(x, w, book)
    values = codebook(book.name).shape[1]
    shape = (len(x), 256 // book.group, book.group // values, values)
    d, sc, found = search(bare.reshape(shape), w.reshape(shape), book)
    return d, ((sc - 1) / 2).astype(np.int32), found, signs
