"""Weights bound for the kernels of their devices: on the CPU matrices stay in the map, vectors become F32 arrays."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.archs.spec import REMAKE, ArchSpec, Slot
from qtransformers.errors import InsufficientMemoryError, LoadError
from qtransformers.kernels import cpu
from qtransformers.kernels.staging import Progress
from qtransformers.kernels.table import ACCURACIES, ACCURACY
from qtransformers.load.plan import DECODED_ROLES, LoadPlan
from qtransformers.tensor import QTensor

# Vectors that meet the activations, which are on the model's main device, wherever their layer's matrices are.
BESIDE_X = ("norm", "state")


def place(
    spec: ArchSpec,
    plan: LoadPlan,
    tensors: Mapping[str, QTensor],
    n_layers: int,
    accuracy: str = ACCURACY,
    progress: Progress | None = None,
) -> SimpleNamespace:
    """The weights as models read them: `w.token_embd`, `w.layers[i].attn_q`, `w.layers[i].attn_q_bias`.

    Every attribute of the spec exists; what the file does not have is None. `progress` hears of bytes that go to GPUs.
    InsufficientMemoryError where one is full before its part is there; nothing is kept then.
    """
    try:
        return _place(spec, plan, tensors, n_layers, accuracy, progress)
    except MemoryError as e:
        raise _out_of_memory(plan, str(e)) from None  # what was placed is free again: nothing holds it
    except RuntimeError as e:
        if type(e).__name__ != "OutOfMemoryError":  # torch's, which may not be there to import
            raise
        raise _out_of_memory(plan, str(e)) from None


def _out_of_memory(plan: LoadPlan, said: str) -> InsufficientMemoryError:
    return InsufficientMemoryError(
        f"{plan.file}: memory ran out while weights were placed, and all of it was freed. {plan.on_devices()}. "
        f"Others may have taken what was free: {said.splitlines()[0]} Lower context_length, or keep some layers on the CPU."
    )


def _place(
    spec: ArchSpec,
    plan: LoadPlan,
    tensors: Mapping[str, QTensor],
    n_layers: int,
    accuracy: str,
    progress: Progress | None,
) -> SimpleNamespace:
    layers = [_namespace(spec.layer_tensors) for _ in range(n_layers)]
    weights = _namespace(spec.tensors)
    with ExitStack() as stack:
        uploads = {device: stack.enter_context(_upload(plan, device, progress)) for device in plan.devices}
        for planned in plan.tensors:
            slot = planned.slot
            home = weights if slot.layer is None else layers[slot.layer]
            tensor = _shaped(tensors[slot.name], planned.shape)
            setattr(home, slot.attr, _bound(slot, tensor, accuracy, planned.device, plan.main_device, uploads))
    for attr, target in plan.ties.items():
        setattr(weights, attr, getattr(weights, target))
    weights.layers = tuple(layers)
    return weights


def vector(tensor: QTensor) -> NDArray[np.float32]:
    """A small tensor as F32, without a copy where it is F32 and aligned."""
    if tensor.type.name == "F32" and tensor.data.ctypes.data % 4 == 0:
        return tensor.numpy()
    return tensor.dequantize()


def _bound(slot: Slot, tensor: QTensor, accuracy: str, device: str, main: str, uploads: Mapping[str, Any]) -> Any:
    small = slot.part == "bias" or len(tensor.shape) == 1 or slot.spec.role in DECODED_ROLES
    if small:
        values = vector(tensor)
        if slot.spec.role == "rope" and not (np.isfinite(values) & (values > 0)).all():
            raise LoadError(f"{tensor.file}: {tensor.name} has factors from {values.min():g} to {values.max():g}; expected finite numbers above 0. {REMAKE}.")  # fmt: skip
        if slot.part == "bias" and slot.spec.role not in BESIDE_X:
            main = device  # it goes where its matrix is
        if main == "cpu" or slot.spec.role == "rope":
            return values
        there = _on(main, values)
        if slot.spec.role == "norm":
            there.planes = ACCURACIES[accuracy]  # what is normed enters products packed: one kernel does both
        return there
    if device == "cpu":
        return cpu.bind(tensor, accuracy)
    from qtransformers.kernels.triton import bind

    upload = uploads[device]
    return bind(tensor, accuracy, upload.device, upload.blocks(tensor.data))


def _upload(plan: LoadPlan, device: str, progress: Progress | None) -> Any:
    from qtransformers.kernels.triton.device import torch_device
    from qtransformers.kernels.triton.upload import Upload

    return Upload(torch_device(device), plan.weights_on(device), progress)


def _on(device: str, values: NDArray[np.float32]) -> Any:
    """A vector on a GPU."""
    from qtransformers.kernels.triton.device import array

    return array(values, device)


def _shaped(tensor: QTensor, shape: tuple[int, ...]) -> QTensor:
    """The same values; a file may say first dimensions of 1 or not."""
    return tensor if tensor.shape == shape else QTensor(tensor.name, tensor.type, shape, tensor.data, tensor.file)


def _namespace(specs: Any) -> SimpleNamespace:
    return SimpleNamespace(**{name: None for t in specs for name in (t.attr, f"{t.attr}_bias")})
