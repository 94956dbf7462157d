"""What the tensors of a file say about the settings of a diffusion model, whatever layout they lie in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property

from qtransformers.archs.diffusion.spec import Layout
from qtransformers.archs.spec import TensorSpec


class Shapes:
    """Logical shapes of a file's tensors, asked for by the names of the class in diffusers.

    `rows` are the rows of a spec (none where a config decides them: then only `named` helps). Layers are written `{i}`, and
    the first one is meant.
    """

    def __init__(self, rows: Iterable[TensorSpec], layout: Layout, named: Mapping[str, tuple[int, ...]]) -> None:
        self.layout, self.named = layout, named
        self._rows = {row.name: row for row in rows}

    @cached_property
    def _counts(self) -> dict[str, set[tuple[int, ...]]]:
        """Names with every number left out -> the numbers that were there."""
        found: dict[str, set[tuple[int, ...]]] = {}
        for name in self.named:
            numbers = tuple(map(int, re.findall(r"(?<=\.)\d+(?=\.)", name)))
            found.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), set()).add(numbers)
        return found

    def has(self, name: str) -> bool:
        """Whether the file has the tensor, or the one that holds it; biases by their whole name."""
        return self._name(name) in self.named

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Its logical shape; None where it is not there, or part of another."""
        row = self._rows.get(name)
        if self.layout == "original" and row is not None and "[" in row.original:
            return None
        return self.named.get(self._name(name))

    def size(self, name: str, axis: int) -> int | None:
        """One dimension of it: 0 for outputs, 1 for inputs; None where it is not there."""
        shape = self.shape(name)
        return shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None

    def whole(self, name: str, axis: int = 0) -> int | None:
        """One dimension of the tensor that holds it, which in the original layout may hold others too."""
        shape = self.named.get(self._name(name))
        return shape[axis] if shape is not None and -len(shape) <= axis < len(shape) else None

    def count(self, name: str) -> int:
        """How many layers have it: numbers from 0 on, without a gap, in place of `{i}`."""
        there = self.layers(name)
        return next(n for n in range(len(there) + 1) if n not in there)

    def layers(self, name: str) -> tuple[int, ...]:
        """Which layers have it, in order: the numbers in place of `{i}`."""
        template = self._template(name)
        parts = re.findall(r"(?<=\.)(?:\d+|\{i\})(?=\.)", template)
        place = parts.index("{i}")
        fixed = {k: int(p) for k, p in enumerate(parts) if k != place}
        seen = self._counts.get(re.sub(r"(?<=\.)(?:\d+|\{i\})(?=\.)", "*", template), set())
        return tuple(sorted({numbers[place] for numbers in seen if all(numbers[k] == n for k, n in fixed.items())}))

    def _template(self, name: str) -> str:
        row = self._rows.get(name)
        if row is None:
            stem, _, own = name.rpartition(".")
            if own == "bias" and stem in self._rows:
                row = self._rows[stem]
                return name if self.layout == "diffusers" else row.original.partition("[")[0] + ".bias"
            return name  # a name in full
        if self.layout == "diffusers":
            return row.name + row.suffix
        return row.original.partition("[")[0] + row.original_suffix

    def _name(self, name: str) -> str:
        return re.sub(r"\{\w\}", "0", self._template(name))
