"""Weights with low-rank updates beside them (LoRA, arXiv:2106.09685): the stored weight stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Place = tuple[int | None, str]  # layer, attribute


@dataclass(frozen=True, eq=False)
class Update:
    """`a b` is what comes on top of a weight's transpose: `a [in, rank]`, `b [rank, out]`, with the adapter's own scale in b."""

    a: F32
    b: F32


@dataclass(frozen=True, eq=False)
class Adapted:
    """A stored weight, and the updates of some rows of what it is multiplied with."""

    base: Any
    updates: tuple[tuple[slice, Update, float], ...]  # rows, update, scale of the request

    def add(self, x: Any, y: Any) -> Any:
        """`y [T, out]`, the product of `x [T, in]` and the stored weight, with the updates on top: in place."""
        for rows, update, scale in self.updates:
            y[rows] += (x[rows] @ update.a) @ (update.b * np.float32(scale))
        return y


def base_of(w: Any) -> Any:
    """The stored weight."""
    return w.base if isinstance(w, Adapted) else w


def adapted(
    weights: SimpleNamespace,
    parts: Iterable[tuple[int, int, Mapping[Place, Update], float]],
    output_rows: NDArray[np.integer],
    last: str = "output",
) -> SimpleNamespace:
    """The weights for one batch: rows `begin` to `end` of its tokens have these updates, by place and at this scale.

    The weight called `last` is multiplied with the rows `output_rows` of the batch only.
    """
    found: dict[Place, list[tuple[slice, Update, float]]] = {}
    for begin, end, updates, scale in parts:
        first, stop = np.searchsorted(output_rows, (begin, end)).tolist()
        for place, update in updates.items():
            rows = slice(first, stop) if place == (None, last) else slice(begin, end)
            if rows.start < rows.stop:
                found.setdefault(place, []).append((rows, update, scale))
    changed = SimpleNamespace(**vars(weights))
    layers = list(weights.layers)
    for (layer, attr), updates_ in found.items():
        if layer is None:
            home = changed
        elif layers[layer] is weights.layers[layer]:
            home = layers[layer] = SimpleNamespace(**vars(weights.layers[layer]))
        else:
            home = layers[layer]
        setattr(home, attr, Adapted(getattr(home, attr), tuple(updates_)))
    changed.layers = tuple(layers)
    return changed
