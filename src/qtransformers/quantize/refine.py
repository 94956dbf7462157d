"""Rounding that makes up for its own errors: what matters is the error of a product over real inputs, not of each weight.

With H, the mean of x x^T over inputs, the error of quantised weights Q of W is tr((Q - W) H (Q - W)^T). Columns are rounded one
after the other, each error taken up by the columns to come (GPTQ, arXiv:2210.17323), with scales fitted to what the columns have
become when their block is reached. Then each code, each scale and minimum of a group and each block's own factors go to where the
error is least with all others as they are, some rounds. Nothing but codes and scales of the type is stored: the blocks are standard.

Arrays hold columns first, `[in, out]`: a column of the weight is a contiguous row here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import ConfigError
from qtransformers.quants import fit, quantize
from qtransformers.quants.fitted import Scales, grid_of, pack, unpack
from qtransformers.quants.search import GRIDS, Grid, nearest
from qtransformers.types import QuantType

F32 = NDArray[np.float32]
DAMP = 0.01  # of the mean diagonal of H, added to it
ROUNDS = 3
SLAB = 256  # columns that are worked on before the others hear of it


@dataclass(frozen=True, eq=False)
class Coded:
    """A weight in the making: a value is `d sc q - dmin m`, d and dmin of its block, sc and m of its group."""

    type: QuantType
    q: F32  # [in, out]
    d: F32  # [in / block, out]
    dmin: F32
    sc: F32  # [in / group, out]
    m: F32

    @property
    def grid(self) -> Grid:
        """Where codes and scales may lie."""
        return grid_of(self.type)

    @property
    def groups(self) -> int:
        """Groups of a block."""
        return len(self.sc) // len(self.d)

    def steps(self) -> F32:
        """Of each group, `[in / group, out]`."""
        return np.repeat(self.d, self.groups, 0) * self.sc

    def minima(self) -> F32:
        """Of each group, `[in / group, out]`."""
        return np.repeat(self.dmin, self.groups, 0) * self.m

    def values(self) -> F32:
        """What is stored, `[in, out]`."""
        g = self.grid.group
        found: F32 = np.repeat(self.steps(), g, 0) * self.q - np.repeat(self.minima(), g, 0)
        return found

    def blocks(self, rows: F32 | None = None) -> NDArray[np.uint8]:
        """Blocks row by row, `[nbytes]`; with `rows [out]` each row times its factor, which only changes d and dmin."""
        times = np.float32(1) if rows is None else rows

        def flat(a: F32) -> F32:
            n = len(a) // len(self.d)
            return np.ascontiguousarray(a.T).reshape(-1, n)

        scales = Scales(
            _half(flat(self.d * times)[:, 0]), _half(flat(self.dmin * times)[:, 0]), flat(self.sc), flat(self.m)
        )
        return pack(flat(self.q).astype(np.int8), self.type, scales)


def coded(blocks: NDArray[np.uint8], type: QuantType, n_rows: int) -> Coded:
    """The codes and scales of a weight's blocks."""
    q, scales = unpack(blocks, type)

    parts = (q, scales.d, scales.dmin, scales.sc, scales.m)
    return Coded(type, *(np.ascontiguousarray(part.reshape(n_rows, -1).T, np.float32) for part in parts))


def can_refine(type: QuantType) -> bool:
    """Whether the type has a grid of codes, few enough for refinement to show."""
    return type.name in GRIDS


def error(values: F32, target: F32, h: F32) -> NDArray[np.float64]:
    """`(Q - W) H (Q - W)^T` of each row `[out]`, of `[in, out]` arrays."""
    off = values - target
    return np.einsum("io,io->o", off, h @ off, dtype=np.float64)


def refine(w: F32, type: QuantType, h: NDArray[np.floating], *, damp: float = DAMP, rounds: int = ROUNDS) -> Coded:
    """A weight `[out, in]` in a type, rounded with the mean of x x^T over its inputs, `h [in, in]`.

    ConfigError where `h` has another width or is no finite matrix.
    """
    n_in = w.shape[1]
    if h.shape != (n_in, n_in) or not np.isfinite(h).all():
        raise ConfigError(
            f"h is {list(h.shape)}; expected finite numbers [{n_in}, {n_in}], the mean of x x^T over inputs."
        )
    damped = h.astype(np.float64) + np.eye(n_in) * (damp * float(np.trace(h)) / n_in + 1e-12)
    target = np.ascontiguousarray(w.T, np.float32)
    small = damped.astype(np.float32)
    plain = coded(quantize(w, type, importance=np.ascontiguousarray(small.diagonal())), type, len(w))
    best = _compensated(target, type, damped)
    best = _better(best, plain, target, small)  # a row that compensation made worse, as it can at the edges of a grid
    for _ in range(rounds):
        best = _settle_codes(best, target, small)
        if best.grid.scales:
            best = _settle_scales(best, target, small)
        best = _settle_factors(best, target, small)
    return best


