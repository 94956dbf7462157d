"""Encoders that search, in NumPy: values and weights laid out for the search, scales found, blocks packed."""

from __future__ import annotations

import numpy as np

from qtransformers.quants import iq, legacy, microscaling, search
from qtransformers.quants.bits import F32, Blocks
from qtransformers.quants.fitted import Scales, pack, round_to
from qtransformers.quants.search import GRIDS
from qtransformers.quants.weights import weigh
from qtransformers.types import BY_NAME


def fit(x: F32, type_name: str, importance: F32 | None, power: F32 | None) -> Scales:
    """Scales of blocks `x [n, block]`, with importance alike and `power [n]` (see weights.py)."""
    grid = GRIDS[type_name]
    lanes = np.ascontiguousarray(x.T)
    w = weigh(lanes, type_name, None if importance is None else np.ascontiguousarray(importance.T), power)
    grouped = [np.ascontiguousarray(v.reshape(-1, grid.group, len(x)).swapaxes(0, 1)) for v in (lanes, w)]
    d, dmin, sc, m = search.fit(grouped[0], grouped[1], grid)
    return Scales(d, dmin, np.ascontiguousarray(sc.T), np.ascontiguousarray(m.T))


def encode_grid(x: F32, type_name: str, importance: F32 | None, power: F32 | None) -> Blocks:
    """Blocks of `x [n, block]`."""
    type = BY_NAME[type_name]
    scales = fit(x, type_name, importance, power)
    return pack(round_to(x, type, scales), type, scales).view(type.block)


ENCODE = {
    **{name: encode_grid for name in GRIDS if name != "Q8_0"},
    **legacy.SEARCH,
    **microscaling.SEARCH,
    **iq.SEARCH,
}
