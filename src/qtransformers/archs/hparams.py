"""Hyperparameters of a model: read from a file's metadata or config.json, and held against their rows of the spec."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from qtransformers.archs.spec import NEWER, REMAKE, ArchSpec, HParam, Problem
from qtransformers.checks import shown

INT_LIMIT = 2**31 - 1
LAYER_LIMIT = 1024  # longest per-layer array worth a look


@dataclass(frozen=True, eq=False)
class Hyperparameters(Mapping[str, Any]):
    """Hyperparameters by name, `h.n_heads` or `h["n_heads"]`; `origins` tells where each came from."""

    values_: Mapping[str, Any]
    origins: Mapping[str, str] = field(default_factory=dict)  # a metadata key, `default`, or a key of config.json
    derived: dict[Any, Any] = field(default_factory=dict, repr=False)  # what follows from them, computed once

    @classmethod
    def frozen(cls, values: Mapping[str, Any], origins: Mapping[str, str]) -> Hyperparameters:
        """A copy nobody can change."""
        h = cls(MappingProxyType(dict(values)), MappingProxyType(dict(origins)))
        h.__dict__.update(
            values
        )  # plain attributes: a forward reads hundreds, and __getattr__ takes a microsecond each
        return h

    def replaced(self, **values: Any) -> Hyperparameters:
        """The same with other values, or more."""
        return self.frozen({**self.values_, **values}, self.origins)

    def __getitem__(self, name: str) -> Any:
        return self.values_[name]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["values_"][name]
        except KeyError:
            raise AttributeError(f"no hyperparameter {name!r}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)


@dataclass(frozen=True)
class Spoken:
    """A hyperparameter's value as config.json has it, None for a wrong one that is reported already, and the key that says so."""

    value: Any
    key: str


def read_hparams(
    spec: ArchSpec,
    file: str,
    metadata: Mapping[str, Any],
    rows: Mapping[str, int] | None = None,
    config: Mapping[str, Spoken] | None = None,
) -> tuple[Hyperparameters, list[Problem]]:
    """Hyperparameters from a file's metadata, else from config.json, else the default; with everything wrong about them.

    `rows` are the rows of tensors by attr (`token_embd`), for those that count them. Nothing is raised: with an error
    among the problems the hyperparameters are incomplete.
    """
    arch = metadata.get("general.architecture", spec.id)
    rows, config = rows or {}, config or {}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    problems: list[Problem] = []
    for p in spec.hparams:
        key = f"{arch}.{p.key}"
        try:
            default = p.default(values) if callable(p.default) else p.default
            of_file = _said(p, arch, metadata, rows, values)
            if of_file is not None:
                values[p.name], origins[p.name] = of_file
                if key in metadata and p.applies and not p.applies(values) and of_file[0] != default:
                    problems.append(Problem(f"{file}: {key} = {shown(of_file[0])} means nothing beside the file's other settings", "warning"))  # fmt: skip
            if p.rows_of in rows:
                n = rows[p.rows_of]
                if values.get(p.name, n) != n:
                    text = f"{file}: {key} is {values[p.name]}, but {p.rows_of} has {n} rows; the rows count"
                    problems.append(Problem(text, "warning"))
                values[p.name], origins[p.name] = n, f"rows of {p.rows_of}"
            if p.name in values:
                continue
            if p.name in config and config[p.name].value is None:
                continue
            if p.name in config and (p.applies is None or p.applies(values)):
                values[p.name], origins[p.name] = config[p.name].value, f"config.json: {config[p.name].key}"
                if metadata and values[p.name] != default and p.agree != "free":
                    text = (
                        f"{file} does not say {key}; {values[p.name]} is taken from config.json ({config[p.name].key})"
                    )
                    problems.append(Problem(text, "warning"))
            elif p.required or default is None:
                said = f" and config.json has no {p.hf[0]}" if config and p.hf else ""
                problems.append(Problem(f"{file}: {key} is missing{said}; expected {_expected(p)}. {REMAKE}."))
            else:
                values[p.name], origins[p.name] = checked(p, default) if callable(p.default) else default, "default"
        except KeyError:
            continue  # what it derives from is missing or wrong, and reported already
        except BadValue as e:
            problems.append(e.problem(f"{file}: {key}", REMAKE))
    if len(values) == len(spec.hparams) and spec.check:  # the others are told of already
        problems += (Problem(f"{file}: {p.text}.", p.grade) for p in spec.check(values))
    return Hyperparameters.frozen(values, origins), problems


