"""What becomes of each tensor of a file in a class of transformers: collected with all that does not fit, before anything changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from qtransformers.archs import Hyperparameters, Slot
from qtransformers.load.place import vector
from qtransformers.tensor import QTensor
from qtransformers.torch.modules import QuantEmbedding, QuantExperts, QuantJoined, QuantLinear, QuantTransposed
from qtransformers.torch.places import Outline, Place, Rows, is_conv1d, places, rows_of, stack_of, to_class
from qtransformers.torch.weight import QuantWeight


class Filler:
    """Collects what becomes of each tensor, with what does not fit, before anything of the model changes."""

    def __init__(self, outline: Outline, hparams: Hyperparameters, dtype: torch.dtype, accuracy: str) -> None:
        self.outline, self.hparams, self.dtype, self.accuracy = outline, hparams, dtype, accuracy
        self.problems: list[str] = []
        self.filled: set[str] = set()  # names of the class
        self.plain: dict[str, torch.Tensor] = {}
        self.origins: dict[str, str] = {}  # name of a plain parameter -> tensor of the file
        self._groups: dict[tuple[str, str], list[tuple[Place, QTensor]]] = {}
        self._rows: dict[tuple[str, int, int], Rows | None] = {}  # layers are alike, and asking takes time

    def add(self, slot: Slot, tensor: QTensor) -> None:
        """A tensor of the file."""
        found = list(places(self.outline, slot, self.hparams))
        if not found:
            self._misfit(tensor, f"has no place in {type(self.outline.model).__name__}")
        for place in found:
            part = _share(tensor, *place.share)
            if place.kind == "plain":
                self._plain(place, part)
            else:
                self._groups.setdefault((place.kind, place.path), []).append((place, part))
                names = self.outline.tensors if place.kind == "experts" else (place.full,)
                self.filled.update(n for n in names if n == place.full or n.startswith(place.path + "."))

    def install(self) -> dict[str, nn.Module]:
        """What stands in place of modules, by path."""
        make = {"linear": self._linear, "embedding": self._embedding, "experts": self._experts}
        built = {path: make[kind](path, items) for (kind, path), items in self._groups.items()}
        return {path: module for path, module in built.items() if module is not None}

    def _misfit(self, tensor: QTensor, text: str) -> None:
        self.problems.append(f"{tensor.name} {list(tensor.shape)} {text}")

    def _plain(self, place: Place, tensor: QTensor) -> None:
        target = self.outline.tensors[place.full]
        values = to_class(place.slot, vector(tensor), tuple(target.shape), self.hparams)
        self.filled.add(place.full)
        if values is None:
            self._misfit(tensor, f"does not fit {place.full} {list(target.shape)}")
            return
        self.plain[place.full] = self._tensor(values).to(target.dtype)
        self.origins[place.full] = tensor.name

    def _embedding(self, path: str, items: list[tuple[Place, QTensor]]) -> nn.Module | None:
        module: Any = self.outline.modules[path]
        [(place, tensor)] = items
        n, width = module.weight.shape
        scale = getattr(module, "scalar_embed_scale", None)
        if tensor.shape[1] != width or tensor.shape[0] < n:
            self._misfit(tensor, f"does not fit {place.full} [{n}, {width}]")
        elif type(module) is not nn.Embedding and not isinstance(scale, float):
            self._misfit(tensor, f"belongs to a {type(module).__name__}, which is more than an embedding")
        else:
            return QuantEmbedding(self._weight(_first(tensor, n)), module.padding_idx, scale)
        return None

    def _linear(self, path: str, items: list[tuple[Place, QTensor]]) -> nn.Module | None:
        module: Any = self.outline.modules[path]
        columns = is_conv1d(module)
        width, out = module.weight.shape if columns else module.weight.shape[::-1]
        known = len(self.problems)
        parts: list[QuantLinear | QuantTransposed] = []
        orders, bias = [], None
        for place, tensor in items:
            if place.name == "bias":
                values = to_class(place.slot, vector(tensor), (out,), self.hparams)
                if values is None:
                    self._misfit(tensor, f"does not fit {place.full} [{out}]")
                else:
                    bias = self._tensor(values)
                    self.origins[place.full] = tensor.name
                continue
            if place.slot.spec.role == "output":
                tensor = _first(tensor, out)
            rows = self._rows_of(place.slot, out, width, columns)
            if rows is None or tensor.n_values != len(rows.order) * width:
                self._misfit(tensor, f"does not fit {place.full} {list(module.weight.shape)}")
                continue
            weight = self._weight(tensor)
            parts.append(QuantTransposed(weight) if rows.transposed else QuantLinear(weight))
            orders.append(rows.order)
        order = np.concatenate(orders) if orders else np.arange(0)
        if len(self.problems) > known or not parts:
            return None
        if not np.array_equal(np.sort(order), np.arange(out)):
            self.problems.append(f"{path} has {out} outputs, the file's tensors for it {len(order)}")
            return None
        back = None if np.array_equal(order, np.arange(out)) else np.argsort(order)
        if len(parts) == 1 and isinstance(parts[0], QuantLinear):
            return QuantLinear(parts[0].weight, bias, back)
        return QuantJoined(parts, bias, back)

    def _experts(self, path: str, items: list[tuple[Place, QTensor]]) -> nn.Module | None:
        module: Any = self.outline.modules[path]
        found = {place.name: tensor for place, tensor in items}
        stack = stack_of(module, self.hparams.n_embd)
        if stack is None:
            self.problems.append(f"{path} is a {type(module).__name__}, whose experts do something that no kernel does")
            return None
        names = [f"ffn_{k}_exps" for k in ("gate", "up", "down")]
        wide = tuple(module.down_proj.shape)
        n, out, inner = (wide[0], wide[2], wide[1]) if stack.transposed else wide
        expected = dict(zip(names, ((n, inner, out), (n, inner, out), (n, out, inner)), strict=True))
        for name, shape in expected.items():
            if name not in found:
                self.problems.append(f"{path}: the file has no {name} for it")
            elif found[name].shape != shape:
                self._misfit(found[name], f"does not fit {path} {list(shape)}")
        if any(name not in found or found[name].shape != shape for name, shape in expected.items()):
            return None
        owned = [found[f"{k}_bias"] for k in names if f"{k}_bias" in found]
        biases = [self._tensor(vector(tensor)) for tensor in owned]
        self.origins |= {f"{path}.biases.{i}": tensor.name for i, tensor in enumerate(owned)}
        gate, up, down = (self._weight(found[name]) for name in names)
        return QuantExperts(gate, up, down, stack.act, biases, stack.interleaved, stack.transposed)

    def _rows_of(self, slot: Slot, out: int, width: int, columns: bool) -> Rows | None:
        key = slot.attr, out, width
        if key not in self._rows:
            self._rows[key] = rows_of(slot, out, width, columns, self.hparams)
        return self._rows[key]

    def _tensor(self, values: Any) -> torch.Tensor:
        return torch.tensor(np.ascontiguousarray(values)).to(self.dtype)

    def _weight(self, tensor: QTensor) -> QuantWeight:
        return QuantWeight(tensor, self.dtype, self.accuracy)


def _share(tensor: QTensor, i: int, n: int) -> QTensor:
    """The i-th of n equal parts of a tensor, along its first dimension, which goes where each part is one."""
    if n == 1:
        return tensor
    size, rows = tensor.nbytes // n, tensor.shape[0] // n
    shape = tensor.shape[1:] if rows == 1 else (rows, *tensor.shape[1:])
    return QTensor(tensor.name, tensor.type, shape, tensor.data[i * size : (i + 1) * size], tensor.file)


def _first(tensor: QTensor, n: int) -> QTensor:
    """The first n rows: files may have more than a config has tokens."""
    if tensor.shape[0] <= n:
        return tensor
    return QTensor(tensor.name, tensor.type, (n, *tensor.shape[1:]), tensor.data[: n * tensor.row_bytes], tensor.file)
