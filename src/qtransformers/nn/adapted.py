"""Weights with low-rank updates beside them (LoRA, arXiv:2106.09685): the stored weight stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.kernels import kernels_for
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME

F32 = NDArray[np.float32]
Place = tuple[int | None, str]  # layer, attribute


@dataclass(frozen=True, eq=False)
class Update:
    """What comes on top of a weight `[out, in]`: `b a`, of `a [rank, in]` and `b [out, rank]` with the adapter's own scale.

    Both are weights of the kernels in F32, whose products are the same bits for any number of rows.
    """

    a: Any
    b: Any

    @classmethod
    def of(cls, a: F32, b: F32, name: str) -> Update:
        """From the two matrices of the weight called `name`."""
        return cls(_weight(a, f"{name}.lora_a"), _weight(b, f"{name}.lora_b"))


class StandIn:
    """What models find in the place of a stored weight, and what then multiplies by itself."""

    def product(self, x: Any, bias: Any = None) -> Any:
        """As `nn.linear`."""
        raise NotImplementedError

    def per_head(self, x: Any) -> Any:
        """As `nn.per_head`."""
        raise NotImplementedError

    def moe(self, x: Any, ids: Any, weights: Any, w_up: Any, w_down: Any, act: str, biases: Sequence[Any]) -> Any:
        """As `nn.moe`, where this is the gates and `biases` are those of gate, up and down."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Adapted(StandIn):
    """A stored weight, and the updates of some rows of what it is multiplied with."""

    base: Any
    updates: tuple[tuple[slice, Update, float], ...]  # rows, update, scale of the request

    def add(self, x: Any, y: Any) -> Any:
        """`y [T, out]`, the product of `x [T, in]` and the stored weight, with the updates on top: in place."""
        multiply = kernels_for(x).linear
        for rows, update, scale in self.updates:
            y[rows] += multiply(multiply(x[rows], update.a) * np.float32(scale), update.b)
        return y

    def product(self, x: Any, bias: Any = None) -> Any:
        """As `nn.linear`."""
        return self.add(x, kernels_for(x).linear(x, self.base, bias))


def _weight(x: F32, name: str) -> Any:
    data = np.ascontiguousarray(x, np.float32)
    return kernels_for(data).bind(QTensor(name, BY_NAME["F32"], data.shape, data.reshape(-1).view(np.uint8)))


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
