"""Weights bound for the kernels: matrices stay in the map, vectors become F32 arrays."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.archs.spec import ArchSpec, Slot
from qtransformers.kernels import cpu
from qtransformers.kernels.table import ACCURACY
from qtransformers.load.plan import DECODED_ROLES, LoadPlan
from qtransformers.tensor import QTensor


def place(
    spec: ArchSpec, plan: LoadPlan, tensors: Mapping[str, QTensor], n_layers: int, accuracy: str = ACCURACY
) -> SimpleNamespace:
    """The weights as models read them: `w.token_embd`, `w.layers[i].attn_q`, `w.layers[i].attn_q_bias`.

    Every attribute of the spec exists; what the file does not have is None.
    """
    layers = [_namespace(spec.layer_tensors) for _ in range(n_layers)]
    weights = _namespace(spec.tensors)
    for planned in plan.tensors:
        slot = planned.slot
        home = weights if slot.layer is None else layers[slot.layer]
        setattr(home, slot.attr, _bound(slot, tensors[slot.name], accuracy))
    for attr, target in plan.ties.items():
        setattr(weights, attr, getattr(weights, target))
    weights.layers = tuple(layers)
    return weights


def vector(tensor: QTensor) -> NDArray[np.float32]:
    """A small tensor as F32, without a copy where it is F32 and aligned."""
    if tensor.type.name == "F32" and tensor.data.ctypes.data % 4 == 0:
        return tensor.numpy()
    return tensor.dequantize()


def _bound(slot: Slot, tensor: QTensor, accuracy: str) -> Any:
    small = slot.part == "bias" or len(tensor.shape) == 1 or slot.spec.role in DECODED_ROLES
    if small:
        return vector(tensor)
    return cpu.bind(tensor, accuracy)


def _namespace(specs: Any) -> SimpleNamespace:
    return SimpleNamespace(**{name: None for t in specs for name in (t.attr, f"{t.attr}_bias")})
