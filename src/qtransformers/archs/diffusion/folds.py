"""Where scales may move between the weights of a diffusion model without changing a picture: declared by its spec, resolved for a config.

`sources` are divided by the scales s, the columns of `readers` multiplied. After a norm without weights stands
`norm(x) * (1 + scale) + shift`: to divide it, `shift / s` and `(1 + scale) / s - 1`, which a bias takes up: `b / s + 1 / s - 1`.
Without a bias of the modulation (AuraFlow) that has no exact place, and only what is linear may fold: values, and gated layers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from qtransformers.archs.spec import When, dimension

Kind = Literal["modulation", "norm", "values", "gated"]  # what takes the scales up
KINDS: tuple[Kind, ...] = get_args(Kind)
# Why there is no place of a kind
NO_BIAS = "its modulation has no bias that would take up the one"
SCALES_ALONE = "it has scales without shifts, and the norms before it take these up"
NO_WEIGHTS = "norms of blocks have no weights"
NOT_LINEAR = "feed-forward layers have GELU between them and no gate"
_PLACE = re.compile(r"(?P<one>1\+)?(?P<name>[^\[\]?]+)(?:\[(?P<start>[^:\]]+):(?P<stop>[^\]]+)\])?(?P<maybe>\?)?")


@dataclass(frozen=True)
class Folding:
    """Layers by their names in the class, `name`, `name[a:b]` for some rows (of readers: columns), `1+name[a:b]` for a scale that one is added to.

    `name?` need not be there. Of a parameter the rows are its values, counted through.
    """

    kind: Kind
    sources: tuple[str, ...]
    readers: tuple[str, ...]
    n: str  # how many scales, symbolic
    repeat: Mapping[str, str] = field(default_factory=dict)  # letter -> how many folds of the kind
    each: Mapping[str, str] = field(default_factory=dict)  # letter -> over how many layers one fold goes
    when: When | None = None  # of the config and the first number: whether there is such a fold
    head: str = ""  # width of a head, where several heads that read share one that is read


@dataclass(frozen=True)
class Part:
    """Rows (of a reader: columns) of a layer."""

    name: str
    start: int
    stop: int
    plus_one: bool = False
    needed: bool = True


@dataclass(frozen=True)
class Fold:
    """One fold of a model."""

    row: Folding
    sources: tuple[Part, ...]
    readers: tuple[Part, ...]
    n: int
    head: int = 0

    def index(self, reader: Part) -> NDArray[np.intp] | None:
        """Which scale each column of a reader has, None for all in their order."""
        width = reader.stop - reader.start
        if width == self.n:
            return None
        column = np.arange(width)
        return column // (self.head * (width // self.n)) * self.head + column % self.head


def resolved(foldings: Iterable[Folding], sizes: Mapping[str, Any]) -> Iterator[Fold]:
    """The folds of a model of these sizes."""
    for f in foldings:
        for numbers in _numbers(f.repeat, sizes):
            if f.when is not None and not f.when(sizes, next(iter(numbers.values()), 0)):
                continue
            n = dimension(f.n, sizes)
            sources, readers = (
                tuple(dict.fromkeys(_part(t, numbers | inner, sizes, n) for t in side for inner in _numbers(f.each, sizes)))
                for side in (f.sources, f.readers)
            )  # fmt: skip
            yield Fold(f, sources, readers, n, dimension(f.head, sizes) if f.head else 0)


def _numbers(counts: Mapping[str, str], sizes: Mapping[str, Any]) -> Iterator[dict[str, int]]:
    for numbers in itertools.product(*(range(dimension(count, sizes)) for count in counts.values())):
        yield dict(zip(counts, numbers, strict=True))


def _part(text: str, numbers: Mapping[str, int], sizes: Mapping[str, Any], n: int) -> Part:
    found = _PLACE.fullmatch(text)
    assert found, text  # a row of ours
    start, stop = (dimension(found[k], sizes) if found[k] else whole for k, whole in (("start", 0), ("stop", n)))
    return Part(found["name"].format(**numbers), start, stop, bool(found["one"]), not found["maybe"])


def modulated(
    modulation: str, scale: int, shift: int, readers: Iterable[str], repeat: Mapping[str, str], when: When | None = None
) -> Folding:  # fmt: skip
    """From what reads a modulated norm into the modulation, whose chunks of `dim` rows number `scale` and `shift` are."""
    rows = [f"{modulation}[{k}*dim:{k + 1}*dim]" for k in (scale, shift)]
    return Folding("modulation", (f"1+{rows[0]}", rows[1]), tuple(readers), "dim", repeat, when=when)


def tabled(
    table: str, embedding: str, scale: int, shift: int, readers: Iterable[str], each: Mapping[str, str]
) -> Folding:  # fmt: skip
    """As `modulated`, where a table of each block and one embedding of the time for all add up: all blocks share their scales."""
    (own, one), (moved, add) = ([f"{name}[{k}*dim:{k + 1}*dim]" for name in (table, embedding)] for k in (scale, shift))
    return Folding("modulation", (f"1+{own}", one, moved, add), tuple(readers), "dim", each=each)


def normed(norm: str, readers: Iterable[str], repeat: Mapping[str, str] | None = None, n: str = "dim", when: When | None = None) -> Folding:  # fmt: skip
    """From what reads a norm into its weight, and its bias where it has one."""
    return Folding("norm", (norm,), tuple(readers), n, repeat or {}, when=when)


def values(block: str, sources: Iterable[str], readers: Iterable[str], repeat: Mapping[str, str], n: str = "dim", when: When | None = None) -> Folding:  # fmt: skip
    """From what takes in attention's heads into the values; all streams that attend to each other share scales."""
    return Folding("values", tuple(f"{block}.{v}" for v in sources), tuple(f"{block}.{o}" for o in readers), n, repeat, when=when)  # fmt: skip


def linear_half(up: str, down: str, repeat: Mapping[str, str], n: str = "ff", when: When | None = None) -> Folding:
    """From the way down of a gated layer into what its gate is multiplied with."""
    return Folding("gated", (up,), (down,), n, repeat, when=when)
