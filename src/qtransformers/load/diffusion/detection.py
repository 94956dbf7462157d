"""Which architecture and layout a GGUF file of a diffusion transformer has, by the names and logical shapes of its tensors."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import index
from typing import Any

from qtransformers.archs import SPECS as OTHERS
from qtransformers.archs.diffusion import ALL, LAYOUTS, SPECS, DiffusionSpec, Layout, stripped
from qtransformers.checks import shown
from qtransformers.errors import LoadError, UnsupportedError
from qtransformers.gguf import GGUFFile
from qtransformers.tensor import QTensor

ORIG_SHAPE = "comfy.gguf.orig_shape."
FOREIGN = ("pig", "cow")  # general.architecture of tools that name none; empty names are alike
NAMES = 5000  # of a file that nobody knows, in search of what it may be


@dataclass(frozen=True, eq=False)
class Detected:
    """A file's architecture and layout, and its tensors by their names in that layout, in logical shapes."""

    spec: DiffusionSpec
    layout: Layout
    tensors: Mapping[str, QTensor]
    warnings: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Logical shapes by name."""
        return {name: t.shape for name, t in self.tensors.items()}


def is_diffusion(gguf: GGUFFile) -> bool:
    """Whether a file is of a diffusion transformer rather than a language model."""
    said = gguf.metadata.get("general.architecture")
    if isinstance(said, str) and (said in SPECS or said in OTHERS):
        return said in SPECS
    tensors = tensors_of(gguf)
    return any(_found(spec, tensors) for spec in ALL)


def detect(gguf: GGUFFile, specs: Sequence[DiffusionSpec] = ALL) -> Detected:
    """Which of these architectures and layouts the file has, by names and logical shapes; UnsupportedError with the nearest ones."""
    return detected(tensors_of(gguf), str(gguf.path), gguf.metadata.get("general.architecture"), specs)


def detected(
    tensors: Mapping[str, QTensor], file: str, said: Any = None, specs: Sequence[DiffusionSpec] = ALL
) -> Detected:
    """The same of tensors by their names without a prefix, where `file` says that its architecture is `said`."""
    first = [spec for spec in specs if isinstance(said, str) and said in (spec.id, *spec.aliases)]
    for spec in (*first, *(s for s in specs if s not in first)):
        if layout := _found(spec, tensors):
            other = isinstance(said, str) and said not in ("", spec.family, *FOREIGN) and spec not in first
            notes = (f"{file}: general.architecture is {said!r}, but its tensors are those of {spec.title}",) if other else ()  # fmt: skip
            return Detected(spec, layout, _renamed(spec, layout, tensors), notes)
    what = "" if said is None else f"general.architecture {shown(said)}, "
    raise UnsupportedError(f"{file} is no {'diffusion transformer' if specs is ALL else 'text encoder'} that this version knows ({what}{len(tensors)} tensors).{_nearest_specs(tensors, specs)}")  # fmt: skip


def tensors_of(gguf: GGUFFile) -> dict[str, QTensor]:
    """Tensors by name without the prefix that tools put before all of them, in logical shapes."""
    prefix = stripped(gguf.tensors)
    found = {}
    for key in gguf.metadata:
        if key.startswith(ORIG_SHAPE) and key.removeprefix(ORIG_SHAPE) not in gguf.tensors:
            raise LoadError(f"{gguf.path}: {key} is of no tensor in the file. The file is damaged: convert the model again.")  # fmt: skip
    for name, tensor in gguf.tensors.items():
        shape = gguf.metadata.get(ORIG_SHAPE + name)
        if shape is not None:
            logical = _logical(shape)
            if math.prod(logical) != tensor.n_values:
                raise LoadError(f"{gguf.path}: {ORIG_SHAPE}{name} is {shown(shape)}, but {name} has {tensor.n_values} values. The file is damaged: convert the model again.")  # fmt: skip
            tensor = tensor.reshaped(logical)
        found[name.removeprefix(prefix)] = tensor
    return found


def _logical(shape: Any) -> tuple[int, ...]:
    """The shape as whole numbers of at least one; (0,), which no tensor has, for anything else."""
    try:
        found = tuple(map(index, shape))
    except (TypeError, ValueError, OverflowError):
        return (0,)
    return found if all(n > 0 for n in found) and len(found) <= 8 else (0,)


def _found(spec: DiffusionSpec, tensors: Mapping[str, QTensor]) -> Layout | None:
    """The layout of this architecture that a file has."""
    for layout in LAYOUTS:
        shapes = {name: t.shape for name, t in _renamed(spec, layout, tensors).items()}
        if any(marks.found(shapes) for marks in spec.marks.get(layout, ())):
            return layout
    return None


def _renamed(spec: DiffusionSpec, layout: Layout, tensors: Mapping[str, QTensor]) -> Mapping[str, QTensor]:
    if layout == "diffusers" or not spec.original_names:
        return tensors
    renamed = {}
    for name, tensor in tensors.items():
        for pattern, replacement in spec.original_names:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def _nearest_specs(tensors: Mapping[str, QTensor], specs: Sequence[DiffusionSpec]) -> str:
    """The architectures that most of the file's names are of, and what they have that the file lacks."""
    near = []
    names = list(islice(tensors, NAMES))
    for spec in specs:
        for layout in LAYOUTS:
            for marks in spec.marks.get(layout, ()):
                marked = {*marks.all, *marks.shapes}
                before = Counter(n.removesuffix(m) for m in marked for n in names if n == m or n.endswith(f".{m}"))
                [(prefix, there)] = before.most_common(1) or [("", 0)]
                lacking = [m for m in (*marks.all, *marks.shapes) if prefix + m not in tensors] + [f"no {n}" for n in marks.none if prefix + n in tensors]  # fmt: skip
                what = [f"names without {prefix!r} before them"] * bool(prefix) + lacking
                near.append((there / len(marked), f"{spec.title} ({layout} layout) would need {', '.join(what) or 'other sizes'}"))  # fmt: skip
    best = sorted((n for n in near if n[0] > 0), key=lambda n: -n[0])[:3]
    told = "; ".join(text for _, text in best)
    return f" Nearest: {told}." if told else f" Known are {', '.join(spec.title for spec in specs)}."
