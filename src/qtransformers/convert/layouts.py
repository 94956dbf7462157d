"""From the tensors of one layout of a diffusion model to those of another: rows joined, taken apart and reordered, without a copy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qtransformers.archs.diffusion import Declared, DiffusionSpec, Layout
from qtransformers.archs.spec import Problem
from qtransformers.convert.sources import Factors, Lying, Scaled, Source
from qtransformers.load.diffusion import Part, source_name, whole_shape
from qtransformers.tensor import QTensor

Dress = Callable[[str, Source], Source]  # of a tensor of the class: what stands in a source's place


@dataclass(frozen=True, eq=False)
class Run:
    """Rows that lie together: `n` of them from `start` on in `tensor` go to `to` and on in another."""

    to: int
    tensor: QTensor
    start: int
    n: int
    part: str  # the tensor of the class whose rows they are, of several joined the first
    at: int  # which of its rows comes first


@dataclass(frozen=True, eq=False)
class Piece:
    """A tensor of the layout to be: what of the class it holds, and the rows that make it up, in order."""

    name: str
    shape: tuple[int, ...]  # logical
    sharers: tuple[Declared, ...]
    runs: tuple[Run, ...]

    def sources(self, stored: tuple[int, ...], factors: Mapping[str, Factors] | None = None, dress: Dress | None = None) -> tuple[Source, ...]:  # fmt: skip
        """Its rows as sources one after the other, for a file that has it in the shape `stored`; views of where they lie."""
        found = ((run.part, _scaled(Lying(_rows(run, stored)), run, (factors or {}).get(run.part))) for run in self.runs)  # fmt: skip
        return tuple(dress(part, source) if dress else source for part, source in found)


def laid_out(
    spec: DiffusionSpec, config: Mapping[str, Any], parts: Iterable[Part], layout: Layout, *, apart: bool = False
) -> tuple[tuple[Piece, ...], list[Problem]]:
    """The tensors of a layout made of the parts of a model, in the order of its spec; and what cannot be laid out so.

    `apart` keeps rows of several tensors of the class, or in another order than there, apart where they lie together.
    """
    there = {part.name: part for part in parts}
    names: dict[str, list[Declared]] = {}
    problems = []
    for declared in spec.declared(config):
        name = source_name(declared, layout)
        if name:
            names.setdefault(name, []).append(declared)
        elif declared.name in there:
            problems.append(Problem(f"{declared.name} has no place in the {layout} layout. Choose the other one (--layout)."))  # fmt: skip
    pieces = []
    for name, sharers in names.items():
        if not any(d.name in there for d in sharers):
            continue
        shape = whole_shape(sharers, layout)
        runs = _joined((run for d in sharers if d.name in there for run in _runs(there[d.name], d, layout)), apart)
        if lacking := [d.name for d in sharers if d.name not in there]:
            problems.append(Problem(f"{name} of the {layout} layout holds {', '.join(lacking)} too, which the model lacks. Choose the other one (--layout)."))  # fmt: skip
        elif sum(run.n for run in runs) != (shape[0] if shape else 1):
            problems.append(Problem(f"{name} of the {layout} layout has {shape[0]} rows, of which {sum(r.n for r in runs)} are known. This is a fault of ours: report it."))  # fmt: skip
        elif bad := next((r for r in runs if not _whole_blocks(r)), None):
            problems.append(Problem(f"{bad.tensor.name} holds {name}, and its {bad.tensor.type} blocks go across rows, which cannot be taken apart. Keep its layout (--layout)."))  # fmt: skip
        else:
            pieces.append(Piece(name, shape, tuple(sharers), runs))
    return tuple(pieces), problems


def _runs(part: Part, declared: Declared, layout: Layout) -> Iterable[Run]:
    """Where the rows of a part go: ranges of the tensor it lies in, cut by ranges of the tensor it goes to."""
    n = declared.shape[0] if declared.shape else 1
    goal = declared.origin.ranges if layout == "original" and declared.origin else ()
    sources, goals = list(part.ranges or ((0, n),)), list(goal or ((0, n),))
    at = 0
    while sources and goals:
        (a, b), (to, end) = sources[0], goals[0]
        step = min(b - a, end - to)
        yield Run(to, part.tensor, a, step, part.name, at)
        at += step
        sources[:1] = [(a + step, b)] if a + step < b else []
        goals[:1] = [(to + step, end)] if to + step < end else []


def _joined(runs: Iterable[Run], apart: bool) -> tuple[Run, ...]:
    """The runs in order, those joined that follow each other in one tensor."""
    done: list[Run] = []
    for run in sorted(runs, key=lambda r: r.to):
        last = done[-1] if done else None
        alike = last is not None and (not apart or (last.part, last.at + last.n) == (run.part, run.at))
        if (
            last
            and alike
            and last.tensor is run.tensor
            and (last.to + last.n, last.start + last.n) == (run.to, run.start)
        ):
            done[-1] = replace(last, n=last.n + run.n)
        else:
            done.append(run)
    return tuple(done)


def _is_whole(run: Run) -> bool:
    return not run.tensor.shape or (run.start, run.n) == (0, run.tensor.shape[0])


def _whole_blocks(run: Run) -> bool:
    """Whether a run can be taken from the bytes of its tensor."""
    return _is_whole(run) or math.prod(run.tensor.shape[1:]) % run.tensor.type.block_size == 0


def _scaled(source: Lying, run: Run, factors: Factors | None) -> Source:
    """The source with the factors of its tensor of the class."""
    if factors is None:
        return source
    mine = slice(run.at, run.at + run.n)  # of a parameter each value has its own, and none is ever taken apart
    rows, add = (side if side is None or side.ndim > 1 else side[mine] for side in (factors.rows, factors.add))
    return Scaled(source, replace(factors, rows=rows, add=add))


def _rows(run: Run, stored: tuple[int, ...]) -> QTensor:
    t = run.tensor
    shape: tuple[int, ...] = (run.n, *stored[1:]) if stored else ()
    if (
        shape and shape[-1] % t.type.block_size
    ):  # blocks across rows: any rows of whole blocks do, as they are read in order
        n = math.prod(shape)
        wide = 256 if n % 256 == 0 else t.type.block_size
        shape = (n // wide, wide)
    if _is_whole(run):
        return QTensor(t.name, t.type, shape, t.data, t.file)
    width = t.nbytes // t.shape[0]
    return QTensor(t.name, t.type, shape, t.data[run.start * width : (run.start + run.n) * width], t.file)
