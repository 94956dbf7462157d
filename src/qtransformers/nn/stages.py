"""A model whose layers are in several processes: what one of them runs, and what stands for weights that others have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from qtransformers.nn.adapted import StandIn


@dataclass(frozen=True)
class Stage:
    """Some layers in a row, from `first` on. Both functions are given `x [T, n_embd]`, which goes through the layers in place."""

    first: int
    arrive: Callable[[Any], None] | None = None  # writes to x what the stage before made of it; None: nothing is before
    leave: Callable[[Any], None] | None = None  # gives x to the next one; None: nothing comes after


class Elsewhere(StandIn):
    """A matrix `[rows, columns]` that another stage has. What it gives only has the shape for this one to go on with."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def rows_of(self, tokens: Any) -> Any:
        """As `nn.embedding`; the stage before writes over it."""
        shape = len(tokens), self.shape[1]
        if isinstance(tokens, np.ndarray):
            return np.zeros(shape, np.float32)
        import torch

        return tokens.new_zeros(shape, dtype=torch.float32)

    def product(self, x: Any, bias: Any = None) -> Any:
        """As `nn.linear` of one row, at which nobody looks."""
        return np.zeros((1, self.shape[0]), np.float32)


def layers(w: Any, x: Any) -> Iterator[tuple[int, Any]]:
    """Layers of a model with their numbers, for `x [T, n_embd]`, which is changed in place: all of them, or those of a stage."""
    stage: Stage | None = getattr(w, "stage", None)
    if stage is None:
        yield from enumerate(w.layers)
        return
    if stage.arrive is not None:
        stage.arrive(x)
    yield from enumerate(w.layers, stage.first)
    if stage.leave is not None:
        stage.leave(x)
