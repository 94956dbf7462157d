"""Problems with tensors, gathered so that what is wrong in every layer is one line."""

from __future__ import annotations

import re
from collections.abc import Iterator

from qtransformers.archs.spec import Grade, Problem

LAYER = re.compile(r"\bblk\.(\d+)\.")
ANY_LAYER = re.compile(r"(?<=\.)(\d+)(?=\.)")  # the first number within a name, where layers have no common prefix


class Findings:
    """What is wrong with which tensors."""

    def __init__(self, layer: re.Pattern[str] = LAYER) -> None:
        self._pattern = layer
        self._layers: dict[tuple[str, str, Grade], list[int]] = {}

    def add(self, name: str, text: str, grade: Grade = "error") -> None:
        """A finding on one tensor; equal ones of other layers join it."""
        found = self._pattern.search(name)
        key = name[: found.start(1)] + "{i}" + name[found.end(1) :] if found else name
        self._layers.setdefault((key, text, grade), []).append(int(found[1]) if found else -1)

    def problems(self) -> Iterator[Problem]:
        """One problem for each name and text, its layers as ranges: `blk.0-3,7.attn_q.weight is missing`."""
        for (name, text, grade), layers in self._layers.items():
            yield Problem(f"{name.replace('{i}', ranges(layers))} {text}", grade)


def template(name: str) -> str:
    """A tensor's name with `{i}` in place of its layer."""
    return LAYER.sub("blk.{i}.", name)


def ranges(numbers: list[int]) -> str:
    """`0-3,7` for [0, 1, 2, 3, 7]."""
    parts: list[list[int]] = []
    for n in sorted(set(numbers)):
        if parts and n == parts[-1][1] + 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
