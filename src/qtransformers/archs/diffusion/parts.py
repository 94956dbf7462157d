"""Rows of tensors that diffusion specs are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from qtransformers.archs.spec import Bias, Policy, TensorSpec, When

I: Mapping[str, str] = {}
# What a linear layer is to a recipe, by the end of its name in diffusers
POLICIES: Mapping[str, Policy] = {
    **dict.fromkeys((".to_q", ".add_q_proj", ".q_proj"), "attn_q"),
    **dict.fromkeys((".to_k", ".add_k_proj", ".k_proj"), "attn_k"),
    **dict.fromkeys((".to_v", ".add_v_proj", ".v_proj", ".to_qkv_mlp_proj"), "attn_v"),
    **dict.fromkeys((".to_out.0", ".to_add_out", ".out_proj"), "attn_output"),
    **dict.fromkeys((".net.0.proj", ".proj_mlp", ".linear_in"), "ffn_up"),
    **dict.fromkeys((".net.2", ".proj_out", ".linear_out"), "ffn_down"),
}  # fmt: skip
QKVO = ("to_q", "to_k", "to_v", "to_out.0")  # of attention, and of a second stream in it
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
NORMS = ("norm_q", "norm_k")
SWAPPED = "[dim:2*dim,0:dim]"  # shift and scale of the last norm, which original layouts have the other way round
_ATTENTION: tuple[Policy, ...] = ("attn_q", "attn_k", "attn_v", "attn_output")
_GATED: tuple[Policy, ...] = ("ffn_gate", "ffn_down", "ffn_up")


def on(setting: str) -> When:
    """Layers that a setting turns on."""
    return lambda c, layer: bool(c[setting])


def off(setting: str) -> When:
    """Layers that a setting turns off."""
    return lambda c, layer: not c[setting]


def both(*conditions: When | None) -> When:
    """Layers for which all of these hold."""
    return lambda c, layer: all(holds(c, layer) for holds in conditions if holds)


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


def attention(
    ours: str, theirs: str = "", keys: tuple[str, ...] = QKVO, names: tuple[str, ...] = QKVO, *, context: str = "dim",
    bias: Bias = "required", repeat: Mapping[str, str] = I,
) -> Iterator[TensorSpec]:  # fmt: skip
    """Queries, keys, values and the output, each a layer of `keys` in the original layout; keys and values are made of `context`."""
    for name, key, width, quant in zip(names, keys, ("dim", context, context, "dim"), _ATTENTION, strict=True):
        there = f"{theirs}.{key}" if theirs else ""
        yield linear(f"{ours}.{name}", "dim", width, there, bias=bias, role="attn", repeat=repeat, quant=quant)


def joined_attention(
    ours: str, qkv: str, out: str, names: tuple[str, ...] = QKVO, *, kv: str = "dim", bias: Bias = "required",
    repeat: Mapping[str, str] = I, when: When | None = None,
) -> Iterator[TensorSpec]:  # fmt: skip
    """The same where queries, keys and values are one layer in the original layout; keys and values have `kv` outputs each."""
    parts = {f"{ours}.{name}": size for name, size in zip(names[:3], ("dim", kv, kv), strict=True)}
    yield from split(qkv, "dim", parts, bias=bias, repeat=repeat, when=when)
    yield linear(f"{ours}.{names[3]}", "dim", "dim", out, bias=bias, role="attn", repeat=repeat, when=when)


def head_norms(
    ours: str, size: str, theirs: str = "", keys: tuple[str, str] = ("q_norm", "k_norm"), names: tuple[str, ...] = NORMS, *,
    suffix: str = ".weight", repeat: Mapping[str, str] = I, when: When | None = None,
) -> Iterator[TensorSpec]:  # fmt: skip
    """Norms of queries and keys; `suffix` is that of the original layout."""
    for name, key in zip(names, keys, strict=True):
        there = f"{theirs}{key}" if theirs else ""
        yield norm(f"{ours}.{name}", size, there, suffix=suffix, repeat=repeat, when=when)


def feed_forward(
    ours: str, theirs: str = "", keys: tuple[str, str] = ("0", "2"), *, hidden: str = "4*dim", bias: Bias = "required",
    repeat: Mapping[str, str] = I, when: When | None = None,
) -> Iterator[TensorSpec]:  # fmt: skip
    """Two linear layers over `hidden` as diffusers names them."""
    for own, key, shape in (("net.0.proj", keys[0], (hidden, "dim")), ("net.2", keys[1], ("dim", hidden))):
        there = f"{theirs}.{key}" if theirs else ""
        yield linear(f"{ours}.{own}", *shape, there, bias=bias, role="dense_ffn", repeat=repeat, when=when)


def gated(
    ours: str, names: tuple[str, str, str], theirs: str = "", keys: tuple[str, str, str] = ("w1", "w2", "w3"), *,
    hidden: str = "ff", repeat: Mapping[str, str] = I, when: When | None = None,
) -> Iterator[TensorSpec]:  # fmt: skip
    """Three linear layers without biases: gate, down and up, over `hidden`."""
    for name, key, quant in zip(names, keys, _GATED, strict=True):
        out, width = ("dim", hidden) if quant == "ffn_down" else (hidden, "dim")
        there = f"{theirs}.{key}" if theirs else ""
        yield linear(f"{ours}.{name}", out, width, there, bias="never", role="dense_ffn", repeat=repeat, when=when, quant=quant)  # fmt: skip


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
