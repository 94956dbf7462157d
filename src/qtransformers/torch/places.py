"""Where the tensors of a GGUF file belong in a class of transformers: found by the names and reorderings of the architecture's spec."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from qtransformers.archs.spec import Slot
from qtransformers.load.checkpoint import interleave
from qtransformers.torch import ops

# Names in checkpoints, and what the classes call the same since transformers 5 (Mixtral, Nomic BERT).
MOVED = (
    (".block_sparse_moe.", ".mlp."),
    ("encoder.layers.", "layers."),
    ("emb_ln.", "embeddings.LayerNorm."),
    (".attn.out_proj.", ".self_attn.o_proj."),
    (".mlp.fc11.", ".mlp.up_proj."),
    (".mlp.fc12.", ".mlp.gate_proj."),
    (".mlp.fc2.", ".mlp.down_proj."),
    (".norm1.", ".post_attention_layernorm."),
    (".norm2.", ".post_mlp_layernorm."),
)
# Weights of checkpoints that classes keep as several of equal size.
CUT = {".attn.Wqkv.": (".self_attn.q_proj.", ".self_attn.k_proj.", ".self_attn.v_proj.")}
PLAIN_ROLES = ("norm", "rope", "router", "state")  # kept as parameters of the model's dtype


@dataclass(frozen=True, eq=False)
class Outline:
    """A model of transformers by names: parameters and buffers of its state, and its modules."""

    model: Any

    @cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What a state of the class has, shared ones under each of their names."""
        return {name: t for name, t in self.model.state_dict(keep_vars=True).items() if isinstance(t, torch.Tensor)}

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Every module by its path."""
        return dict(self.model.named_modules(remove_duplicate=False))

    def find(self, name: str, among: Iterable[str]) -> str:
        """The class's name for a checkpoint's, "" where it has none: its prefix may be there or not."""
        prefix = self.model.base_model_prefix + "."
        moved = name
        for old, new in MOVED:
            moved = moved.replace(old, new)
        for one in (name, moved):
            for candidate in (one, prefix + one, one.removeprefix(prefix)):
                if candidate in among:
                    return candidate
        return ""

    @property
    def head(self) -> nn.Module | None:
        """What makes logits."""
        found = self.model.get_output_embeddings()
        return found if isinstance(found, nn.Module) else None


@dataclass(frozen=True)
class Place:
    """What becomes of a tensor: the path of a module, and the name of its parameter there."""

    kind: str  # linear, embedding, experts, plain
    path: str
    name: str
    slot: Slot
    share: tuple[int, int] = (0, 1)  # (i, n): the i-th of n equal parts of the tensor

    @property
    def full(self) -> str:
        """The class's name of the parameter."""
        return f"{self.path}.{self.name}" if self.path else self.name


def places(outline: Outline, slot: Slot, hparams: Mapping[str, Any]) -> Iterator[Place]:
    """Where the class has a tensor of a file; none where it has no place for it."""
    names = [name for whole in slot.hf_names(hparams) for name in _cut(whole, outline)]
    if not names:
        return
    suffix = slot.spec.hf_suffix[slot.part == "bias"]
    found = [outline.find(name, outline.tensors) for name in names]
    if slot.spec.role == "experts" and (not all(found) or len(names) == 1):
        stem = slot.hf.removesuffix(suffix)
        path = outline.find(stem.partition(".{e}.")[0] if "{e}" in stem else stem.rpartition(".")[0], outline.modules)
        if path and is_stack(outline.modules[path]):
            yield Place("experts", path, slot.attr, slot)
        return
    for i, (name, there) in enumerate(zip(names, found, strict=True)):
        share = i, len(names)
        if there:
            path, _, own = there.rpartition(".")
            yield Place(kind_of(outline.modules[path], slot), path, own, slot, share)
        elif slot.part == "bias":  # the file may have one where the class has none
            path = outline.find(name.removesuffix(suffix), outline.modules)
            if path and is_linear(outline.modules[path]):
                yield Place("linear", path, "bias", slot, share)


def _cut(name: str, outline: Outline) -> tuple[str, ...]:
    """The names of a checkpoint's tensor in the class where it has several for it."""
    for whole, parts in CUT.items():
        if whole in name and not outline.find(name, outline.tensors):
            return tuple(name.replace(whole, part) for part in parts)
    return (name,)


def kind_of(module: nn.Module, slot: Slot) -> str:
    """What is installed for a parameter of this module."""
    if isinstance(module, nn.Embedding):
        return "embedding"
    return "linear" if is_linear(module) and slot.spec.role not in PLAIN_ROLES else "plain"