def _said(
    p: HParam, arch: Any, metadata: Mapping[str, Any], rows: Mapping[str, int], values: Mapping[str, Any]
) -> tuple[Any, str] | None:
    """What a file says of a hyperparameter, and where; None where it does not."""
    n = values["n_layers"] + values.get("n_ahead", 0) if "n_layers" in values else None
    for key in (p.key, *p.also):
        if (name := f"{arch}.{key}") in metadata:
            value = checked(p, metadata[name], n)
            if p.without:
                value = checked(p, value - values.get(p.without, 0))
            return (checked(p, p.also[key](value, values)) if key in p.also else value), name
    for cause, value in p.implied.items():
        if cause in rows or f"{arch}.{cause}" in metadata:
            return value, f"implied by {cause}"
    return None


class BadValue(ValueError):
    """A value that a hyperparameter cannot have."""

    def __init__(self, text: str, unsupported: bool = False) -> None:
        super().__init__(text)
        self.unsupported = unsupported

    def problem(self, where: str, remedy: str) -> Problem:
        """The sentence about the field at `where`."""
        return Problem(f"{where} {self}. {NEWER if self.unsupported else remedy}.", "unsupported" if self.unsupported else "error")  # fmt: skip


def checked(p: HParam, value: Any, n_layers: int | None = None) -> Any:
    """The value as `p.kind`, within bounds; an array with one value a layer counts as that value when all are equal."""
    if p.kind is not str and isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, str):
        value = _of_all_layers(value, n_layers, p.of_layers)
    if p.kind is float and type(value) is int:
        value = float(value) if abs(value) < 2**53 else math.inf
    if isinstance(value, np.generic):
        value = value.item()
    if type(value) is not p.kind:
        raise BadValue(f"is {shown(value)} ({type(value).__name__}); expected {_expected(p)}")
    if p.choices and value not in p.choices:
        raise BadValue(f"is {shown(value)}; expected {' or '.join(map(str, p.choices))}", unsupported=True)
    if p.kind is str or p.kind is bool:
        return value
    high: float = p.maximum if p.maximum is not None else INT_LIMIT if p.kind is int else 3.4e38
    low: float = p.minimum if p.minimum is not None else -high
    if not isinstance(value, (int, float)) or not low <= value <= high:  # NaN fails too
        raise BadValue(f"is {shown(value)}; expected {_expected(p)}")
    return value


def _of_all_layers(values: Any, n_layers: int | None, read: Callable[[Sequence[Any]], Any] | None) -> Any:
    n = len(values)
    if not 0 < n <= LAYER_LIMIT or n != (n_layers or n):
        raise BadValue(f"has {n} values; expected one, or one for each of the {n_layers or ''} layers")
    if read is not None:
        return read(np.asarray(values).tolist())
    first = values[0]
    if any(values[i] != first for i in range(n)):
        some = np.asarray(values[:6]).tolist()
        raise BadValue(f"differs between layers ({shown(some)}); this architecture has one value for all here", unsupported=True)  # fmt: skip
    return first


def _expected(p: HParam) -> str:
    what = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false"}[p.kind]
    low = f" of at least {p.minimum:g}" if p.minimum is not None else ""
    high = p.maximum if p.maximum is not None else INT_LIMIT if p.kind is int else None
    return what + low + (f" and at most {high:.10g}" if high is not None else "")
