"""What a conversion will write, resolved from headers alone: metadata, and every tensor with its source and type."""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.checks import shown
from qtransformers.convert.mixtures import mixed
from qtransformers.convert.recipes import RECIPES, needs_importance, policies, recipe_of, types_for
from qtransformers.convert.sources import Changed, Lying, Scaled, Source, Values
from qtransformers.errors import ConfigError, UnsupportedError
from qtransformers.types import BY_NAME, QuantType

QUANTIZATION_VERSION = 2  # of the block formats, unchanged since 2023
Importance = Mapping[str, Values]  # by tensor: [width], or [n_experts, width]


@dataclass(frozen=True, eq=False)
class Asked:
    """What is asked of a conversion, beside the model: see `plan_conversion`."""

    type: str  # of the file
    name: str | None = None
    pre: str | None = None
    overrides: tuple[tuple[str, str], ...] = ()
    keep: tuple[str, ...] = ()
    importance: Importance | None = None
    learns: bool = False
    force: bool = False
    layout: str | None = None  # of a diffusion model
    config: Mapping[str, Any] | str | Path | None = None  # of a diffusion model
    outline: bool = (
        False  # whether the plan is only looked at: of a diffusion model, floats of 8 bits then are not decoded
    )


@dataclass(frozen=True, eq=False)
class Target:
    """A tensor of the file to be: name, type and shape there, and where its values come from."""

    name: str
    type: QuantType
    shape: tuple[int, ...]
    source: tuple[Source, ...] | Values  # tensors one after the other, or values from a config
    order: NDArray[np.intp] | None = None  # the rows' order in the file, where it is another
    importance: Values | None = None  # of columns, [width] or [n_experts, width]
    stated: bool = False  # whether the user has said its type

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return self.type.row_bytes(self.shape[-1]) * math.prod(self.shape[:-1])

    @property
    def stored(self) -> QuantType | None:
        """The type in which the source has it without loss, None where there is none."""
        if isinstance(self.source, np.ndarray):
            return BY_NAME["F32"]
        types = {source.type for source in self.source}
        return types.pop() if len(types) == 1 else None

    @property
    def packed(self) -> bool:
        """Whether it comes from a checkpoint's own way of quantising."""
        return not isinstance(self.source, np.ndarray) and all(
            s.type is not None and not isinstance(s, (Lying, Scaled)) for s in self.source
        )


@dataclass(frozen=True, eq=False)
class ConversionPlan:
    """Everything that will be written."""

    model: Path
    metadata: dict[str, Any]
    tensors: tuple[Target, ...]
    file_type: str = "Q8_0"
    files: tuple[Path, ...] = ()  # what it is made from
    force: bool = False  # write 0 where a weight is not finite

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data."""
        return sum(t.nbytes for t in self.tensors)

    @property
    def n_parameters(self) -> int:
        """How many weights there are."""
        return sum(math.prod(t.shape) for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Of all tensors together."""
        return 8 * self.nbytes / max(1, self.n_parameters)

    def sizes(self) -> dict[QuantType, tuple[int, int, int]]:
        """Tensors, weights and bytes by type, most bytes first."""
        found: dict[QuantType, list[int]] = {}
        for t in self.tensors:
            row = found.setdefault(t.type, [0, 0, 0])
            for i, n in enumerate((1, math.prod(t.shape), t.nbytes)):
                row[i] += n
        return {k: (v[0], v[1], v[2]) for k, v in sorted(found.items(), key=lambda p: -p[1][2])}

    def fingerprint(self) -> str:
        """What two runs must have in common for one to go on where the other ended."""
        digest = hashlib.sha256(repr((self.file_type, self.force)).encode())
        for path in self.files:
            stat = path.stat()
            digest.update(repr((str(path.resolve()), stat.st_size, stat.st_mtime_ns)).encode())
        for t in self.tensors:
            digest.update(repr((t.name, t.type.name, t.shape, t.stated)).encode())
            for array in (t.importance, t.source if isinstance(t.source, np.ndarray) else None):
                digest.update(b"-" if array is None else np.ascontiguousarray(array).data)
        return digest.hexdigest()[:12]


