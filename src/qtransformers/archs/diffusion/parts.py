"""Rows that diffusion specs are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from typing import Any

from qtransformers.archs.spec import Bias, HParam, Policy, Problem, TensorSpec, When

I: Mapping[str, str] = {}
# What a linear layer is to a recipe, by the end of its name in diffusers
POLICIES: Mapping[str, Policy] = {
    **dict.fromkeys((".to_q", ".add_q_proj", ".q_proj", ".attn_q"), "attn_q"),
    **dict.fromkeys((".to_k", ".add_k_proj", ".k_proj", ".attn_k"), "attn_k"),
    **dict.fromkeys((".to_v", ".add_v_proj", ".v_proj", ".to_kv", ".to_qkv", ".to_qkv_mlp_proj"), "attn_v"),
    **dict.fromkeys((".to_out.0", ".to_add_out", ".out_proj"), "attn_output"),
    **dict.fromkeys((".net.0.proj", ".proj_mlp", ".up_proj", ".w3"), "ffn_up"),
    **dict.fromkeys((".net.2", ".out_projection", ".proj_out", ".down_proj", ".w2", ".linear_out"), "ffn_down"),
}  # fmt: skip


def setting(
    name: str, default: Any = None, *, kind: type = int, derive: Callable[[Any], Any] | None = None,
    required: bool = False, nullable: bool = False, minimum: float | None = 1, maximum: float | None = 2**20,
    choices: tuple[Any, ...] = (), hint: str = "", alike: str = "",
) -> HParam:  # fmt: skip
    """A keyword argument of the class; without `derive` no tensor shows it, and `required` has it asked for by name.

    `kind` tuple is a list of numbers, of anything where `minimum` is None. A default is one that every published model has; a
    function of the settings before may give None for it, and then it is asked for too. `hint` says which models have what.
    """
    bounds = (minimum, maximum) if kind in (int, float, tuple) else (None, None)
    return HParam(name, name, kind, default, required, *bounds, choices=choices, derive=derive, nullable=nullable, hint=hint, alike=alike)  # fmt: skip


def axes(name: str, *published: int, size: Callable[[Mapping[str, Any]], int] = itemgetter("attention_head_dim")) -> HParam:  # fmt: skip
    """How rotary dimensions are shared between axes, which add up to a head; asked for where those of published models do not."""
    return setting(name, lambda c: published if sum(published) == size(c) else None, kind=tuple, maximum=2**12)


def adds_up(c: Mapping[str, Any], axes: str, head_dim: int) -> Iterator[Problem]:
    """What is wrong with the sizes of the axes of a head."""
    if sum(c[axes]) != head_dim or any(n % 2 for n in c[axes]):
        yield Problem(f"{axes} is {list(c[axes])}; expected even numbers that add up to a head of {head_dim}")


def heads(c: Mapping[str, Any], dim: int, *, named: str = "num_attention_heads", head_dim: str = "attention_head_dim") -> Iterator[Problem]:  # fmt: skip
    """What is wrong with the number of heads of a width that tensors show."""
    if c[named] * c[head_dim] != dim:
        yield Problem(f"{named} {c[named]} x {head_dim} {c[head_dim]} is {c[named] * c[head_dim]}; expected {dim}")


def linear(
    name: str, out: str, width: str, original: str = "", *, bias: Bias = "required", role: str = "linear",
    repeat: Mapping[str, str] = I, when: When | None = None, on_absent: str = "error", quant: Policy | None = None,
) -> TensorSpec:  # fmt: skip
    """A matrix `[out, width]` of a linear layer; `quant` is its row in recipes where role and name (POLICIES) do not say it."""
    if quant is None and role in ("linear", "attn", "dense_ffn"):
        quant = next((policy for end, policy in POLICIES.items() if name.endswith(end)), "other")
    return TensorSpec(name, name, (out, width), role, bias, on_absent, original=original, repeat=repeat, when=when, quant=quant)  # fmt: skip


def split(
    original: str, width: str, parts: Mapping[str, str], *, bias: Bias = "required", role: str = "attn",
    repeat: Mapping[str, str] = I, when: When | None = None,
) -> Iterator[TensorSpec]:  # fmt: skip
    """Linear layers (name -> outputs) that the original layout keeps as one, their rows one after the other."""
    start = "0"
    for name, out in parts.items():
        stop = f"{start}+{out}"
        yield linear(name, out, width, f"{original}[{start}:{stop}]", bias=bias, role=role, repeat=repeat, when=when)
        start = stop


def embedder(
    name: str, width: str, out: str, original: str = "", keys: tuple[str, str] = ("0", "2"), *, hidden: str = "",
    bias: Bias = "required", repeat: Mapping[str, str] = I, when: When | None = None,
) -> Iterator[TensorSpec]:  # fmt: skip
    """Two linear layers from `width` over `hidden` (else `out`) to `out`, as timesteps and captions go through."""
    hidden = hidden or out
    for own, key, shape in (("linear_1", keys[0], (hidden, width)), ("linear_2", keys[1], (out, hidden))):
        theirs = f"{original}.{key}" if original else ""
        yield linear(f"{name}.{own}", *shape, theirs, bias=bias, role="modulation", repeat=repeat, when=when)


def norm(
    name: str, size: str, original: str = "", *, bias: Bias = "never", suffix: str = ".weight",
    repeat: Mapping[str, str] = I, when: When | None = None, on_absent: str = "error",
) -> TensorSpec:  # fmt: skip
    """The weight `[size]` of a norm; `suffix` is that of the original layout."""
    return TensorSpec(name, name, (size,), "norm", bias, on_absent, original=original, original_suffix=suffix, repeat=repeat, when=when)  # fmt: skip


def conv(
    name: str, out: str, width: str, kernel: tuple[int | str, ...], original: str = "", *, bias: Bias = "required",
    repeat: Mapping[str, str] = I, when: When | None = None,
) -> TensorSpec:  # fmt: skip
    """The weight `[out, width, *kernel]` of a convolution."""
    return TensorSpec(name, name, (out, width, *map(str, kernel)), "conv", bias, original=original, repeat=repeat, when=when)  # fmt: skip


def embedding(name: str, n: str, width: str, original: str = "", *, repeat: Mapping[str, str] = I, when: When | None = None) -> TensorSpec:  # fmt: skip
    """A table `[n, width]` whose rows are looked up."""
    return TensorSpec(name, name, (n, width), "embed", original=original, repeat=repeat, when=when)


def parameter(
    name: str, *shape: str, original: str = "", repeat: Mapping[str, str] = I, when: When | None = None, on_absent: str = "error",
) -> TensorSpec:  # fmt: skip
    """A parameter `[*shape]` of its own, not of a layer: kept in high precision."""
    return TensorSpec(name, name, shape, "parameter", "never", on_absent, suffix="", original=original, original_suffix="", repeat=repeat, when=when)  # fmt: skip


def kernel(name: str, axes: int) -> Callable[[Any], tuple[int, ...] | None]:
    """The window of a convolution over so many axes, from the shape of its weight `[out, in, *window]`."""

    def derive(s: Any) -> tuple[int, ...] | None:
        shape = s.shape(name) or ()
        return shape[2:] if len(shape) == 2 + axes else None

    return derive


def ratio(name: str, *, inverse: bool = False) -> Callable[[Any], float | None]:
    """How many times as many outputs a matrix has as inputs, or the other way."""

    def derive(s: Any) -> float | None:
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
