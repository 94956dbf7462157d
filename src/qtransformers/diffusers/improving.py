"""Diffusion models in fewer bits, as good as can be: scales folded (AWQ), rounding that makes up for its own errors, types by budget.

The original runs in floats, and its layers' inputs say which columns count and how they go together (observing.py). Folds are those that
a spec declares (archs/diffusion/folds.py), where all their places are in the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from qtransformers.archs.diffusion.folds import Fold, resolved
from qtransformers.archs.diffusion.folds import Part as Place
from qtransformers.convert import ConversionPlan
from qtransformers.convert.diffusion import Model, at_hand, known, named, of_model
from qtransformers.convert.plan import Asked, Importance, refiled
from qtransformers.convert.sources import Factors, OfValues, Rows, Source, Values, matrix_shape
from qtransformers.convert.weights import not_finite
from qtransformers.diffusers.allotting import allotted
from qtransformers.diffusers.loading import values
from qtransformers.diffusers.noise import Call
from qtransformers.diffusers.observing import Observed, Seen, observed
from qtransformers.load.diffusion import LAYOUT_KEY, Part, source_name
from qtransformers.quantize import awq
from qtransformers.quantize.make import How
from qtransformers.quantize.refine import can_refine, refine
from qtransformers.types import QuantType

F32 = NDArray[np.float32]
FEW = 512  # rows that folds are tried on


@dataclass(frozen=True, eq=False)
class Compensated(OfValues):
    """A source that is encoded as a whole, its rounding made up for over the inputs that were seen."""

    seen: Seen
    columns: F32 | None  # by which its columns were multiplied

    def rows(self, rows: Rows) -> Values:
        """See Source."""
        return self.source.rows(rows)

    def blocks(self, rows: Rows, to: QuantType) -> NDArray[np.uint8] | None:
        """See Source."""
        if not can_refine(to):
            return self.source.blocks(rows, to)
        return np.ascontiguousarray(self._encoded(to)[rows]).reshape(-1)

    def _encoded(self, to: QuantType) -> NDArray[np.uint8]:
        """Blocks by row, of the whole tensor: what its columns have in common is worked out once."""
        if to.name not in self._made:
            weight = self.source.rows(slice(None))
            not_finite(weight, self.source, 0, False)
            made = refine(weight, to, self.seen.product(self.columns)).blocks()
            self._made[to.name] = made.reshape(len(weight), -1)
        return self._made[to.name]

    @cached_property
    def _made(self) -> dict[str, NDArray[np.uint8]]:
        return {}

    def forget(self, rows: Rows | None = None) -> None:
        """See Source."""
        self.source.forget(rows)
        if rows is None:
            self._made.clear()


@contextmanager
def plan_improved(
    path: str | Path, asked: Asked, how: How, *, calls: Iterable[Call] | None = None, progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[ConversionPlan]:  # fmt: skip
    """The plan of a file that is improved as `how` says; `convert.write` writes it within the context, where what was seen is at hand.

    `calls` are keyword arguments of the model's forward, as many as one likes; None has noise go through a scheduler's steps.
    Errors as for `convert.plan_conversion`, and ConfigError for a budget that even the smallest types exceed.
    """
    path = Path(path)
    source = at_hand(path, asked.config)
    model = known(source)
    asked = replace(asked, name=asked.name or named(source), learns=True)
    plan = of_model(model, asked, file=str(path), gguf=source.gguf)
    how.check(plan)
    with observed(model, calls, progress) as run:
        if how.sized:
            plan = refiled(plan, allotted(model, plan, run, how, progress))
        types = _types(model, plan)
        factors = improved(model, possible_folds(model), types, run.seen) if how.fold else {}
        importance = _importance(model, plan, factors, run, asked.importance or {})
        made = of_model(
            model, replace(asked, importance=None), file=str(path), gguf=source.gguf, factors=factors,
            dress=_compensating(model, factors, run.seen) if how.compensate else None,
        )  # fmt: skip
        weighed = tuple(replace(t, importance=importance.get(t.name)) for t in made.tensors)
        made = replace(made, tensors=weighed)
        yield refiled(made, {t.name: t.type for t in plan.tensors})  # has no files: a run never goes on with it


def _compensating(model: Model, factors: Mapping[str, Factors], seen: Mapping[str, Seen]) -> Callable[[str, Source], Source]:  # fmt: skip
    def dress(part: str, source: Source) -> Source:
        one = seen.get(part.removesuffix(".weight"))
        if one is None or not part.endswith(".weight") or matrix_shape(source.shape)[1] != len(one.squares):
            return source
        return Compensated(source, one, factors[part].columns if part in factors else None)

    return dress


def possible_folds(model: Model) -> list[Fold]:
    """The folds that change nothing: all their layers are there, and what one is added to has a bias that takes it up."""
    there = {part.name for part in model.parts}
    sizes = {**model.config, **model.spec.sizes(model.config)}
    return [fold for f in resolved(model.spec.foldings(model.config), sizes) if (fold := fold_of(f, there))]


def fold_of(fold: Fold, there: set[str]) -> Fold | None:
    """The fold with the places that a model with these tensors has; None where one that it needs is missing."""

    def found(place: Place) -> bool:
        return f"{place.name}.weight" in there or place.name in there

    if not all(found(p) for p in (*fold.sources, *fold.readers) if p.needed):
        return None
    if not all(f"{p.name}.bias" in there or p.name in there for p in fold.sources if p.plus_one):
        return None
    return replace(fold, sources=tuple(filter(found, fold.sources)), readers=tuple(filter(found, fold.readers)))


def improved(model: Model, folds: Iterable[Fold], types: Mapping[str, QuantType], seen: Mapping[str, Seen]) -> dict[str, Factors]:  # fmt: skip
    """The factors of every tensor of the class that a fold changes."""
    parts = {part.name: part for part in model.parts}
    factors: dict[str, Factors] = {}
    for fold in folds:
        readers: list[awq.Candidate] = []
        sizes: list[NDArray[np.float64]] = []
        for reader in fold.readers:
            type = types[f"{reader.name}.weight"]
            if reader.name not in seen or not type.is_quantized or (reader.stop - reader.start) % type.block_size:
                continue
            columns, index = slice(reader.start, reader.stop), fold.index(reader)
            x = seen[reader.name].sample(FEW)[:, columns].astype(np.float64)
            weight = values(parts[f"{reader.name}.weight"], torch.float32).numpy()[:, columns]
            readers.append(awq.Candidate(np.ascontiguousarray(weight), type, index, x.T @ x / len(x)))
            sizes.append(awq.by_scale(np.abs(x).mean(0), index, fold.n))
        s = awq.search(readers, fold.n, None, np.mean(sizes, 0)) if readers else np.ones(fold.n, np.float32)
        if (s != 1).any():
            for name, factor in of_fold(fold, s, parts):
                factors[name] = factors[name] * factor if name in factors else factor
    return factors


def of_fold(fold: Fold, s: F32, parts: Mapping[str, Part]) -> Iterator[tuple[str, Factors]]:
    """What scales `s [n]` of a fold do to each tensor: readers by their columns, sources by rows and biases."""
    for reader in fold.readers:
        wide = np.ones(parts[f"{reader.name}.weight"].declared.shape[1], np.float32)
        index = fold.index(reader)
        wide[reader.start : reader.stop] = s if index is None else s[index]
        yield f"{reader.name}.weight", Factors(columns=wide)
    for source in fold.sources:
        alone = source.name in parts  # a parameter, whose values count as rows
        shape = parts[source.name if alone else f"{source.name}.weight"].declared.shape
        rows, add = (np.full(shape if alone else shape[:1], v, np.float32).reshape(-1) for v in (1, 0))
        rows[source.start : source.stop] = 1 / s
        if source.plus_one:
            add[source.start : source.stop] = 1 / s - 1
        if alone:
            yield source.name, Factors(rows=rows.reshape(matrix_shape(shape)), add=add.reshape(matrix_shape(shape)))
            continue
        yield f"{source.name}.weight", Factors(rows=rows)
        if f"{source.name}.bias" in parts:
            yield f"{source.name}.bias", Factors(rows=rows, add=add if source.plus_one else None)


def _types(model: Model, plan: ConversionPlan) -> dict[str, QuantType]:
    """The type that each tensor of the class gets, whatever the layout it lies in."""
    types = {t.name: t.type for t in plan.tensors}
    to = plan.metadata[LAYOUT_KEY]
    return {p.name: types[source_name(p.declared, to)] for p in model.parts}


def _importance(
    model: Model, plan: ConversionPlan, factors: Mapping[str, Factors], run: Observed, given: Importance
) -> dict[str, F32]:
    """How much each column counts, by tensors of the file: as `given`, or mean squares of inputs, of what share a tensor those of the first."""
    to = plan.metadata[LAYOUT_KEY]
    types = {t.name: t.type for t in plan.tensors}
    found: dict[str, F32] = {}
    for part in model.parts:
        one = run.seen.get(part.name.removesuffix(".weight"))
        name = source_name(part.declared, to)
        if one is None or part.declared.part == "bias" or name in found or not types[name].is_quantized:
            continue
        columns = factors[part.name].columns if part.name in factors else None
        mean = given[name].astype(np.float64) if name in given else one.mean()
        found[name] = (mean if columns is None else mean / np.square(columns, dtype=np.float64)).astype(np.float32)
    return found