def typed(
    targets: Sequence[Target],
    metadata: Mapping[str, Any],
    asked: Asked,
    *,
    kept: QuantType | None,
    policy_of: Mapping[str, str] | None = None,
) -> tuple[Target, ...]:
    """The targets with the types of the file that is asked for; `kept` is that of what no recipe touches, None: as stored.

    `policy_of` are the policies of a diffusion model's tensors, which follow mixtures of their own.
    Weights that are quantised in a way of their own (AWQ, GPTQ, ...) keep their integers in files of quantised types. ConfigError:
    what has no place in the model, types that are noise without importance (unless forced), a wrong importance matrix.
    """
    name, recipe = recipe_of(asked.type)
    shapes = {t.name: t.shape for t in targets}
    overrides, keep, importance = asked.overrides, asked.keep, _of_some(asked.importance)
    _check_patterns([pattern for pattern, _ in overrides] + list(keep), shapes)
    if importance is not None and not shapes.keys() & importance.keys():
        raise ConfigError(
            f"the importance matrix has no tensor of this model ({shown(next(iter(importance), 'it is empty'))}, ...). It is of another model."
        )
    if policy_of is None:
        policy_of = policies(shapes, str(metadata.get("general.architecture", "")))
        found = types_for(
            name, shapes, metadata, importance=importance is not None or asked.learns, overrides=overrides
        )
    else:
        found = mixed(name, shapes, policy_of, overrides)
    _check_effect([pattern for pattern, _ in overrides], found)
    done = []
    for t in targets:
        type_, stored = found[t.name], t.stored
        stated = any(re.search(pattern, t.name) for pattern, _ in overrides)
        kept_so = any(re.search(pattern, t.name) for pattern in keep)
        if isinstance(t.source, np.ndarray):
            type_ = BY_NAME["F32"]
        elif type_ is None:
            type_ = kept or stored or BY_NAME["F32"]
        elif kept_so:
            type_ = stored or BY_NAME["F16"]
        elif t.packed and stored and recipe.type.is_quantized and not stated:
            type_ = stored
        done.append(replace(t, type=type_, importance=_importance_of(t, type_, importance), stated=stated or kept_so))
    if importance is not None:
        _say_uncovered(done, importance, asked.learns)
    _check_encodable(done)
    if not asked.learns:
        _check_worth(done, policy_of, name, asked.force)
    anew = [t.name for t in done if t.type.is_quantized and not t.packed and _was_packed(t)]
    if anew:
        warnings.warn(
            f"{len(anew)} tensors ({anew[0]}, ...) are quantised anew: their rows are mixed in the checkpoint",
            stacklevel=3,
        )
    return tuple(done)


def _was_packed(target: Target) -> bool:
    """Whether it comes from what a checkpoint has quantised, by a change that its integers do not survive."""
    return not isinstance(target.source, np.ndarray) and any(
        isinstance(s, Changed) and s.source.type is not None and s.source.type.is_quantized for s in target.source
    )


def file_type_of(targets: Sequence[Target], file_type: str) -> int:
    """general.file_type: the number asked for, or where weights kept their integers, that of most bytes."""
    recipe = recipe_of(file_type)[1]
    bytes_of: Counter[str] = Counter()
    for t in targets:
        bytes_of[t.type.name] += t.nbytes
    most = bytes_of.most_common(1)[0][0] if bytes_of else recipe.base
    if recipe.type.is_quantized and any(t.packed and t.type is t.stored for t in targets):
        recipe = next((r for r in RECIPES.values() if r.base == most), recipe)
    return recipe.id


def refiled(plan: ConversionPlan, types: Mapping[str, QuantType]) -> ConversionPlan:
    """The plan with other types of tensors; general.file_type is the number of files whose type most of the bytes have."""
    tensors = tuple(replace(t, type=types[t.name]) for t in plan.tensors)
    bytes_of: Counter[str] = Counter()
    for t in tensors:
        bytes_of[t.type.name] += t.nbytes
    most = bytes_of.most_common(1)[0][0]
    id = next((r.id for r in RECIPES.values() if r.base == most), int(plan.metadata["general.file_type"]))
    return replace(plan, tensors=tensors, metadata=plan.metadata | {"general.file_type": np.uint32(id)})


