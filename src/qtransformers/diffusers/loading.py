"""A diffusion transformer of diffusers with the weights of a GGUF file: the class from a plan, its layers over the file's map."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import numpy as np
import torch
from torch import nn

from qtransformers.checks import path as a_path
from qtransformers.checks import shown
from qtransformers.errors import ConfigError, LoadError, UnsupportedError
from qtransformers.gguf import GGUFFile
from qtransformers.kernels.table import ACCURACY, check_accuracy
from qtransformers.load.diffusion import DiffusionPlan, Part, plan_diffusion, read_config
from qtransformers.load.hub import Hub, the_hub
from qtransformers.quants import dequantize
from qtransformers.settings import Settings
from qtransformers.tensor import QTensor
from qtransformers.torch import QuantEmbedding, QuantLinear, QuantWeight
from qtransformers.torch.conv import CONVS
from qtransformers.torch.conv import why_not as conv_why_not
from qtransformers.torch.loading import _device, _dtype, _sent, set_tensor

EXACT = (
    "blocks",
    "like",
    "inv_freq",
    "original_inv_freq",
)  # buffers that keep their dtype: bytes, and rotary frequencies


@dataclass(frozen=True)
class Origin:
    """Where a model's weights came from; copies of the model share it."""

    plan: DiffusionPlan
    names: frozenset[str]  # of the parameters and quantised weights that it was loaded with

    def __deepcopy__(self, memo: Any) -> Origin:
        return self


def load_transformer(
    gguf_path: str | Path,
    config: Mapping[str, Any] | str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
    accuracy: str = ACCURACY,
    settings: Settings | None = None,
    hub: Hub | None = None,
) -> Any:
    """The class of diffusers that a GGUF file is of, with its quantised weights, which stay in the file's map on the CPU.

    Its config comes from `config` (settings, a config.json, a folder with one, or a Hub id), the file's own annotations, the
    shapes of its tensors, or a published model of just these shapes; a setting that none of them tells is asked for by name.
    `dtype` is that of norms, biases and activations (float32 on the CPU, else bfloat16); `accuracy` that of products.

    Biases are exactly the file's. LoadError or UnsupportedError with everything that is wrong with file or config, ConfigError for
    an argument; then nothing is loaded.
    """
    check_accuracy(accuracy)
    device, kind = check_device(device, dtype)
    gguf = GGUFFile(a_path("gguf_path", gguf_path))
    given, name = read_config(config, the_hub(settings, hub))
    plan = plan_diffusion(gguf, given, name)
    for text in plan.warnings:
        warnings.warn(text, stacklevel=2)
    model = build(plan)
    fill(model, plan, kind, accuracy)
    model.requires_grad_(False)
    model.eval()
    model.gguf = Origin(plan, names(model))
    return model if device.type == "cpu" else _sent(model, device)


def names(model: nn.Module) -> frozenset[str]:
    """Everything that a model computes with: its parameters and quantised weights, under each of their names."""
    weights = (name for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, QuantWeight))
    return frozenset((*weights, *(name for name, _ in model.named_parameters(remove_duplicate=False))))


def check_device(device: str | torch.device, dtype: torch.dtype | str | None) -> tuple[torch.device, torch.dtype]:
    """A device that has kernels, and what is computed in there; ConfigError, UnsupportedError."""
    found = _device(device)
    return found, _dtype(dtype, found)


def check_model(model: Any) -> nn.Module:
    """A model of torch; ConfigError."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model={shown(model)}; expected a model of load_transformer.")
    return model


def check_mapping(name: str, value: Any, what: str) -> Mapping[Any, Any]:
    """A mapping; ConfigError."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}={shown(value)}; expected {what}.")
    return value


def build(plan: DiffusionPlan) -> Any:
    """The class that a plan is for, its parameters without memory; UnsupportedError where diffusers has none, or another one."""
    version = diffusers.__version__
    made = getattr(diffusers, plan.spec.class_name, None)
    if made is None:
        raise UnsupportedError(f"{plan.file}: diffusers {version} has no {plan.spec.class_name}. Update it: pip install -U 'qtransformers[diffusers]'.")  # fmt: skip
    known = inspect.signature(made.__init__).parameters
    if strange := sorted(set(plan.extra) - set(known)):
        warnings.warn(f"{plan.file}: {made.__name__} of diffusers {version} knows no setting {', '.join(strange)}; left out", stacklevel=3)  # fmt: skip
    options = {**plan.extra, **plan.config}
    try:
        with accelerate.init_empty_weights(include_buffers=False):
            return made(**{k: v for k, v in options.items() if k in known})
    except Exception as e:  # whatever a class says to settings that are not its own
        raise UnsupportedError(f"{plan.file}: diffusers {version} cannot build {made.__name__} of its settings ({type(e).__name__}: {e}). Pass the config of this model.") from e  # fmt: skip