def _compensated(target: F32, type: QuantType, h: NDArray[np.float64]) -> Coded:
    """Column by column, each error taken up by the columns to come."""
    n_in, n_out = target.shape
    block, grid = type.block_size, grid_of(type)
    importance = np.ascontiguousarray(np.einsum("ii->i", h), np.float32)
    upper = np.linalg.cholesky(np.linalg.inv(h)).T.astype(np.float32)  # of the inverse, H^-1 = U^T U
    w = target.copy()
    q = np.empty_like(w)
    kept: list[tuple[F32, ...]] = []
    slab = max(block, SLAB)
    for begin in range(0, n_in, slab):
        end = min(begin + slab, n_in)
        scales = fit(np.ascontiguousarray(w[begin:end].T), type, importance=importance[begin:end])
        d, dmin, sc, m = (
            np.ascontiguousarray(a.reshape(n_out, -1).T) for a in (scales.d, scales.dmin, scales.sc, scales.m)
        )
        kept.append((d, dmin, sc, m))
        per_block = len(sc) // len(d)
        steps, minima = np.repeat(d, per_block, 0) * sc, np.repeat(dmin, per_block, 0) * m
        inverse = np.where(steps != 0, 1 / np.where(steps != 0, steps, 1), 0).astype(np.float32)
        errors = np.empty((end - begin, n_out), np.float32)
        for j in range(begin, end):
            g = (j - begin) // grid.group
            q[j] = nearest((w[j] + minima[g]) * inverse[g], grid)
            errors[j - begin] = (w[j] - (q[j] * steps[g] - minima[g])) / upper[j, j]
            w[j + 1 : end] -= upper[j, j + 1 : end, None] * errors[j - begin]
        w[end:] -= upper[begin:end, end:].T @ errors
    return Coded(type, q, *(np.concatenate(parts) for parts in zip(*kept, strict=True)))


def _better(a: Coded, b: Coded, target: F32, h: F32) -> Coded:
    """Of each row the one with less error."""
    first = error(a.values(), target, h) <= error(b.values(), target, h)
    chosen = (np.where(first, x, y) for x, y in zip((a.q, a.d, a.dmin, a.sc, a.m), (b.q, b.d, b.dmin, b.sc, b.m), strict=True))  # fmt: skip
    return Coded(a.type, *chosen)


def _settle_codes(now: Coded, target: F32, h: F32) -> Coded:
    """Each code to where the error is least with all others as they are, in the order of columns."""
    grid = now.grid
    steps, q = now.steps(), now.q.copy()
    inverse = np.where(steps != 0, 1 / np.where(steps != 0, steps, 1), 0).astype(np.float32)
    pull = h @ (now.values() - target)  # half the gradient
    for begin in range(0, len(q), SLAB):
        end = min(begin + SLAB, len(q))
        moved = np.zeros((end - begin, q.shape[1]), np.float32)
        for j in range(begin, end):
            g = j // grid.group
            wish = nearest(q[j] - pull[j] / h[j, j] * inverse[g], grid)
            if (wish != q[j]).any():
                moved[j - begin] = (wish - q[j]) * steps[g]
                q[j] = wish
                pull[begin:end] += h[begin:end, j, None] * moved[j - begin]
        pull[:begin] += h[:begin, begin:end] @ moved
        pull[end:] += h[end:, begin:end] @ moved
    return replace(now, q=q)


def _settle_scales(now: Coded, target: F32, h: F32) -> Coded:
    """Each group's whole scale and minimum alike."""
    grid = now.grid
    assert grid.scales
    sc, m = now.sc.copy(), now.m.copy()
    pull = h @ (now.values() - target)
    for g in range(len(sc)):
        part = slice(g * grid.group, (g + 1) * grid.group)
        b = g // now.groups
        own = h[part, part]
        moved = np.zeros_like(now.q[part])
        ways = [(sc, now.d[b] * now.q[part])]
        if grid.affine:
            ways.append((m, np.broadcast_to(-now.dmin[b], moved.shape)))
        for whole, way in ways:
            reach = own @ way
            curvature = np.einsum("io,io->o", way, reach)
            slope = np.einsum("io,io->o", way, pull[part] + own @ moved)
            step = np.where(curvature > 0, -slope / np.where(curvature > 0, curvature, 1), 0)
            wish = np.clip(np.rint(whole[g] + step), *grid.scales)
            moved += (wish - whole[g]) * way
            whole[g] = wish
        pull += h[:, part] @ moved
    return replace(now, sc=sc, m=m)


def _settle_factors(now: Coded, target: F32, h: F32) -> Coded:
    """Each block's own factors alike, as halves."""
    grid, block = now.grid, now.type.block_size
    d, dmin = now.d.copy(), now.dmin.copy()
    pull = h @ (now.values() - target)
    for b in range(len(d)):
        part = slice(b * block, (b + 1) * block)
        groups = slice(b * now.groups, (b + 1) * now.groups)
        own = h[part, part]
        ways = [(d, np.repeat(now.sc[groups], grid.group, 0) * now.q[part])]
        if grid.affine:
            ways.append((dmin, -np.repeat(now.m[groups], grid.group, 0)))
        moved = np.zeros_like(now.q[part])
        for factor, way in ways:
            reach = own @ way
            curvature = np.einsum("io,io->o", way, reach)
            slope = np.einsum("io,io->o", way, pull[part] + own @ moved)
            step = np.where(curvature > 0, -slope / np.where(curvature > 0, curvature, 1), 0)
            wish = _half(factor[b] + step)
            change = wish - factor[b]
            change = np.where(change * (2 * slope + change * curvature) < 0, change, 0).astype(np.float32)
            moved += change * way
            factor[b] += change
        pull += h[:, part] @ moved
    return replace(now, d=d, dmin=dmin)


def _half(v: NDArray[np.floating]) -> F32:
    return np.clip(v, -65504, 65504).astype(np.float16).astype(np.float32)
