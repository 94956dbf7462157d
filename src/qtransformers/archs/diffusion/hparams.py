"""Settings that diffusion specs are made of: how shapes tell them, and what may be wrong between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import isqrt
from operator import itemgetter
from typing import Any

from qtransformers.archs.diffusion.shapes import Shapes
from qtransformers.archs.spec import HParam, Problem

Derive = Callable[[Shapes], Any]


def setting(
    name: str, default: Any = None, *, kind: type = int, derive: Derive | None = None,
    required: bool = False, nullable: bool = False, minimum: float | None = 1, maximum: float | None = 2**20,
    choices: tuple[Any, ...] = (), hint: str = "", alike: str = "",
) -> HParam:  # fmt: skip
    """A keyword argument of the class; without `derive` no tensor shows it, and `required` has it asked for by name.

    `kind` tuple is a list of numbers, of anything where `minimum` is None. A default is one that every published model has; a
    function of the settings before may give None for it, and then it is asked for too. `hint` says which models have what.
    """
    bounds = (minimum, maximum) if kind in (int, float, tuple) else (None, None)
    return HParam(name, name, kind, default, required, *bounds, choices=choices, derive=derive, nullable=nullable, hint=hint, alike=alike)  # fmt: skip


def sized(name: str, tensor: str, axis: int, **more: Any) -> HParam:
    """A setting that is one dimension of a tensor: 0 for outputs, 1 for inputs."""
    return setting(name, derive=lambda s: s.size(tensor, axis), **more)


def counted(name: str, tensor: str, *, minimum: int = 1) -> HParam:
    """A number of layers: those that have this tensor."""
    return setting(name, derive=lambda s: s.count(tensor), minimum=minimum, maximum=1024)


def told_by(name: str, tensor: str) -> HParam:
    """A setting that is true where the file has a tensor."""
    return setting(name, kind=bool, derive=lambda s: s.has(tensor))


def head_count(name: str, width: str, norm: str) -> HParam:
    """A number of heads: the outputs of a layer as wide as the model over a head's own norm."""
    return setting(name, derive=lambda s: over(s.size(width, 0), s.size(norm, 0)))


def axes(name: str, *published: int, size: Callable[[Mapping[str, Any]], int] = itemgetter("attention_head_dim")) -> HParam:  # fmt: skip
    """How rotary dimensions are shared between axes, which add up to a head; asked for where those of published models do not."""
    return setting(name, lambda c: published if sum(published) == size(c) else None, kind=tuple, maximum=2**12)


def dim(c: Mapping[str, Any]) -> int:
    """Width of a model: all its heads."""
    return int(c["num_attention_heads"] * c["attention_head_dim"])


def pixels(c: Mapping[str, Any], channels: str = "out_channels") -> int:
    """Values of a patch."""
    return int(c["patch_size"] ** 2 * c[channels])


def adds_up(c: Mapping[str, Any], axes: str, head_dim: int) -> Iterator[Problem]:
    """What is wrong with the sizes of the axes of a head."""
    if sum(c[axes]) != head_dim or any(n % 2 for n in c[axes]):
        yield Problem(f"{axes} is {list(c[axes])}; expected even numbers that add up to a head of {head_dim}")


def heads(c: Mapping[str, Any], dim: int, *, named: str = "num_attention_heads", head_dim: str = "attention_head_dim") -> Iterator[Problem]:  # fmt: skip
    """What is wrong with the number of heads of a width that tensors show."""
    if c[named] * c[head_dim] != dim:
        yield Problem(f"{named} {c[named]} x {head_dim} {c[head_dim]} is {c[named] * c[head_dim]}; expected {dim}")


def as_many(c: Mapping[str, Any], name: str, n: int, what: str) -> Iterator[Problem]:
    """What is wrong with the length of a list."""
    if len(c[name]) != n:
        yield Problem(f"{name} is {list(c[name])}; expected {n} numbers, {what}")


def rounded_up(n: int, multiple: int) -> int:
    """The next whole multiple, as inner widths of feed-forward layers are."""
    return -(-n // multiple) * multiple


def kernel(name: str, axes: int) -> Callable[[Shapes], tuple[int, ...] | None]:
    """The window of a convolution over so many axes, from the shape of its weight `[out, in, *window]`."""

    def derive(s: Shapes) -> tuple[int, ...] | None:
        shape = s.shape(name) or ()
        return shape[2:] if len(shape) == 2 + axes else None

    return derive


def patch(name: str) -> Callable[[Shapes], int | None]:
    """The side of the square window of a convolution over rows and columns."""
    window = kernel(name, 2)
    return lambda s: (window(s) or (None,))[0]


def root(n: int | None) -> int | None:
    """The side of a square of n, where that is whole."""
    return isqrt(n) if n and isqrt(n) ** 2 == n else None


def ratio(name: str, *, inverse: bool = False) -> Callable[[Shapes], float | None]:
    """How many times as many outputs a matrix has as inputs, or the other way."""

    def derive(s: Shapes) -> float | None:
        out, width = s.size(name, 0), s.size(name, 1)
        if not out or not width:
            return None
        return float(width / out if inverse else out / width)

    return derive


def times(a: int | None, b: int | None) -> int | None:
    """Their product, None where one is unknown."""
    return None if a is None or b is None else a * b


def over(a: int | None, b: int | None) -> int | None:
    """`a` over `b` where that is whole, else None."""
    return None if not a or not b or a % b else a // b
