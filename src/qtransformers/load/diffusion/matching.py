"""Each tensor of a diffusion transformer's class with its rows in the file, and one report of all that does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from itertools import islice
from typing import Any

from qtransformers.archs.diffusion import Declared, DiffusionSpec, Layout
from qtransformers.archs.spec import Problem, unnumbered
from qtransformers.kernels.table import why_not
from qtransformers.load.findings import ANY_LAYER, Findings
from qtransformers.tensor import QTensor
from qtransformers.types import TYPES

OTHER = "Pass a file of this architecture, or convert the model again"
MOST = 200  # kinds of tensors that nobody knows worth a line in a report


@dataclass(frozen=True, eq=False)
class Part:
    """A tensor of the class, and where its values lie: `tensor` whole, or its `ranges` of rows one after the other."""

    declared: Declared
    tensor: QTensor
    ranges: tuple[tuple[int, int], ...] = ()

    @property
    def name(self) -> str:
        """In the class of diffusers."""
        return self.declared.name


def match(
    spec: DiffusionSpec, layout: Layout, settings: Mapping[str, Any], tensors: Mapping[str, QTensor], origins: Mapping[str, str] | None = None,
) -> tuple[tuple[Part, ...], list[Problem]]:  # fmt: skip
    """Each tensor of the class with its rows in the file, and what does not fit, by which settings where `origins` tells of them."""
    findings = Findings(ANY_LAYER)
    parts: list[Part] = []
    expected: dict[str, list[Declared]] = {}
    for declared in spec.declared(settings):
        if name := source_name(declared, layout):
            expected.setdefault(name, []).append(declared)
    _all_or_none(expected, tensors, spec, findings)
    unread = [n for n in tensors if n not in expected and matches(spec.unused, n)]
    strangers = [n for n in tensors if n not in expected and n not in unread]
    like_stranger = _nearest_of(strangers, "the file")
    told = _told_sizes(spec, layout, settings, origins or {})
    for name, sharers in expected.items():
        tensor = tensors.get(name)
        presence = max((d.presence for d in sharers), key=("never", "optional", "required").index)
        shape = whole_shape(sharers, layout)
        if tensor is None:
            if presence == "required":
                findings.add(name, f"is missing; expected {list(shape)}.{like_stranger(name)} {OTHER}.")
        elif presence == "never":
            findings.add(name, f"is in the file, but {spec.title} has no bias there, and leaving it out would change the pictures. {OTHER}.")  # fmt: skip
        elif _without_ones(tensor.shape) != _without_ones(shape):
            by = told(name)
            remedy = f"The {'size' if len(by) == 1 else 'sizes'} may be those of another model: pass the config of this one" if by else OTHER  # fmt: skip
            why = f", by {' and '.join(by)}" if by else ""
            findings.add(name, f"is {list(tensor.shape)}; expected {list(shape)}{why}.{_byte_shaped(tensor, shape)} {remedy}.")  # fmt: skip
        elif reason := why_not("linear", tensor.type, "cpu"):
            findings.add(name, f"cannot be used: {reason}. Use a file of another quantisation.", "unsupported")
        else:
            whole = tensor.reshaped(shape)
            parts += (Part(d, whole, d.origin.ranges if layout == "original" and d.origin else ()) for d in sharers)
    like_missing = _nearest_of((n for n in expected if n not in tensors), f"what {spec.title} has")
    kinds: dict[str, None] = {}
    for name in strangers:
        if len(kinds) < MOST or unnumbered(name) in kinds:
            kinds[unnumbered(name)] = None
            findings.add(name, f"is in the file, but {spec.title} has no such tensor.{like_missing(name)} {OTHER}.")
    if more := sum(unnumbered(name) not in kinds for name in strangers):
        findings.add(f"{more} more tensors", f"are in the file that {spec.title} does not have. {OTHER}.")
    return tuple(parts), [
        *findings.problems(),
        *_left_out([n for n in unread if tensors[n].n_values > 1 and not matches(spec.beside, n)], spec),
    ]


def _told_sizes(spec: DiffusionSpec, layout: Layout, settings: Mapping[str, Any], origins: Mapping[str, str]) -> Callable[[str], list[str]]:  # fmt: skip
    """Says which settings that a config told, not a tensor, the shape of a tensor of the file comes from."""

    @cache
    def shapes(name: str, factor: int) -> Mapping[str, tuple[int, ...]]:
        changed = {**settings, name: settings[name] * factor} if name else settings
        sharers: dict[str, list[Declared]] = {}
        for d in spec.declared(changed):
            sharers.setdefault(source_name(d, layout), []).append(d)
        return {n: whole_shape(ds, layout) for n, ds in sharers.items() if n}

    told = [n for n, where in origins.items() if type(settings.get(n)) is int and where not in ("shapes", "default") and not where.startswith("published")]  # fmt: skip
    return lambda tensor: [f"{n} {settings[n]} of {origins[n]}" for n in told if shapes(n, 2).get(tensor) != shapes("", 1)[tensor]]  # fmt: skip


def _all_or_none(expected: Mapping[str, list[Declared]], tensors: Mapping[str, QTensor], spec: DiffusionSpec, findings: Findings) -> None:  # fmt: skip
    """A bias that a setting turns on is in every layer, or in none: what a file has in some was lost in the others."""
    optional: dict[str, list[str]] = {}
    for name, sharers in expected.items():
        for d in sharers:
            if d.part == "bias" and d.presence == "optional":
                optional.setdefault(d.row.name, []).append(name)
    for names in optional.values():
        there = [name for name in names if name in tensors]
        for name in names if there else ():
            if name not in tensors:
                findings.add(name, f"is missing, but {there[0]} is there, and {spec.title} has such biases in all layers or in none. {OTHER}.")  # fmt: skip


def matches(patterns: Iterable[str], name: str) -> bool:
    """Whether a tensor's whole name is as one of these."""
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _left_out(names: Sequence[str], spec: DiffusionSpec) -> Iterable[Problem]:
    """What published files have and nothing reads, in one line; a mark of a single value is no loss."""
    if names:
        kinds = [*dict.fromkeys(map(unnumbered, names))]
        more = f" and {len(kinds) - 8} kinds more" if len(kinds) > 8 else ""
        yield Problem(f"{spec.title} does not read {', '.join(kinds[:8])}{more}; left out", "warning")


