"""What an architecture is, declared: loading, validation, planning, conversion and quantisation derive from it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

Bias = Literal["never", "optional", "required"]
Absent = Literal["error", "none"]
Agreement = Literal["equal", "at_most", "free"]
Grade = Literal["error", "unsupported", "warning"]
Policy = Literal["keep", "embed", "output", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "embed_in", "modulation", "conv", "other"]  # fmt: skip

REMAKE = "The file is damaged or was made by a faulty tool: convert the model again"
IGNORED_KEYS = (
    "rope.scaling.finetuned",
    "tensor_data_layout",
)  # metadata that changes nothing, whatever the architecture
NEWER = "Use a version of qtransformers that knows such models"
# Metadata that changes what a model computes, where its spec has no row for it, and the values (value, hparams) at which it does not
HARMLESS: Mapping[str, Callable[[Any, Mapping[str, Any]], bool]] = {
    "attention.causal": lambda value, h: value is True,
    "attention.scale": lambda value, h: isinstance(value, float) and (value == 0 or math.isclose(value, h["head_dim"] ** -0.5, rel_tol=1e-5)),
    "attention.sliding_window": lambda value, h: isinstance(value, int) and (value == 0 or value >= h["context_length"]),
    "rope.scaling.alpha": lambda value, h: value in (0, 1),
    **dict.fromkeys(
        ("attention.clamp_kqv", "attention.max_alibi_bias", "attn_logit_softcapping", "final_logit_softcapping", "attention.temperature_scale"),
        lambda value, h: value == 0,
    ),
    **dict.fromkeys(("logit_scale", "embedding_scale", "residual_scale"), lambda value, h: value in (0, 1)),
}  # fmt: skip
KEPT_ROLES = ("norm", "parameter", "position", "rope", "router", "state")  # small, or the maths hangs on it
FUSED = {"attn_qkv": "attn_v", "attn_kv_b": "attn_v"}  # what holds values is as sensitive as they are
FromConfig = Callable[[Mapping[str, Any]], Any]
When = Callable[[Mapping[str, Any], int], bool]


@dataclass(frozen=True)
class Problem:
    """Something wrong with a model: a sentence with what was found, what was expected, what to do."""

    text: str
    grade: Grade = "error"  # unsupported: well-formed, but nothing we can run

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class HParam:
    """A hyperparameter: metadata key without its `<arch>.` prefix, and what holds when the key is absent.

    `hf` lists where config.json says it, the first present wins: a dotted key, or a function of the whole config named as
    the key it reads, which gives None where config.json says nothing and raises BadValue for what cannot be run.
    """

    name: str
    key: str
    kind: type = int
    default: Any = None  # a value, or a function of the hyperparameters read so far
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] = ()  # the values we run; another one makes a model unsupported
    hf: tuple[str | FromConfig, ...] = ()
    hf_values: Mapping[Any, Any] = field(default_factory=dict)  # config.json's words (None: null) -> GGUF's
    agree: Agreement = "equal"  # how config.json's value must stand to the file's
    rows_of: str = ""  # the truth is the number of rows of this tensor (a TensorSpec's attr), the key only repeats it
    applies: Callable[[Mapping[str, Any]], bool] | None = None  # whether it means anything, given those read so far
    also: Mapping[str, Callable[[Any, Mapping[str, Any]], Any]] = field(
        default_factory=dict
    )  # other keys that say it, and how their values become ours, given those read so far
    implied: Mapping[str, Any] = field(
        default_factory=dict
    )  # what a file means that does not say it, by another key or a tensor (its attr) that it has
    without: str = ""  # the hyperparameter that a file's value is lessened by
    of_layers: Callable[[Sequence[Any]], Any] | None = (
        None  # what an array with one value a layer says, where it may differ
    )
    derive: Callable[[Any], Any] | None = (
        None  # diffusion: what the shapes of a file's tensors say (archs.diffusion.shapes); None where they do not
    )
    nullable: bool = False  # diffusion: None where nothing says it, and the class takes that
    alike: str = ""  # diffusion: the list of settings that one number stands for as many of as it is long
    hint: str = ""  # diffusion: what published models have, for whoever is asked for it


@dataclass(frozen=True)
class TensorSpec:
    """A tensor: its name without `.weight`, `{i}` standing for the layer, and its symbolic shape, (out, in).

    A dimension is made of hyperparameters and numbers: `n_heads*head_dim`, `rope_dim/2`, `n_q+n_k`.
    """

    attr: str  # the attribute models read: `w.attn_q`
    name: str
    shape: tuple[str, ...]
    role: str  # embed, attn, dense_ffn, norm, output, rope, ... as placement and quantisation see it
    bias: Bias = "never"  # the bias is `<name>.bias`, without the last dimension of a matrix, read as `w.<attr>_bias`
    on_absent: Absent | str = "error"  # error, none, or `tie:<attr>` for another tensor's weight
    hf: str = (
        ""  # name in a Hugging Face checkpoint, without `.weight`; "" where it has none; `{e}`: one for each expert
    )
    hf_bias: str = ""  # the key of config.json that says whether the bias exists
    permute: str = ""  # hyperparameter with the heads whose rotary halves the converter interleaves (NORM rope)
    hf_values: Callable[[NDArray[np.float32], Mapping[str, Any]], NDArray[np.float32]] | None = (
        None  # checkpoint's values -> ours
    )
    hf_shape: tuple[str, ...] = ()  # of the weight in a checkpoint, where it is another
    hf_back: Callable[[NDArray[np.float32], Mapping[str, Any]], NDArray[np.float32]] | None = (
        None  # the other way, where hf_values does more than to put values in other places
    )
    hf_suffix: tuple[str, str] = (".weight", ".bias")  # of weight and bias in a checkpoint
    suffix: str = ".weight"  # of the weight's name in a GGUF file
    beside: str = ""  # the optional tensor (its attr) that goes with it: both are there, or neither
    when: When | None = None  # (hparams, layer) -> whether the layer has it at all
    from_config: Callable[[Mapping[str, Any], Mapping[str, Any]], Any] | None = (
        None  # (config, hparams) -> array or None
    )
    repeat: Mapping[str, str] = field(default_factory=dict)  # diffusion: letters in the name -> how many, symbolic
    original: str = ""  # diffusion: where the layout it was published in has it (archs.diffusion.spec.Origin)
    original_suffix: str = ".weight"  # of the weight's name there
    quant: Policy | None = None  # see `policy`, where role and attribute do not say it

    @property
    def policy(self) -> Policy:
        """The row of a recipe that its type follows; `keep`: it stays as it is, whatever the type of the file."""
        if self.quant:
            return self.quant
        if self.role in KEPT_ROLES or len(self.shape) < 2:
            return "keep"
        part = "_".join(self.attr.split("_")[:2]) if self.attr.startswith("ffn_") else self.attr  # of experts too
        row = self.role if self.role in get_args(Policy) else FUSED.get(part, part)
        return cast(Policy, row) if row in get_args(Policy) else "other"


@dataclass(frozen=True)
class Slot:
    """A tensor of one model, there or not: the weight or the bias of a TensorSpec, in one layer."""

    spec: TensorSpec
    layer: int | None
    part: Literal["weight", "bias"]

    @cached_property
    def name(self) -> str:
        """Name in a GGUF file."""
        return self.spec.name.format(i=self.layer) + (self.spec.suffix if self.part == "weight" else ".bias")

    @cached_property
    def hf(self) -> str:
        """Name in a Hugging Face checkpoint, "" where it has none."""
        return self._hf("{e}")

    def hf_names(self, hparams: Mapping[str, Any]) -> tuple[str, ...]:
        """Names in a checkpoint: one, or one for each expert where it keeps them apart."""
        if not self.spec.hf:
            return ()
        return (
            tuple(map(self._hf, range(dimension(self.spec.shape[0], hparams)))) if "{e}" in self.spec.hf else (self.hf,)
        )

    def _hf(self, expert: int | str) -> str:
        suffix = self.spec.hf_suffix[self.part == "bias"]
        return self.spec.hf.format(i=self.layer, e=expert) + suffix if self.spec.hf else ""

    @property
    def attr(self) -> str:
        """Attribute models read it by."""
        return self.spec.attr if self.part == "weight" else f"{self.spec.attr}_bias"

    @property
    def presence(self) -> Literal["never", "optional", "required"]:
        """Whether a file has it; a tied weight is optional."""
        if self.part == "bias":
            return self.spec.bias
        return "required" if self.spec.on_absent == "error" else "optional"

    def shape(self, hparams: Mapping[str, Any]) -> tuple[int, ...]:
        """Logical shape, (out, in), or (n_experts, out, in); of a bias, without the last."""
        dims = tuple(dimension(d, hparams) for d in self.spec.shape)
        return dims if self.part == "weight" or len(dims) == 1 else dims[:-1]


@dataclass(frozen=True)
class ArchSpec:
    """One architecture: `forward(weights, hparams, batch, cache) -> logits [R, vocab_size]`."""

    id: str  # general.architecture
    hparams: tuple[HParam, ...]
    tensors: tuple[TensorSpec, ...]  # once a model
    layer_tensors: tuple[TensorSpec, ...]  # once a layer, `{i}` in the name
    forward: Callable[..., Any]
    check: Callable[[Mapping[str, Any]], Iterator[Problem]] | None = None  # what is wrong between hyperparameters
    kind: Literal["language", "encoder", "diffusion"] = "language"
    caches: When = lambda h, layer: True  # whether a layer keeps keys and values, and no state
    states: Callable[[Mapping[str, Any]], Mapping[str, tuple[int, ...]]] = lambda h: {}  # of one sequence, by name
    aliases: tuple[str, ...] = ()
    hf_model_types: tuple[str, ...] = ()  # `model_type` of config.json that this architecture serves
    hf_fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # keys of config.json and the values we run
    hf_tied: bool = False  # whether the output is tied where config.json does not say
    hf_names: tuple[
        tuple[str, str], ...
    ] = ()  # (pattern, replacement) on names in a checkpoint; what becomes "" is left out
    unused: tuple[str, ...] = ()  # tensors old converters wrote that nothing reads, `{i}` for a layer
    unfolded: tuple[
        str, ...
    ] = ()  # weights whose columns take no scale from the rows before: what is between is not linear
    ignored_keys: tuple[str, ...] = ()  # metadata without `<arch>.` that changes nothing

    @cached_property
    def policies(self) -> Mapping[str, Policy]:
        """The quantisation policy of every weight, by its name with `{i}` for any number that stands alone."""
        return {unnumbered(t.name + t.suffix): t.policy for t in (*self.tensors, *self.layer_tensors)}

    def slots(self, hparams: Mapping[str, Any]) -> Iterator[Slot]:
        """Every tensor a model of these hyperparameters may have, in the order of the forward pass."""
        head, tail = (
            [t for t in ts if t.when is None or t.when(hparams, 0)] for ts in (self.tensors[:1], self.tensors[1:])
        )
        n = hparams["n_layers"]
        layers = ((t, i) for i in range(n) for t in self.layer_tensors if t.when is None or t.when(hparams, i))
        for spec, layer in (*((t, None) for t in head), *layers, *((t, None) for t in tail)):
            yield Slot(spec, layer, "weight")
            if spec.suffix == ".weight" and (
                spec.hf_suffix[0] != spec.hf_suffix[1]
            ):  # else the weight has a bias's name
                yield Slot(spec, layer, "bias")


def unnumbered(name: str) -> str:
    """A tensor's name with `{i}` for its layer and other numbers that stand alone."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "{i}", name)


def dimension(expression: str, hparams: Mapping[str, Any]) -> int:
    """The size a symbolic dimension stands for: sums of products and quotients, e.g. `n_heads*head_dim` or `rope_dim/2`."""
    total = 0
    for term in expression.replace("-", "+-").split("+"):
        dividend, _, divisor = term.removeprefix("-").partition("/")
        size = 1
        for factor in dividend.split("*"):
            size *= int(factor) if factor.isdigit() else int(hparams[factor])
        total += size // int(divisor or 1) * (-1 if term.startswith("-") else 1)
    return total