def _of_some(importance: Importance | None) -> Importance | None:
    """The importance of weights that anything came to; ConfigError where that is none."""
    if not importance:
        return importance
    idle = [name for name, values in importance.items() if not values.any()]
    if len(idle) == len(importance):
        raise ConfigError(f"the importance matrix is all zeros ({shown(idle[0])}, ...): nothing came to the model it was collected from. Collect it again (qtransformers imatrix).")  # fmt: skip
    if idle:
        warnings.warn(f"the importance matrix has zeros alone for {len(idle)} weights ({idle[0]}, ...), to which nothing came: they count as not in it. Collect it on more text", stacklevel=5)  # fmt: skip
    return {name: values for name, values in importance.items() if name not in idle}


def _importance_of(target: Target, to: QuantType, importance: Importance | None) -> Values | None:
    """A target's importance in the shape that its encoder takes; ConfigError where it belongs to another tensor."""
    values = (importance or {}).get(target.name)
    if values is None or not to.is_quantized:
        return None
    width, n = target.shape[-1], target.shape[0] if len(target.shape) > 2 else 1
    if values.size not in (width, n * width):
        raise ConfigError(
            f"the importance matrix has {values.size} values for {target.name}; expected {n * width}. It was made from another model."
        )
    return np.ascontiguousarray(values.reshape(-1, width) if values.size > width else values.reshape(-1), np.float32)


def _check_patterns(patterns: Iterable[str], names: Iterable[str]) -> None:
    names = list(names)
    for pattern in patterns:
        try:
            hit = any(re.search(pattern, name) for name in names)
        except re.error as e:
            raise ConfigError(f"the pattern {pattern!r} of tensors is no regular expression ({e}).") from e
        if not hit:
            raise ConfigError(f"no tensor's name matches {pattern!r}; they are called {', '.join(names[:4])}, ...")


def _check_effect(patterns: Iterable[str], found: Mapping[str, QuantType | None]) -> None:
    """That types asked for go to weights that may have them: norms, biases and the like never change."""
    for pattern in patterns:
        if all(type_ is None for name, type_ in found.items() if re.search(pattern, name)):
            name = next(name for name in found if re.search(pattern, name))
            raise ConfigError(f"{pattern!r} finds only tensors that are not quantised ({name}, ...). Leave it out.")


def _say_uncovered(targets: Iterable[Target], importance: Importance, learns: bool) -> None:
    """A warning where the importance matrix and the model do not cover each other."""
    targets = list(targets)
    strange = sorted(importance.keys() - {t.name for t in targets})
    if strange:
        warnings.warn(
            f"the importance matrix has {len(strange)} weights that this model lacks ({strange[0]}, ...): is it of another model?",
            stacklevel=4,
        )
    embedding = "token_embd.weight"  # which is looked up: only a tied one is multiplied with
    bare = [t.name for t in targets if t.importance is None and t.type.is_quantized and t.type is not t.stored]
    if bare := [name for name in bare if name != embedding]:
        warnings.warn(
            f"the importance matrix says nothing of {len(bare)} weights ({bare[0]}, ...): they are encoded {'with what the texts tell' if learns else 'without importance'}",
            stacklevel=4,
        )


def _check_worth(targets: Iterable[Target], policy_of: Mapping[str, str], file_type: str, force: bool) -> None:
    """That no type is noise for want of importance."""
    blind = [
        t.name
        for t in targets
        if t.importance is None and t.type is not t.stored and needs_importance(policy_of[t.name], t.type, file_type)
    ]
    if blind and not force:
        raise ConfigError(
            f"{file_type} is of no use without an importance matrix, which {len(blind)} tensors lack ({shown(blind[0])}, ...). "
            "Give one with --imatrix, let them learn with --awq or --refine, choose a larger type, or insist with --force."
        )
    if blind:
        warnings.warn(f"{len(blind)} tensors of {file_type} are encoded without importance", stacklevel=3)


def _check_encodable(targets: Iterable[Target]) -> None:
    """That every type can be made."""
    from qtransformers.quants.reference import ENCODE, SEARCH

    for t in targets:
        if t.type is not t.stored and t.type.name not in ENCODE and t.type.name not in SEARCH:
            raise UnsupportedError(f"{t.name} would be {t.type}, which nothing here encodes. Choose another type.")


def size_label(n_parameters: int) -> str:
    """A count of parameters as names of files have it: 3.7M, 8B, 1.5B."""
    value, units = float(n_parameters), ["T", "B", "M", "K", ""]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop()
    unit = units[-1]
    return f"{value:.0f}{unit}" if value >= 9.95 or not unit else f"{value:.1f}{unit}".replace(".0", "")
