"""Scales of blocks whose codes lie on evenly spaced grids, found by search: K types, the legacy ones, ternary and 4-bit IQ types.

Many scales are tried for each group; the error of each follows in closed form from three sums over its codes, and a least-squares
fit for these codes gives a better scale at once. The scales of a block are then rounded together: neighbours of each rounded scale
are tried with the codes they really lead to, and the block's own factors fitted again.

Arrays hold blocks along the last axis, sums run in order along the first, and all is f32, so that csrc/isa/search.h, whose lanes
are blocks, has the same bits. Shapes: x and w `[group, groups, n]`, what belongs to a group `[groups, n]`, to a block `[n]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtransformers.quants.bits import F32
from qtransformers.quants.codebooks import codebook

TINY = np.float32(1e-30)  # what is smaller is not divided by
ONE, ZERO = np.float32(1), np.float32(0)
_TO_WHOLE = np.float32(12582912)  # 1.5 * 2^23: floats from there on have no fraction
Found = tuple[F32, F32, F32, F32]  # scale and minimum of each block, those of its groups in their units


@dataclass(frozen=True)
class Grid:
    """Where the codes and scales of a type may lie, and how hard to look for them. A value is `d sc (code) - dmin m`."""

    group: int  # values that share a scale
    low: int
    high: int  # of codes
    affine: bool  # whether a minimum is subtracted
    scales: tuple[int, int] | None  # range of the groups' whole scales (and minima); None: a block is one group
    tries: tuple[float, float, int]  # first, step, number: by how much the spread of codes differs from the full one
    near: tuple[int, ...] = (0, -1, 1)  # steps from a rounded scale that are tried first
    spread: tuple[float, float, int] = (-4, 1, 9)  # as `tries`, for the scales of a block
    polish: int = 1  # fits of the best scale's own codes
    rounds: int = 2  # of fitting the factors of a block
    book: str = ""  # the codebook of codes that are not evenly spaced


GRIDS = {
    "Q4_0": Grid(32, -8, 7, False, None, (-1.5, 0.3, 11)),
    "Q4_1": Grid(32, 0, 15, True, None, (-1.5, 0.1, 36)),
    "Q5_0": Grid(32, -16, 15, False, None, (-3, 0.5, 9)),
    "Q5_1": Grid(32, 0, 31, True, None, (-4, 0.5, 11)),
    "Q8_0": Grid(32, -128, 127, False, None, (0, 0, 0)),  # which is not searched: the largest magnitude becomes 127
    "Q2_0": Grid(64, -1, 2, False, None, (0, 0.4, 8), polish=3),
    "TQ1_0": Grid(256, -1, 1, False, None, (0, 0.8, 10), polish=4),
    "TQ2_0": Grid(256, -1, 1, False, None, (0, 0.8, 10), polish=4),
    "Q2_K": Grid(16, 0, 3, True, (0, 15), (-0.5, 0.1, 16), (0, -3, -2, -1, 1, 2, 3), (-4, 0.5, 23)),
    "Q3_K": Grid(16, -4, 3, False, (-32, 31), (-2, 0.5, 8), rounds=1),
    "Q4_K": Grid(32, 0, 15, True, (0, 63), (-1, 0.15, 14)),
    "Q5_K": Grid(32, 0, 31, True, (0, 63), (-3, 0.35, 14)),
    "Q6_K": Grid(16, -32, 31, False, (-128, 127), (-4, 0.5, 11)),
    "IQ4_NL": Grid(32, -127, 113, False, None, (-20, 6, 9), book="iq4"),
    "IQ4_XS": Grid(32, -127, 113, False, (-32, 31), (-20, 6, 9), rounds=1, book="iq4"),
}
SHIFTS = (0, -0.5, -0.25, 0.25, 0.5, 0)  # of the minimum, in steps of the best scale so far


def whole(v: F32) -> F32:
    """To the nearest whole number, halves to even, of magnitudes below 2^22."""
    rounded: F32 = (v + _TO_WHOLE) - _TO_WHOLE
    return rounded


def clip(v: F32, low: float, high: float) -> F32:
    """Between two numbers, in f32."""
    inside: F32 = np.minimum(np.maximum(v, np.float32(low)), np.float32(high))
    return inside


def total(a: F32) -> F32:
    """The sum along the first axis, one after the other."""
    acc = a[0].copy()
    for part in a[1:]:
        acc += part
    return acc


def ratio(a: F32, b: F32) -> F32:
    """`a / b`, or 0 where b is not above TINY."""
    usable = b > TINY
    return np.where(usable, a / np.where(usable, b, ONE), ZERO)


def inverse(s: F32) -> F32:
    """`1 / s`, or 0 where s is tiny."""
    usable = np.abs(s) > TINY
    return np.where(usable, ONE / np.where(usable, s, ONE), ZERO)


def to_half(v: F32) -> F32:
    """To the nearest half, at most the largest, and no zero below zero."""
    halves: F32 = clip(v, -65504, 65504).astype(np.float16).astype(np.float32) + ZERO
    return halves


def steps(first: float, step: float, n: int) -> Iterable[np.float32]:
    """`n` numbers from `first` on."""
    return (np.float32(first) + np.float32(step) * np.float32(i) for i in range(n))


def nearest(v: F32, grid: Grid) -> F32:
    """The nearest codes of values in units of the scale."""
    if not grid.book:
        return whole(clip(v, grid.low, grid.high))
    book = codebook(grid.book)[0].astype(np.float32)
    found: F32 = book[np.searchsorted((book[1:] + book[:-1]) / 2, v)]
    return found


def codes(x: F32, grid: Grid, scale: F32, minimum: F32 | None = None) -> F32:
    """The nearest codes of x for scales and minima of its groups `[groups, n]`."""
    return nearest((x if minimum is None else x + minimum) * inverse(scale), grid)


def _choose(better: NDArray[np.bool_], new: Iterable[F32], old: Iterable[F32]) -> list[F32]:
    return [np.where(better, a, b) for a, b in zip(new, old, strict=True)]


def fit(x: F32, w: F32, grid: Grid) -> Found:
    """`d`, `dmin` `[n]` (halves) and `sc`, `m` `[groups, n]` (whole) of blocks; minima of zero where a type has none."""
    if grid.affine:
        scale, minimum = _affine_groups(x, w, grid)
        return _affine_blocks(x, w, grid, scale, minimum) if grid.scales else _affine_alone(x, w, grid, scale, minimum)
    scale = _symmetric_groups(x, w, grid)
    return _symmetric_blocks(x, w, grid, scale) if grid.scales else _symmetric_alone(x, w, grid, scale)


def _affine_groups(x: F32, w: F32, grid: Grid) -> tuple[F32, F32]:
    """Scale and minimum of each group on its own; a minimum is not negative where it is to be rounded with others."""
    sw, sx = total(w), total(w * x)
    high, low = x.max(0), x.min(0)
    if grid.scales:
        low = np.minimum(low, ZERO)
    reach = np.maximum(high - low, ZERO)
    top = np.float32(grid.high)
    scale, least, error = reach / top, low, np.full_like(low, np.inf)

    def attempt(per_value: F32, start: F32) -> None:
        nonlocal scale, least, error
        q = whole(clip((x - start) * per_value, 0, grid.high))
        wq = w * q
        sq, sqq, sqx = total(wq), total(wq * q), total(wq * x)
        det = sw * sqq - sq * sq
        s, b = ratio(sw * sqx - sx * sq, det), ratio(sqq * sx - sq * sqx, det)
        if grid.scales:
            s, b = np.where(b > 0, ratio(sqx, sqq), s), np.minimum(b, ZERO)
        e = s * (s * sqq - 2 * sqx) + b * (b * sw - 2 * sx + 2 * s * sq)
        better = (det > TINY) & (s > 0) & (e < error)
        scale, least, error = _choose(better, (s, b, e), (scale, least, error))

    for more in steps(*grid.tries):
        attempt((top + more) * inverse(reach), least)
    for shift in SHIFTS:
        moved = least + np.float32(shift) * scale
        attempt(inverse(scale), np.minimum(moved, ZERO) if grid.scales else moved)
    return scale, -least


def _symmetric_groups(x: F32, w: F32, grid: Grid) -> F32:
    """The scale of each group on its own, of either sign: its extreme value goes to either end of the grid."""
    high, low = x.max(0), x.min(0)
    extreme = np.where(high > -low, high, low)
    scale, gain = np.zeros_like(extreme), np.zeros_like(extreme)

    def attempt(per_value: F32) -> None:
        nonlocal scale, gain
        q = nearest(x * per_value, grid)
        wq = w * q
        sqq, sqx = total(wq * q), total(wq * x)
        s = ratio(sqx, sqq)
        g = s * sqx
        scale, gain = _choose(g > gain, (s, g), (scale, gain))

    for more in steps(*grid.tries):
        attempt((np.float32(grid.high) + more) * inverse(extreme))
        if grid.low != -grid.high:
            attempt((np.float32(grid.low) - more) * inverse(extreme))
    for _ in range(grid.polish):
        attempt(inverse(scale))
    return scale


def _rounding(v: F32, curvature: F32, grid: Grid) -> F32:
    """The half by which `v [groups, n]` become whole with the least weighted error."""
    assert grid.scales
    bottom, top = grid.scales
    extreme = v.max(0) if bottom == 0 else np.where(v.max(0) > -v.min(0), v.max(0), v.min(0))
    # An extreme below zero is divided into negative steps, or the larger magnitude of the range stays unused.
    end = np.float32(top if bottom == 0 else bottom)
    best, gain = extreme / end, np.zeros_like(extreme)
    for more in steps(*grid.spread):
        q = whole(clip(v * ((end + (more if bottom == 0 else -more)) * inverse(extreme)), bottom, top))
        cq = curvature * q
        a, p = total(cq * q), total(cq * v)
        d = ratio(p, a)
        g = d * p
        best, gain = _choose(g > gain, (d, g), (best, gain))
    return to_half(best)


def _to_scales(v: F32, d: F32, grid: Grid) -> F32:
    assert grid.scales
    return whole(clip(v * inverse(d), *grid.scales))


def _affine_blocks(x: F32, w: F32, grid: Grid, scale: F32, minimum: F32) -> Found:
    """Scales and minima of groups rounded together."""
    assert grid.scales
    sw, sx = total(w), total(w * x)
    q = codes(x, grid, scale, minimum)
    d, dmin = _rounding(scale, total(w * q * q), grid), _rounding(minimum, sw, grid)
    sc, m = _to_scales(scale, d, grid), _to_scales(minimum, dmin, grid)
    for turn in range(grid.rounds):
        error, old = np.full_like(sw, np.inf), sc
        sums = [sw, sw, sw]
        trial_m = m
        for step in grid.near if turn == 0 else (0, -1, 1):
            trial, mine = clip(old + np.float32(step), *grid.scales), trial_m
            s = trial * d
            for _ in range(2):  # codes, the best minimum for them, codes again
                q = codes(x, grid, s, mine * dmin)
                wq = w * q
                sq, sqq, sqx = total(wq), total(wq * q), total(wq * x)
                mine = _to_scales(ratio(s * sq - sx, sw), dmin, grid)
                b = mine * dmin
                e = s * (s * sqq - 2 * sqx) + b * (b * sw + 2 * sx - 2 * s * sq)
                better = e < error
                error, sc, m, *sums = _choose(better, (e, trial, mine, sq, sqq, sqx), (error, sc, m, *sums))
        d, dmin = _affine_factors(sc, m, d, dmin, [sw, sx, *sums])
    return d, dmin, sc, m


def _affine_factors(sc: F32, m: F32, d: F32, dmin: F32, sums: Sequence[F32], least: float = 0) -> tuple[F32, F32]:
    """The best factors of a block whose codes, scales and minima stay, as halves; the old ones where those are no better."""
    sw, sx, sq, sqq, sqx = sums
    a, p = total(sc * sc * sqq), total(sc * sqx)
    c, o, r = total(m * m * sw), total(m * sx), total(sc * m * sq)
    det = a * c - r * r
    sure = det > np.float32(1e-6) * (a * c)
    new_d = to_half(np.where(sure, ratio(p * c - o * r, det), d))
    new_dmin = to_half(np.where(sure, ratio(p * r - a * o, det), dmin))

    def error(d: F32, dmin: F32) -> F32:
        e: F32 = d * (d * a - 2 * p) + dmin * (dmin * c + 2 * o - 2 * d * r)
        return e

    better = (new_d > 0) & (new_dmin >= least) & (error(new_d, new_dmin) < error(d, dmin))
    return np.where(better, new_d, d), np.where(better, new_dmin, dmin)


def _symmetric_blocks(x: F32, w: F32, grid: Grid, scale: F32) -> Found:
    """Scales of groups rounded together."""
    assert grid.scales
    q = codes(x, grid, scale)
    d = _rounding(scale, total(w * q * q), grid)
    sc = _to_scales(scale, d, grid)
    for turn in range(grid.rounds):
        error, old = np.full_like(scale, np.inf), sc
        sums = [scale, scale]
        for step in grid.near if turn == 0 else (0, -1, 1):
            trial = clip(old + np.float32(step), *grid.scales)
            s = trial * d
            q = codes(x, grid, s)
            wq = w * q
            sqq, sqx = total(wq * q), total(wq * x)
            e = s * (s * sqq - 2 * sqx)
            error, sc, *sums = _choose(e < error, (e, trial, sqq, sqx), (error, sc, *sums))
        a, p = total(sc * sc * sums[0]), total(sc * sums[1])
        new = to_half(ratio(p, a))
        better = (new != 0) & (new * (new * a - 2 * p) < d * (d * a - 2 * p))
        d = np.where(better, new, d)
    return d, np.zeros_like(d), sc, np.zeros_like(sc)


def _affine_alone(x: F32, w: F32, grid: Grid, scale: F32, minimum: F32) -> Found:
    """A block that is one group: scale and minimum as halves. (`m` is 1.)"""
    sw, sx = total(w), total(w * x)
    d, dmin = to_half(scale), to_half(minimum)
    one = np.ones_like(d)
    for _ in range(grid.rounds):
        q = codes(x, grid, d, dmin)
        wq = w * q
        sums = sw, sx, total(wq), total(wq * q), total(wq * x)
        d, dmin = (v[None] for v in _affine_factors(one, one, d[0], dmin[0], sums, least=-np.inf))
    return d[0], dmin[0], one, one


def _symmetric_alone(x: F32, w: F32, grid: Grid, scale: F32) -> Found:
    """A block that is one group: its scale as a half."""
    d = to_half(scale)
    for _ in range(grid.rounds):
        q = codes(x, grid, d)
        wq = w * q
        a, p = total(wq * q), total(wq * x)
        new = to_half(ratio(p, a))
        better = (new != 0) & (new * (new * a - 2 * p) < d * (d * a - 2 * p))
        d = np.where(better, new, d)
    return d[0], np.zeros_like(d[0]), np.ones_like(d), np.zeros_like(d)
