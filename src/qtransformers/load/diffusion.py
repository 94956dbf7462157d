"""From a GGUF file of a diffusion transformer to a plan: which architecture, which settings, which tensor goes where.

Only headers are read. Everything that is wrong is told in one report, and nothing is allocated before.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from itertools import islice
from operator import index
from typing import Any

from qtransformers.archs import SPECS as OTHERS
from qtransformers.archs.diffusion import ALL, LAYOUTS, SPECS, Declared, DiffusionSpec, Layout, Shapes, stripped
from qtransformers.archs.hparams import BadValue, Hyperparameters, checked
from qtransformers.archs.spec import HParam, Problem, unnumbered
from qtransformers.checks import shown
from qtransformers.errors import ConfigError, LoadError, UnsupportedError
from qtransformers.gguf import GGUFFile
from qtransformers.kernels.table import why_not
from qtransformers.load.config import raise_problems
from qtransformers.load.findings import ANY_LAYER, Findings
from qtransformers.tensor import QTensor
from qtransformers.types import TYPES

SCHEMA = 1  # of the annotations we write
SCHEMA_KEY, CONFIG_KEY, LAYOUT_KEY = "qtransformers.schema", "qtransformers.config", "qtransformers.layout"
BIASES_KEY = "qtransformers.biases"  # layers that have one, by their names in the class; `{i}`: all of that kind
ORIG_SHAPE = "comfy.gguf.orig_shape."
FOREIGN = ("pig", "cow")  # general.architecture of tools that name none; empty names are alike
OTHER = "Pass a file of this architecture, or convert the model again"
NAMES = 5000  # of a file that nobody knows, in search of what it may be
MOST = 200  # kinds of tensors that nobody knows worth a line in a report
LIST_LIMIT = 64  # longest list in a config worth a look


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


@dataclass(frozen=True, eq=False)
class DiffusionPlan:
    """A load decided and checked, with nothing allocated yet."""

    file: str
    spec: DiffusionSpec
    layout: Layout
    config: Hyperparameters  # keyword arguments of the class, with their origins
    extra: Mapping[str, Any]  # settings of a given config that the spec does not know
    parts: tuple[Part, ...]
    warnings: tuple[str, ...] = ()

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights as stored."""
        return sum({id(p.tensor): p.tensor.nbytes for p in self.parts}.values())


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


def plan_diffusion(
    gguf: GGUFFile,
    config: Mapping[str, Any] | None = None,
    config_file: str = "config",
    specs: Sequence[DiffusionSpec] = ALL,
) -> DiffusionPlan:
    """The plan of a file with the settings that `config`, the file's metadata, its shapes or published models give, in this order.

    LoadError or UnsupportedError with everything that is wrong; ConfigError naming the settings that only a config can tell.
    """
    found = detect(gguf, specs)
    spec, file = found.spec, str(gguf.path)
    settings, extra, problems = read_settings(found, file, annotated(gguf.metadata, file), config, config_file)
    headline = f"{file} cannot be loaded as {spec.title}"
    problems += other_layout(gguf.metadata.get(LAYOUT_KEY), found, file)
    raise_problems(headline, problems)
    parts, misfits = match(spec, found.layout, settings, found.tensors, settings.origins)
    grave = any(p.grade != "warning" for p in misfits)
    other = _other_biases(gguf.metadata.get(BIASES_KEY), parts, file) if not grave else ()
    raise_problems(headline, [*(Problem(f"{file}: {p.text}", p.grade) for p in misfits), *other])
    notes = [p.text for p in problems if p.grade == "warning"]
    notes += [f"{file}: {p.text}" for p in misfits if p.grade == "warning"]
    return DiffusionPlan(file, spec, found.layout, settings, extra, parts, (*found.warnings, *notes))


def annotated(metadata: Mapping[str, Any], file: str) -> dict[str, Any] | None:
    """The config in a file that we wrote; LoadError where it is garbled, None where there is none."""
    text, schema = metadata.get(CONFIG_KEY), metadata.get(SCHEMA_KEY)
    if text is None and schema is None:
        return None
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise UnsupportedError(f"{file}: {SCHEMA_KEY} is {shown(schema)}; this version reads up to {SCHEMA}. Use a newer version of qtransformers.")  # fmt: skip
    if text is None:
        return None
    try:
        config = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise LoadError(f"{file}: {CONFIG_KEY} is {shown(text)}; expected a JSON object. Convert the model again.")
    return config