def source_name(declared: Declared, layout: Layout) -> str:
    """Name of the tensor of a layout that holds it, "" where it has none."""
    if layout == "diffusers":
        return declared.name
    return declared.origin.name if declared.origin else ""


def whole_shape(sharers: Iterable[Declared], layout: Layout) -> tuple[int, ...]:
    """Shape of the tensor that these share in a layout."""
    first, *_ = sharers = list(sharers)
    if layout == "diffusers" or first.origin is None or not first.origin.ranges:
        return first.shape
    return (max(stop for d in sharers if d.origin for _, stop in d.origin.ranges), *first.shape[1:])


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[next((i for i, n in enumerate(shape) if n != 1), len(shape)) :]


def _byte_shaped(tensor: QTensor, shape: tuple[int, ...]) -> str:
    """What to say of bytes in the place of blocks, which no file can hold but as a type of one byte."""
    if tensor.type.name != "I8" or tensor.shape[:-1] != shape[:-1] or not shape:
        return ""
    packed = [t.name for t in TYPES.values() if t.block_size > 1 and shape[-1] % t.block_size == 0 and t.row_bytes(shape[-1]) == tensor.shape[-1]]  # fmt: skip
    return f" The last size counts bytes, not values: a tool wrote packed blocks ({' or '.join(packed)}) as plain bytes." if packed else ""  # fmt: skip


def _nearest_of(names: Iterable[str], where: str) -> Callable[[str], str]:
    """Says which of the names is like one that is wrong, `{i}` for numbers: what is wrong in every layer is one line."""
    templates = list(islice(dict.fromkeys(map(unnumbered, names)), MOST))

    @cache
    def close(template: str) -> str:
        found = get_close_matches(template, templates, n=2, cutoff=0.75)
        return f" Nearest in {where}: {', '.join(found)}." if found else ""

    return lambda name: close(unnumbered(name))
