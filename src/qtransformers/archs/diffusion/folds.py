"""Where scales may move between the weights of a diffusion model without changing a picture: declared by its spec, resolved for a config.

`sources` are divided by the scales s, the columns of `readers` multiplied. After a norm without weights stands
`norm(x) * (1 + scale) + shift`: to divide it, `shift / s` and `(1 + scale) / s - 1`, which a bias takes up: `b / s + 1 / s - 1`.
Without a bias of the modulation (AuraFlow) that has no exact place, and only what is linear may fold: values, and gated layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qtransformers.archs.spec import dimension

_PLACE = re.compile(r"(?P<one>1\+)?(?P<name>[^\[\]]+)(?:\[(?P<start>[^:\]]+):(?P<stop>[^\]]+)\])?")


@dataclass(frozen=True)
class Folding:
    """Layers by their names in the class, `name`, `name[a:b]` for some rows (of readers: columns), `1+name[a:b]` for a scale that one is added to."""

    sources: tuple[str, ...]
    readers: tuple[str, ...]
    n: str  # how many scales, symbolic
    repeat: tuple[str, str] = ("", "")  # letter and how many


@dataclass(frozen=True)
class Part:
    """Rows (of a reader: columns) of a layer."""

    name: str
    start: int
    stop: int
    plus_one: bool = False


@dataclass(frozen=True)
class Fold:
    """One fold of a model."""

    sources: tuple[Part, ...]
    readers: tuple[Part, ...]
    n: int


def resolved(foldings: tuple[Folding, ...], sizes: Mapping[str, Any]) -> Iterator[Fold]:
    """The folds of a model of these sizes."""
    for f in foldings:
        n = dimension(f.n, sizes)
        letter, count = f.repeat
        for i in range(dimension(count, sizes) if letter else 1):
            numbers = {letter: i} if letter else {}
            sources, readers = (tuple(_part(t, numbers, sizes, n) for t in side) for side in (f.sources, f.readers))
            yield Fold(sources, readers, n)


def _part(text: str, numbers: Mapping[str, int], sizes: Mapping[str, Any], n: int) -> Part:
    found = _PLACE.fullmatch(text)
    assert found, text  # a row of ours
    start, stop = (dimension(found[k], sizes) if found[k] else whole for k, whole in (("start", 0), ("stop", n)))
    return Part(found["name"].format(**numbers), start, stop, bool(found["one"]))


def modulated(modulation: str, scale: int, shift: int, readers: tuple[str, ...], repeat: tuple[str, str]) -> Folding:
    """From what reads a modulated norm into the modulation, whose chunks of `dim` rows number `scale` and `shift` are."""
    rows = [f"{modulation}[{k}*dim:{k + 1}*dim]" for k in (scale, shift)]
    return Folding((f"1+{rows[0]}", rows[1]), readers, "dim", repeat)