def fill(
    model: nn.Module, plan: DiffusionPlan, dtype: torch.dtype, accuracy: str = ACCURACY, ties: Mapping[str, str] = {}
) -> None:
    """Give a model that has no memory its weights; LoadError with all that do not fit, and nothing changed.

    `ties` are layers that are others too, by their paths.
    """
    modules = dict(model.named_modules())
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    parts = {part.name: part for part in plan.parts}
    problems, layers, plain = [], {}, {}
    numbers: dict[str, torch.Tensor] = {}  # decoded at once: norms, biases, and what cannot stay in blocks
    for name, part in parts.items():
        path, _, own = name.rpartition(".")
        module = modules.get(path)
        if module is None or (name not in state and not (own == "bias" and type(module) in LAYERS)):
            problems.append(f"{part.tensor.name} has no place: {type(model).__name__} has no {name}")
        elif name in state and tuple(state[name].shape) != part.declared.shape:
            problems.append(f"{part.tensor.name} is {list(part.declared.shape)}; {name} of {type(model).__name__} is {list(state[name].shape)}")  # fmt: skip
        elif own == "weight" and (make := LAYERS.get(type(module))):
            if reason := decoded_at_load(module, part):
                make, numbers[name] = _decoded, values(part, dtype)
                if part.tensor.type.is_quantized:
                    warnings.warn(f"{plan.file}: {part.tensor.name} is decoded to {dtype}: {reason}", stacklevel=3)
            layers[path] = (make, module, part)
        else:
            numbers[name] = values(part, dtype)
            if not (own == "bias" and type(module) in LAYERS):
                plain[name] = part
    filled = {
        *parts,
        *(f"{path}.bias" for path in layers),
        *(f"{path}.weight" for path in ties),
    }  # a layer has the biases of the file, and no others
    missing = [name for name in dict(model.named_parameters()) if name not in filled]
    problems += [f"{parts[name].tensor.name} holds values that are not finite in {dtype}: fetch the file again, or convert the model again" for name, v in numbers.items() if not torch.isfinite(v).all()]  # fmt: skip
    problems += [f"{name} of {type(model).__name__} has no values in the file" for name in missing]
    if problems:
        raise LoadError("\n  ".join((f"{plan.file} does not fill {type(model).__name__}, {len(problems)} problems:", *problems[:40])))  # fmt: skip
    for path, (make, module, part) in layers.items():
        if make is _decoded:
            module.weight = nn.Parameter(numbers[f"{path}.weight"], requires_grad=False)
        parent, _, own = path.rpartition(".")
        made = make(module, part, numbers.get(f"{path}.bias"), dtype, accuracy)
        setattr(model.get_submodule(parent), own, made)
    for path, source in ties.items():
        parent, _, own = path.rpartition(".")
        setattr(model.get_submodule(parent), own, model.get_submodule(source))
    for name in plain:
        set_tensor(model, name, numbers[name])
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point() and name not in plain and name.rpartition(".")[2] not in EXACT:
            set_tensor(model, name, buffer.to(dtype))


def _linear(module: Any, part: Part, bias: torch.Tensor | None, dtype: torch.dtype, accuracy: str) -> nn.Module:
    tensor, order = rows(part)
    return QuantLinear(QuantWeight(tensor, dtype, accuracy), bias, order)


def _embedding(module: Any, part: Part, bias: torch.Tensor | None, dtype: torch.dtype, accuracy: str) -> nn.Module:
    tensor, _ = rows(part)
    return QuantEmbedding(QuantWeight(tensor, dtype, accuracy), module.padding_idx)


def _conv(module: Any, part: Part, bias: torch.Tensor | None, dtype: torch.dtype, accuracy: str) -> nn.Module:
    tensor, _ = rows(part)
    return CONVS[type(module)](module, QuantWeight(tensor, dtype, accuracy), bias)


def _decoded(module: Any, part: Part, bias: torch.Tensor | None, dtype: torch.dtype, accuracy: str) -> nn.Module:
    """The layer as it is, with a weight that is set already."""
    if hasattr(module, "bias"):
        module.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return module


LAYERS = {nn.Linear: _linear, nn.Embedding: _embedding, **dict.fromkeys(CONVS, _conv)}


def decoded_at_load(module: Any, part: Part) -> str:
    """Why a layer cannot keep the blocks of the file; "" where it can, and for layers that have none."""
    if isinstance(module, tuple(CONVS)) and (reason := conv_why_not(module)):
        return reason
    across = math.prod(part.declared.shape[1:]) % part.tensor.type.block_size
    if across and isinstance(module, nn.Embedding):
        return "an embedding whose rows are not whole blocks"
    return "parts of a tensor whose rows are not whole blocks" if across and part.ranges else ""


def rows(part: Part) -> tuple[QTensor, Any]:
    """The tensor `[out, in]` of a part over the file's map, and the order of its rows where that is another (None: as they are)."""
    tensor, shape = part.tensor, part.declared.shape
    shape = (shape[0], math.prod(shape[1:]))
    if not part.ranges:
        return QTensor(tensor.name, tensor.type, shape, tensor.data, tensor.file), None
    if len(part.ranges) == 1:
        [(start, stop)] = part.ranges
        width = tensor.nbytes // tensor.shape[0]
        return QTensor(tensor.name, tensor.type, shape, tensor.data[start * width : stop * width], tensor.file), None
    order = np.concatenate([np.arange(start, stop) for start, stop in part.ranges])
    whole = (tensor.shape[0], math.prod(tensor.shape[1:]))
    return QTensor(tensor.name, tensor.type, whole, tensor.data, tensor.file), order


def values(part: Part, dtype: torch.dtype) -> torch.Tensor:
    """The values `[*shape]` of a part, decoded."""
    tensor = part.tensor
    found = dequantize(tensor.data, tensor.type)
    if part.ranges:
        found = found.reshape(tensor.shape[0], -1)
        found = np.concatenate([found[start:stop] for start, stop in part.ranges])
    return torch.tensor(found.reshape(part.declared.shape)).to(dtype)
