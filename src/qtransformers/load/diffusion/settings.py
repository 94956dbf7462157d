"""Settings of a diffusion transformer: of a given config, of the file's annotations, its shapes, or a published model, in this order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qtransformers.archs.diffusion import DiffusionSpec, Shapes
from qtransformers.archs.hparams import BadValue, Hyperparameters, checked
from qtransformers.archs.spec import HParam, Problem
from qtransformers.checks import shown
from qtransformers.errors import ConfigError
from qtransformers.load.diffusion.annotations import CONFIG_KEY
from qtransformers.load.diffusion.detection import Detected
from qtransformers.load.diffusion.matching import OTHER

LIST_LIMIT = 64  # longest list in a config worth a look


def read_settings(
    found: Detected,
    file: str,
    annotated: Mapping[str, Any] | None,
    given: Mapping[str, Any] | None,
    given_file: str,
    key: str = CONFIG_KEY,
) -> tuple[Hyperparameters, dict[str, Any], list[Problem]]:
    """Settings with their origins, what the spec does not know of those given, and what is wrong with them.

    `annotated` are those in the file's metadata, under `key`.
    """
    spec, both = found.spec, ((given, given_file), (annotated, f"{file}: {key}"))
    shapes = Shapes(() if callable(spec.tensors) else spec.tensors, found.layout, found.shapes)
    derived = {p.name: p.derive(shapes) for p in spec.hparams if p.derive}
    reading = _Reading(file, spec, derived, [(source, name) for source, name in both if source is not None])
    _of_another_class(reading)
    for p in spec.hparams:
        _said(reading, p)
        _shown_by_shapes(reading, p)
    _published_or_default(reading)
    problems = reading.problems
    if not problems and spec.check:
        problems += (Problem(f"{file}: {p.text}. {OTHER}.", p.grade) for p in spec.check(reading.values))
    extra, unlike = _unknown(reading)
    return Hyperparameters.frozen(reading.values, reading.origins), extra, [*problems, *unlike, *reading.notes]


@dataclass
class _Reading:
    """What is known of the settings of a file by now: `said` by whom, `derived` from shapes, and what is wrong with it."""

    file: str
    spec: DiffusionSpec
    derived: Mapping[str, Any]
    said: Sequence[tuple[Mapping[str, Any], str]]  # settings, and what to call their source
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)  # settings that somebody tells, and wrongly


def _of_another_class(reading: _Reading) -> None:
    for source, name in reading.said:
        theirs = source.get("_class_name")
        if theirs is not None and theirs != reading.spec.class_name:
            reading.problems.append(Problem(f"{name}: _class_name is {shown(theirs)}, but {reading.file} has the tensors of {reading.spec.class_name}. They belong to different models: pass the config of this one."))  # fmt: skip


def _said(reading: _Reading, p: HParam) -> None:
    """A setting as a config or the file says it; the first counts, and the others must say the same."""
    own, values, problems = reading.derived.get(p.name), reading.values, reading.problems
    for source, name in reading.said:
        if source.get(p.name) is None:
            continue
        try:
            value = setting_value(p, _of_all(p, source[p.name], reading.derived))
        except BadValue as e:
            problems.append(e.problem(f"{name}: {p.name}", "Pass the config of this model"))
            reading.refused.add(p.name)
            return
        if own is not None and value != own:
            problems.append(Problem(f"{name}: {p.name} is {shown(value)}, but the tensors of {reading.file} say {shown(own)}. They belong to different models: pass the config of this one."))  # fmt: skip
        if _plain(values.setdefault(p.name, value)) != _plain(value):
            found = _contradiction(p.name, values[p.name], reading.origins[p.name], value, name)
            if _plain(value) == _plain(_default(p, values)):  # as where a file was made without a config
                text = f"{found.text.partition('. They')[0]}, as where nobody says; the former is used"
                reading.notes.append(Problem(text, "warning"))
            else:
                problems.append(found)
        reading.origins.setdefault(p.name, name)


def _shown_by_shapes(reading: _Reading, p: HParam) -> None:
    own = reading.derived.get(p.name)
    if p.name in reading.values or own is None:
        return
    try:
        reading.values[p.name], reading.origins[p.name] = setting_value(p, own), "shapes"
    except BadValue as e:
        reading.problems.append(e.problem(f"{reading.file}: {p.name}, by the shapes of its tensors,", OTHER))
        reading.refused.add(p.name)


def _published_or_default(reading: _Reading) -> None:
    """Settings that neither anybody says nor shapes show; ConfigError naming those that nothing tells."""
    spec, values, origins = reading.spec, reading.values, reading.origins
    absent = {p.name: None for p in spec.hparams if p.nullable and p.derive and reading.derived[p.name] is None}
    published = _published(spec, absent | {k: v for k, v in values.items() if origins[k] == "shapes"})
    missing: list[HParam] = []
    for p in spec.hparams:
        if p.name in values or p.name in reading.refused:
            continue
        if published and p.name in published[1]:
            values[p.name], origins[p.name] = published[1][p.name], f"published: {published[0]}"
        elif (default := _default(p, values)) is not None or p.nullable:
            values[p.name], origins[p.name] = default, "default"
        elif p.required or p.default is not None:
            missing.append(p)
        else:
            reading.problems.append(Problem(f"{reading.file}: {p.name} cannot be told: the tensor that shows it is missing, or has another shape. {OTHER}."))  # fmt: skip
    if missing and not reading.problems:
        names = " and ".join(p.name + (f" ({p.hint})" if p.hint else "") for p in missing)
        raise ConfigError(f"{reading.file}: no tensor shows {names} of {spec.title}, and the file does not say. Pass config= with {'it' if len(missing) == 1 else 'them'}, or the folder or Hub id of the model it was made from.")  # fmt: skip


def _unknown(reading: _Reading) -> tuple[dict[str, Any], list[Problem]]:
    """What is said that the spec does not know, the first to say it counts; and where two say otherwise."""
    known = {p.name for p in reading.spec.hparams}
    found: dict[str, Any] = {}
    where: dict[str, str] = {}
    problems: list[Problem] = []
    for source, name in reading.said:
        for k, v in source.items():
            if k in known or k.startswith("_"):
                continue
            first = found.setdefault(k, v)
            if where.setdefault(k, name) != name and None not in (first, v) and _plain(first) != _plain(v):
                problems.append(_contradiction(k, first, where[k], v, name))
    return found, problems


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