def other_layout(said: Any, found: Detected, file: str) -> list[Problem]:
    """What the file says of its layout that is not so."""
    if said is None or said == found.layout:
        return []
    return [Problem(f"{file}: {LAYOUT_KEY} is {shown(said)}, but its tensors have the names of the {found.layout} layout of {found.spec.title}. The file is damaged: convert the model again.")]  # fmt: skip


def biases(parts: Iterable[Part]) -> list[str]:
    """The layers that have a bias, by their names in the class: with `{i}` where all of the kind do, else one by one."""
    rows: dict[str, tuple[list[str], list[str]]] = {}
    for part in parts:
        weights, found = rows.setdefault(part.declared.row.name, ([], []))
        (found if part.declared.part == "bias" else weights).append(part.name.rpartition(".")[0])
    return [name for row, (weights, found) in rows.items() for name in ((row,) if found and len(found) == len(weights) else found)]  # fmt: skip


def _other_biases(said: Any, parts: Iterable[Part], file: str) -> Iterable[Problem]:
    """What the file says of its biases that is not so."""
    if said is None:
        return
    found, listed = set(biases(parts)), set(map(str, said)) if isinstance(said, (list, tuple)) else set()
    for name in sorted(listed ^ found):
        what = "is said to have a bias, which is not there" if name in listed else "has a bias that the file does not list"  # fmt: skip
        yield Problem(f"{file}: {name} {what} ({BIASES_KEY}). The file is damaged: convert the model again.")


def read_settings(
    found: Detected, file: str, annotated: Mapping[str, Any] | None, given: Mapping[str, Any] | None, given_file: str
) -> tuple[Hyperparameters, dict[str, Any], list[Problem]]:
    """Settings with their origins, what the spec does not know of those given, and what is wrong with them."""
    spec = found.spec
    rows = () if callable(spec.tensors) else spec.tensors
    shapes = Shapes(rows, found.layout, found.shapes)
    said = [
        (source, name)
        for source, name in ((given, given_file), (annotated, f"{file}: {CONFIG_KEY}"))
        if source is not None
    ]
    derived = {p.name: p.derive(shapes) for p in spec.hparams if p.derive}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    problems: list[Problem] = []
    notes: list[Problem] = []
    for source, name in said:
        theirs = source.get("_class_name")
        if theirs is not None and theirs != spec.class_name:
            problems.append(Problem(f"{name}: _class_name is {shown(theirs)}, but {file} has the tensors of {spec.class_name}. They belong to different models: pass the config of this one."))  # fmt: skip
    for p in spec.hparams:
        own = derived.get(p.name)
        for source, name in said:
            if source.get(p.name) is None:
                continue
            try:
                value = setting_value(p, _of_all(p, source[p.name], derived))
            except BadValue as e:
                problems.append(e.problem(f"{name}: {p.name}", "Pass the config of this model"))
                break
            if own is not None and value != own:
                problems.append(Problem(f"{name}: {p.name} is {shown(value)}, but the tensors of {file} say {shown(own)}. They belong to different models: pass the config of this one."))  # fmt: skip
            if _plain(values.setdefault(p.name, value)) != _plain(value):
                guessed = _plain(value) == _plain(_default(p, values))  # as where a file was made without a config
                found_other = _contradiction(p.name, values[p.name], origins[p.name], value, name)
                (notes if guessed else problems).append(found_other)
            origins.setdefault(p.name, name)
        if p.name not in values and own is not None:
            try:
                values[p.name], origins[p.name] = setting_value(p, own), "shapes"
            except BadValue as e:
                problems.append(e.problem(f"{file}: {p.name}, by the shapes of its tensors,", OTHER))
    absent = {p.name: None for p in spec.hparams if p.nullable and p.derive and derived[p.name] is None}
    published = _published(spec, absent | {k: v for k, v in values.items() if origins[k] == "shapes"})
    missing: list[HParam] = []
    for p in spec.hparams:
        if p.name in values or any(f": {p.name} " in problem.text for problem in problems):
            continue
        if published and p.name in published[1]:
            values[p.name], origins[p.name] = published[1][p.name], f"published: {published[0]}"
        elif (default := _default(p, values)) is not None or p.nullable:
            values[p.name], origins[p.name] = default, "default"
        elif p.required or p.default is not None:
            missing.append(p)
        else:
            problems.append(Problem(f"{file}: {p.name} cannot be told: the tensor that shows it is missing, or has another shape. {OTHER}."))  # fmt: skip
    if missing and not problems:
        names = " and ".join(p.name + (f" ({p.hint})" if p.hint else "") for p in missing)
        raise ConfigError(f"{file}: no tensor shows {names} of {spec.title}, and the file does not say. Pass config= with {'it' if len(missing) == 1 else 'them'}, or the folder or Hub id of the model it was made from.")  # fmt: skip
    if not problems and spec.check:
        problems += (Problem(f"{file}: {p.text}. {OTHER}.", p.grade) for p in spec.check(values))
    known = {p.name for p in spec.hparams}
    if given and annotated:
        others = (k for k in given if k not in known and not k.startswith("_"))
        for k in others:
            if given[k] is not None and annotated.get(k) is not None and _plain(given[k]) != _plain(annotated[k]):
                problems.append(_contradiction(k, given[k], given_file, annotated[k], f"{file}: {CONFIG_KEY}"))
    extra = {k: v for source, _ in reversed(said) for k, v in source.items() if k not in known and not k.startswith("_")}  # fmt: skip
    told = (
        Problem(f"{n.text.partition('. They')[0]}, as where nobody says; the former is used", "warning") for n in notes
    )
    return Hyperparameters.frozen(values, origins), extra, [*problems, *told]


