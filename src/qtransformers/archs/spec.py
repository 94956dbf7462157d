"""What an architecture is, declared: loading, validation, planning, conversion and quantisation derive from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Bias = Literal["never", "optional", "required"]
Absent = Literal["error", "none"]


@dataclass(frozen=True)
class HParam:
    """A hyperparameter: metadata key without its `<arch>.` prefix, and what holds when the key is absent."""

    name: str
    key: str
    kind: type = int
    default: Any = None  # a value, or a function of the hyperparameters read so far
    required: bool = False
    minimum: float | None = None


@dataclass(frozen=True)
class TensorSpec:
    """A tensor: its name without `.weight`, `{i}` standing for the layer, and its symbolic shape, (out, in).

    A dimension is a hyperparameter, a number, or a product or quotient of them: `n_heads*head_dim`, `rope_dim/2`.
    """

    attr: str  # the attribute models read: `w.attn_q`
    name: str
    shape: tuple[str, ...]
    role: str  # embed, attn, dense_ffn, norm, output, rope, ... as placement and quantisation see it
    bias: Bias = "never"  # the bias is `<name>.bias`, `[shape[0]]`, read as `w.<attr>_bias`
    on_absent: Absent | str = "error"  # error, none, or `tie:<attr>` for another tensor's weight


@dataclass(frozen=True)
class ArchSpec:
    """One architecture: `forward(weights, hparams, batch, cache) -> logits [R, vocab_size]`."""

    id: str  # general.architecture
    hparams: tuple[HParam, ...]
    tensors: tuple[TensorSpec, ...]  # once a model
    layer_tensors: tuple[TensorSpec, ...]  # once a layer, `{i}` in the name
    forward: Callable[..., Any]
    check: Callable[[Mapping[str, Any]], Iterator[str]] | None = None  # yields what is wrong between hyperparameters
    kind: Literal["language", "encoder", "diffusion"] = "language"
    aliases: tuple[str, ...] = ()
    hf_model_types: tuple[str, ...] = ()  # `model_type` of config.json that this architecture serves


def dimension(expression: str, hparams: Mapping[str, Any]) -> int:
    """The size a symbolic dimension stands for, e.g. `n_heads*head_dim` or `rope_dim/2`."""
    dividend, _, divisor = expression.partition("/")
    size = 1
    for factor in dividend.split("*"):
        size *= int(factor) if factor.isdigit() else int(hparams[factor])
    return size // int(divisor or 1)
