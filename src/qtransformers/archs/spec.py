"""What an architecture is, declared: loading, validation, planning, conversion and quantisation derive from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

Bias = Literal["never", "optional", "required"]
Absent = Literal["error", "none"]
Agreement = Literal["equal", "at_most", "free"]


@dataclass(frozen=True)
class Problem:
    """One thing that keeps a model from loading: a sentence with what was found, what was expected, what to do."""

    text: str
    unsupported: bool = False  # well-formed, only not something this version can run

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class HParam:
    """A hyperparameter: metadata key without its `<arch>.` prefix, and what holds when the key is absent.

    `hf` lists where config.json says it, dotted, the first present wins: `rope_parameters.rope_theta`, `rope_theta`.
    """

    name: str
    key: str
    kind: type = int
    default: Any = None  # a value, or a function of the hyperparameters read so far
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    hf: tuple[str, ...] = ()
    hf_values: Mapping[Any, Any] = field(default_factory=dict)  # config.json's words (None: null) -> GGUF's
    agree: Agreement = "equal"  # how config.json's value must stand to the file's
    rows_of: str = ""  # the truth is the number of rows of this tensor (a TensorSpec's attr), the key only repeats it
    applies: Callable[[Mapping[str, Any]], bool] | None = None  # whether it means anything, given those read so far


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
    hf: str = ""  # name in a Hugging Face checkpoint, without `.weight`; "" where it has none
    hf_bias: str = ""  # the key of config.json that says whether the bias exists
    permute: str = ""  # hyperparameter with the heads whose rotary halves the converter interleaves (NORM rope)
    from_config: Callable[[Mapping[str, Any], Mapping[str, Any]], Any] | None = (
        None  # (config, hparams) -> array or None
    )


@dataclass(frozen=True)
class Slot:
    """A tensor of one model, there or not: the weight or the bias of a TensorSpec, in one layer."""

    spec: TensorSpec
    layer: int | None
    part: Literal["weight", "bias"]

    @cached_property
    def name(self) -> str:
        """Name in a GGUF file."""
        return f"{self.spec.name.format(i=self.layer)}.{self.part}"

    @cached_property
    def hf(self) -> str:
        """Name in a Hugging Face checkpoint, "" where it has none."""
        return f"{self.spec.hf.format(i=self.layer)}.{self.part}" if self.spec.hf else ""

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
        """Logical shape, (out, in)."""
        dims = tuple(dimension(d, hparams) for d in self.spec.shape)
        return dims if self.part == "weight" else dims[:1]


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
    aliases: tuple[str, ...] = ()
    hf_model_types: tuple[str, ...] = ()  # `model_type` of config.json that this architecture serves
    hf_fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # keys of config.json and the values we run
    unused: tuple[str, ...] = ()  # tensors old converters wrote that nothing reads, `{i}` for a layer

    def slots(self, n_layers: int) -> Iterator[Slot]:
        """Every tensor a model of `n_layers` may have, in the order of the forward pass."""
        head, tail = self.tensors[:1], self.tensors[1:]
        layers = ((t, i) for i in range(n_layers) for t in self.layer_tensors)
        for spec, layer in (*((t, None) for t in head), *layers, *((t, None) for t in tail)):
            yield Slot(spec, layer, "weight")
            yield Slot(spec, layer, "bias")


@dataclass(frozen=True, eq=False)
class Hyperparameters(Mapping[str, Any]):
    """Hyperparameters by name, `h.n_heads` or `h["n_heads"]`; `origins` tells where each came from."""

    values_: Mapping[str, Any]
    origins: Mapping[str, str] = field(default_factory=dict)  # a metadata key, `default`, or a key of config.json

    @classmethod
    def frozen(cls, values: Mapping[str, Any], origins: Mapping[str, str]) -> Hyperparameters:
        """A copy nobody can change."""
        return cls(MappingProxyType(dict(values)), MappingProxyType(dict(origins)))

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


def dimension(expression: str, hparams: Mapping[str, Any]) -> int:
    """The size a symbolic dimension stands for, e.g. `n_heads*head_dim` or `rope_dim/2`."""
    dividend, _, divisor = expression.partition("/")
    size = 1
    for factor in dividend.split("*"):
        size *= int(factor) if factor.isdigit() else int(hparams[factor])
    return size // int(divisor or 1)