def _contradiction(name: str, value: Any, where: str, other: Any, elsewhere: str) -> Problem:
    return Problem(f"{where}: {name} is {shown(value)}, but {elsewhere} says {shown(other)}. They belong to different models: pass the config of this one, or convert the model again with it.")  # fmt: skip


def _plain(value: Any) -> Any:
    """A value with lists in place of tuples, as JSON has it."""
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _default(p: HParam, values: Mapping[str, Any]) -> Any:
    """What published models have; None where that does not fit the settings so far."""
    try:
        return None if p.required else p.default(values) if callable(p.default) else p.default
    except KeyError:  # one that it hangs on is missing, and asked for
        return None


def _of_all(p: HParam, value: Any, derived: Mapping[str, Any]) -> Any:
    """One number for every block as a list, where that is how the spec has it."""
    if not p.alike or isinstance(value, (list, tuple)):
        return value
    return (value,) * len(derived.get(p.alike) or (0,))


def setting_value(p: HParam, value: Any) -> Any:
    """The value as `p.kind` within bounds; BadValue."""
    if p.kind is not tuple:
        if isinstance(value, (list, tuple)):
            raise BadValue(f"is {shown(value)}; expected one value")
        return checked(p, value)
    if not isinstance(value, (list, tuple)) or len(value) > LIST_LIMIT:
        raise BadValue(f"is {shown(value)}; expected a list")
    return tuple(_element(p, v) for v in value)


def _element(p: HParam, value: Any) -> Any:
    if (
        isinstance(value, (list, tuple))
        and len(value) <= LIST_LIMIT
        and not any(isinstance(v, (list, tuple)) for v in value)
    ):
        return tuple(_element(p, v) for v in value)
    anything = p.minimum is None and type(value) in (str, bool)
    in_range = anything or (
        type(value) in (int, float)
        and (p.minimum is None or value >= p.minimum)
        and (p.maximum is None or value <= p.maximum)
    )
    if not in_range:  # NaN fails too
        raise BadValue(f"holds {shown(value)}; expected numbers" + (f" of at least {p.minimum:g}" if p.minimum is not None else ""))  # fmt: skip
    return value


def _published(spec: DiffusionSpec, derived: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """The published model that all derived sizes are those of."""
    for name, variant in spec.variants.items():
        if any(k in derived for k in variant) and all(derived.get(k, v) == v for k, v in variant.items()):
            return name, variant
    return None


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
    unread = [n for n in tensors if n not in expected and any(re.fullmatch(u, n) for u in spec.unused)]
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
    return tuple(parts), [*findings.problems(), *_left_out([n for n in unread if tensors[n].n_values > 1], spec)]


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
