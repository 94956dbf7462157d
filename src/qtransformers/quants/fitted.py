"""Encoding in its three steps: scales are fitted, values rounded to codes, both packed into blocks.

For the types with one rule for all codes (GRIDS of search.py). What compensates for the errors of rounding (GPTQ)
fits scales once, chooses the codes itself, and packs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import ConfigError, UnsupportedError
from qtransformers.quants import iq, k, legacy, ternary
from qtransformers.quants.bits import F32, Whole
from qtransformers.quants.search import GRIDS, Grid, codes
from qtransformers.types import QuantType

UNPACK = {**legacy.UNPACK, **k.UNPACK, **iq.UNPACK, **ternary.UNPACK}
PACK = {**legacy.PACK, **k.PACK, **iq.PACK, **ternary.PACK}


@dataclass(frozen=True)
class Scales:
    """Scales of `n` blocks as a file holds them: a value is `d sc code - dmin m`."""

    d: F32  # [n], exact halves
    dmin: F32  # [n], exact halves; Q4_1 and Q5_1: their m with the sign turned; 0 where a type has none
    sc: F32  # [n, groups], whole; 1 where a block is one group
    m: F32  # [n, groups], whole; 0 or 1 alike

    @property
    def steps(self) -> F32:
        """The difference of neighbouring codes' values, `[n, groups]`."""
        return self.d[:, None] * self.sc

    @property
    def minima(self) -> F32:
        """What is subtracted, `[n, groups]`."""
        return self.dmin[:, None] * self.m


def grid_of(type: QuantType) -> Grid:
    """The grid of a type; UnsupportedError where its values do not lie on one."""
    if type.name not in GRIDS:
        raise UnsupportedError(f"{type.name} has no grid of codes; expected one of {', '.join(GRIDS)}.")
    return GRIDS[type.name]


def round_to(x: F32, type: QuantType, scales: Scales) -> NDArray[np.int8]:
    """The nearest codes of values `[n * block_size]`, as `[n, block_size]`, in the range of `grid_of(type)`."""
    grid = grid_of(type)
    n = len(scales.d)
    lanes = np.moveaxis(x.reshape(n, -1, grid.group), 0, -1).swapaxes(0, 1)  # [group, groups, n]
    q = codes(lanes, grid, scales.steps.T, scales.minima.T)
    return q.transpose(2, 1, 0).reshape(n, -1).astype(np.int8)


def pack(q: Whole, type: QuantType, scales: Scales) -> NDArray[np.uint8]:
    """Blocks `[nbytes]` of given codes `[n, block_size]` and scales. ConfigError for codes or scales that the type does not hold."""
    grid = grid_of(type)
    n = len(scales.d)
    _check("codes", q, (n, type.block_size), grid.low, grid.high)
    b = np.zeros(n, type.block)
    b["d"] = scales.d
    for name, v in (("scales", scales.sc), ("minima", scales.m)):
        _check(name, v, (n, type.block_size // grid.group), *(grid.scales or (0, 1)))
    if grid.affine:
        b["dmin" if grid.scales else "m"] = scales.dmin if grid.scales else -scales.dmin
    PACK[type.name](b, q, scales.sc.astype(np.int16), scales.m.astype(np.int16))
    return b.view(np.uint8)


def unpack(data: NDArray[np.uint8], type: QuantType) -> tuple[NDArray[np.int8], Scales]:
    """Codes `[n, block_size]` and scales of blocks `[nbytes]`: what `pack` was given."""
    grid = grid_of(type)
    b = data.view(type.block)
    n = len(b)
    q, sc, m = UNPACK[type.name](b)
    groups = (n, type.block_size // grid.group)
    one = np.ones(groups, np.float32)
    low = b["dmin" if grid.scales else "m"].astype(np.float32) if grid.affine else np.zeros(n, np.float32)
    scales = Scales(
        b["d"].astype(np.float32),
        low if grid.scales else -low,
        one if sc is None else sc.astype(np.float32),
        m.astype(np.float32) if m is not None else one if grid.affine else np.zeros(groups, np.float32),
    )
    return q.reshape(n, -1).astype(np.int8), scales


def _check(what: str, v: Whole, shape: tuple[int, ...], low: float, high: float) -> None:
    if v.shape != shape or (v.size and not (low <= v.min() and v.max() <= high)):
        spread = f" from {v.min()} to {v.max()}" if v.size else ""
        raise ConfigError(f"{what}: found {list(v.shape)}{spread}; expected {list(shape)} from {low} to {high}.")