def is_linear(module: nn.Module) -> bool:
    """Whether it is a product and nothing more: of a matrix (out, in), or (in, out) as GPT-2 has it."""
    return type(module) is nn.Linear or is_conv1d(module)


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is the class of transformers with a matrix (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def is_stack(module: nn.Module) -> bool:
    """Whether it holds all experts of a layer as stacks."""
    return all(getattr(getattr(module, name, None), "ndim", 0) == 3 for name in ("gate_up_proj", "down_proj"))


@dataclass(frozen=True)
class Rows:
    """Which outputs of a class's matrix the rows of a file's tensor are."""

    order: NDArray[Any] = field(repr=False)  # [rows of the file]
    transposed: bool = False  # rows of the file are inputs: a stack of (in, out)


def rows_of(slot: Slot, out: int, width: int, columns: bool, hparams: Mapping[str, Any]) -> Rows | None:
    """The outputs that a file's tensor holds, of a class's matrix of `out` outputs; None where rows are mixed.

    The matrix is (out, width), or (width, out) with `columns`; 0 is the width of a bias. A spec's function of a
    checkpoint's values is asked where it puts the number of each output.
    """
    numbers = np.arange(out, dtype=np.int32)
    if slot.spec.permute:
        return Rows(interleave(out, hparams[slot.spec.permute]))
    if slot.spec.hf_values is None:
        return Rows(numbers)
    index = np.broadcast_to(numbers, (width, out)) if columns else np.broadcast_to(numbers[:, None], (out, width))
    values: Any = index if width else numbers  # whole numbers, which show where values go
    try:
        found: NDArray[Any] = np.asarray(slot.spec.hf_values(values, hparams))
    except (ValueError, IndexError):
        return None
    if not width and found.ndim == 1:
        return Rows(found)
    if (found == found[..., :1]).all():
        return Rows(found[..., 0].reshape(-1))
    if found.ndim == 3 and (found == found[:, :1]).all():
        return Rows(found[:, 0].reshape(-1), transposed=True)
    return None


def to_class(slot: Slot, values: NDArray[np.float32], shape: tuple[int, ...], hparams: Mapping[str, Any]) -> NDArray[np.float32] | None:  # fmt: skip
    """A file's values as a class has them in a parameter of `shape`; None where they cannot be."""
    if values.size != math.prod(shape):
        return None
    if slot.spec.permute:
        back = np.empty_like(values)
        back[interleave(len(values), hparams[slot.spec.permute])] = values
        return back
    found = (slot.spec.hf_back(values, hparams) if slot.spec.hf_back else values).reshape(shape)
    return found if np.allclose(to_file(slot, found, hparams).ravel(), values.ravel(), rtol=1e-5, equal_nan=True) else None  # fmt: skip


def to_file(slot: Slot, values: NDArray[np.float32], hparams: Mapping[str, Any]) -> NDArray[np.float32]:
    """A class's values as a file has them."""
    if slot.spec.permute:
        return values[interleave(len(values), hparams[slot.spec.permute])]
    return slot.spec.hf_values(values, hparams) if slot.spec.hf_values else values


@dataclass(frozen=True)
class Stack:
    """How a class of experts keeps its weights, and what it does between them."""

    act: str  # a name of ops.GATES
    interleaved: bool  # rows of gate and up in turn, and not one half each
    transposed: bool  # (n, in, out)


def stack_of(module: Any, n_embd: int) -> Stack | None:
    """The layout of a stack of experts, found by asking what its gate does with some numbers; None where it is none we know."""
    transposed = getattr(
        module, "is_transposed", module.gate_up_proj.shape[1] == n_embd != module.gate_up_proj.shape[2]
    )
    gate, up = torch.linspace(-12, 12, 50), torch.linspace(9, -11, 50)
    both = {False: torch.cat((gate, up)), True: torch.stack((gate, up), 1).flatten()}
    for interleaved, values in both.items():
        found = _gated(module, values[None])
        for act, function in ops.GATES.items():
            wanted = function(gate, up)[None]
            if found is not None and found.shape == wanted.shape and torch.allclose(found, wanted, atol=1e-4):
                return Stack(act, interleaved, bool(transposed))
    return None


def _gated(module: Any, values: torch.Tensor) -> torch.Tensor | None:
    try:
        if hasattr(module, "_apply_gate"):
            return module._apply_gate(values)
        gate, up = values.chunk(2, -1)
        return module.act_fn(gate) * up
    except (AttributeError, RuntimeError, TypeError):
        return None
