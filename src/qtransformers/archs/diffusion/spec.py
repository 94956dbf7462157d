"""What a diffusion transformer is, declared: detection, loading, conversion and quantisation derive from it.

Names and shapes are those of the class in diffusers, which computes; `original` says where the layout that the model was
published in keeps the same values. Two things are never guessed: a bias, and a setting that no tensor shows.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qtransformers.archs.diffusion.folds import Folding, Kind
from qtransformers.archs.spec import HParam, Problem, TensorSpec, dimension

Layout = Literal["original", "diffusers"]
LAYOUTS: tuple[Layout, ...] = ("original", "diffusers")
PREFIXES = (
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "model.",
    "net.",
)  # that tools put before all names
Range = tuple[int, int]


@dataclass(frozen=True)
class Marks:
    """Names of tensors that tell a model by: all of them, and none of the others; with the sizes that matter (None: any)."""

    all: tuple[str, ...]
    none: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)

    def found(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether a file with tensors of these names and logical shapes has them."""
        return (
            all(name in shapes for name in (*self.all, *self.shapes))
            and not any(name in shapes for name in self.none)
            and all(_fits(shapes[name], wanted) for name, wanted in self.shapes.items())
        )


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wanted) and all(w in (None, n) for n, w in zip(shape, wanted, strict=True))


@dataclass(frozen=True)
class Origin:
    """Where the original layout has a tensor: a name, and which of its rows in which order, `()` for all as they are.

    Written `name`, or `name[a:b,c:d]` with symbolic rows. Rows may be taken from packed blocks, as each row is whole blocks.
    """

    name: str  # with its suffix
    ranges: tuple[Range, ...] = ()


@dataclass(frozen=True)
class Declared:
    """A tensor of one model: the weight or the bias of a row of its spec, for one set of numbers in the name."""

    row: TensorSpec
    part: Literal["weight", "bias"]
    name: str  # in the class of diffusers, with its suffix
    shape: tuple[int, ...]  # logical, row-major
    origin: Origin | None  # None: the original layout has no such tensor

    @property
    def presence(self) -> Literal["never", "optional", "required"]:
        """Whether a file has it."""
        if self.part == "bias":
            return self.row.bias
        return "required" if self.row.on_absent == "error" else "optional"


@dataclass(frozen=True)
class DiffusionSpec:
    """One architecture of diffusion models."""

    id: str  # general.architecture
    class_name: str  # in diffusers
    hparams: tuple[HParam, ...]  # keyword arguments of the class
    tensors: (
        tuple[TensorSpec, ...] | Callable[[Mapping[str, Any]], Iterable[TensorSpec]]
    )  # of a config, where it decides
    marks: Mapping[Layout, tuple[Marks, ...]]  # one of them suffices
    sizes: Callable[[Mapping[str, Any]], Mapping[str, int]] = lambda c: {}  # what symbolic shapes call by a name
    check: Callable[[Mapping[str, Any]], Iterator[Problem]] | None = None  # what is wrong between settings
    aliases: tuple[str, ...] = ()
    family: str = ""  # general.architecture that other tools give such files, where that is the id of another spec
    keys: Mapping[str, str] = field(default_factory=dict)  # settings -> metadata that other tools write, after `<id>.`
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # published models: what no tensor shows
    original_names: tuple[tuple[str, str], ...] = ()  # (pattern, replacement) on names that tools write otherwise
    unused: tuple[str, ...] = ()  # patterns of tensors in published files that nothing reads: left out with a warning
    beside: tuple[
        str, ...
    ] = ()  # patterns of those of them that other programs ask for: written where they are at hand
    pipelines: tuple[str, ...] = ()  # classes of diffusers that run it, the usual one first
    folds: (
        tuple[Folding, ...] | Callable[[Mapping[str, Any]], Iterable[Folding]]
    ) = ()  # where scales may move without changing a picture
    unfolded: Mapping[Kind, str] = field(default_factory=dict)  # why scales have no place of a kind
    packs_convs: bool = False  # whether convolutions are quantised, as rows of `[out, in * kernel]`
    base: str = ""  # a published pipeline on the Hub
    paper: str = ""  # where it is described
    title: str = ""  # for people

    def rows(self, config: Mapping[str, Any]) -> Iterable[TensorSpec]:
        """The rows that a model of this config has."""
        return self.tensors(config) if callable(self.tensors) else self.tensors

    def foldings(self, config: Mapping[str, Any]) -> Iterable[Folding]:
        """Where scales may move in a model of this config."""
        return self.folds(config) if callable(self.folds) else self.folds

    def declared(self, config: Mapping[str, Any]) -> Iterator[Declared]:
        """Every tensor that a model of this config may have, those with biases that are forbidden too."""
        sizes = {**config, **self.sizes(config)}
        for row in self.rows(config):
            for numbers in _numbers(row, sizes):
                if row.when is not None and not row.when(config, next(iter(numbers.values()), 0)):
                    continue
                name = row.name.format(**numbers)
                shape = tuple(dimension(d, sizes) for d in row.shape)
                yield Declared(row, "weight", name + row.suffix, shape, _origin(row, numbers, sizes, "weight"))
                if row.suffix == ".weight" and shape:
                    yield Declared(row, "bias", f"{name}.bias", shape[:1], _origin(row, numbers, sizes, "bias"))


def _numbers(row: TensorSpec, sizes: Mapping[str, Any]) -> Iterator[dict[str, int]]:
    counts = [range(dimension(count, sizes)) for count in row.repeat.values()]
    for numbers in itertools.product(*counts):
        yield dict(zip(row.repeat, numbers, strict=True))


_ORIGIN = re.compile(r"(?P<name>[^\[\]]+)(?:\[(?P<ranges>[^\[\]]+)\])?")


def _origin(row: TensorSpec, numbers: Mapping[str, int], sizes: Mapping[str, Any], part: str) -> Origin | None:
    if not row.original or (part == "bias" and row.original_suffix != ".weight"):
        return None
    found = _ORIGIN.fullmatch(row.original)
    assert found, row.original  # a row of ours
    suffix = row.original_suffix if part == "weight" else ".bias"
    ranges = tuple(_range(text, sizes) for text in (found["ranges"] or "").split(",") if text)
    return Origin(found["name"].format(**numbers) + suffix, ranges)


def _range(text: str, sizes: Mapping[str, Any]) -> Range:
    start, _, stop = text.partition(":")
    return dimension(start or "0", sizes), dimension(stop, sizes)


def stripped(names: Iterable[str]) -> str:
    """The prefix that stands before all names of a file, "" where there is none."""
    known = list(names)
    return next((p for p in PREFIXES if known and all(name.startswith(p) for name in known)), "")
