"""Diffusion transformers of diffusers to GGUF: quantised layers as they are, plain models by way of the converter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch

from qtransformers.checks import path as a_path
from qtransformers.convert import write
from qtransformers.convert.diffusion import DiffusionSource, Model, of_model, planned
from qtransformers.convert.plan import Asked
from qtransformers.convert.write import DEFAULT_TYPE
from qtransformers.diffusers.loading import Origin, names, values
from qtransformers.diffusers.lora import adapters
from qtransformers.errors import ConfigError
from qtransformers.gguf.writer import check_free
from qtransformers.load.diffusion import Part
from qtransformers.load.source import open_model
from qtransformers.tensor import QTensor
from qtransformers.torch import QuantWeight
from qtransformers.torch.saving import PLAIN
from qtransformers.types import BY_NAME


def save_gguf(model: Any, path: str | Path, type: str | None = None, *, layout: str | None = None, overwrite: bool = False) -> Path:  # fmt: skip
    """Write a diffusion model of diffusers as a GGUF file of a type that `convert` knows (Q8_0, ...); the path of the file.

    `type` None keeps what the model has: quantised weights as they are, of a plain model its dtype. `layout` None keeps that of
    the file of a model of `load_transformer`; of a plain model it is the original one where there is one. Parameters are written
    as they are now. ConfigError for a path that exists (unless `overwrite`), adapters that are not fused, layers that were replaced
    or added, and a type that nothing encodes.
    """
    if not isinstance(getattr(model, "gguf", None), Origin) and not isinstance(model, diffusers.ModelMixin):
        raise ConfigError(f"save_gguf of a {model.__class__.__name__}; expected a model of diffusers.")
    path = a_path("path", path)
    check_free(path, overwrite)
    if adapters(model):
        raise ConfigError(f"{model.__class__.__name__} computes with LoRA adapters beside its weights, which a GGUF file has no place for. Call fuse_lora or remove_lora first.")  # fmt: skip
    origin = getattr(model, "gguf", None)
    if isinstance(origin, Origin):
        plan = origin.plan
        if path.exists() and Path(plan.file).exists() and path.samefile(plan.file):
            raise ConfigError(f"{path} is the file the model reads its weights from. Choose another name.")
        if strange := sorted(names(model) - origin.names):
            some = ", ".join(strange[:5]) + (f" and {len(strange) - 5} more" if len(strange) > 5 else "")
            raise ConfigError(f"the model has layers now that it was not loaded with ({some}); {Path(plan.file).name} has no tensors for them, and saving without them would change the pictures. Take them out, or save it before they are added.")  # fmt: skip
        parts = tuple(_live(part, model) for part in plan.parts)
        gguf = open_model(Path(plan.file)) if Path(plan.file).exists() else None
        known = Model(plan.spec, plan.layout, plan.config, plan.extra, parts)
        asked = Asked(type or DEFAULT_TYPE, layout=layout or plan.layout)
        made = of_model(known, asked, file=plan.file, gguf=gguf, stored=type is None)
        return write(made, path, overwrite=overwrite)[0]
    if quantised := next((n for n, m in model.named_modules() if isinstance(m, QuantWeight)), None):
        raise ConfigError(f"{model.__class__.__name__} has quantised layers ({quantised}), but is no model of load_transformer; save_gguf does not know which tensors they are.")  # fmt: skip
    type = type or PLAIN.get(model.dtype)
    if type is None:
        raise ConfigError(f"the model's dtype is {model.dtype}; expected a type to write, such as 'Q8_0'.")
    tensors = {name: _tensor(name, values) for name, values in model.state_dict().items()}
    config = {"_class_name": model.__class__.__name__, **{k: v for k, v in model.config.items() if not k.startswith("_")}}  # fmt: skip
    source = DiffusionSource(Path(path.stem), tensors, config, "the model's config")
    return write(planned(source, Asked(type, layout=layout)), path, overwrite=overwrite)[0]


def _live(part: Part, model: Any) -> Part:
    """A part with the values that the model has now."""
    path, _, own = part.name.rpartition(".")
    try:
        module = model.get_submodule(path)
        now = getattr(module, own)
    except AttributeError:
        now = None
    if isinstance(now, QuantWeight):
        ordered = getattr(module, "order", None) is not None
        return replace(part, tensor=now.tensor, ranges=part.ranges if ordered else ())
    if not isinstance(now, torch.Tensor) or tuple(now.shape) != part.declared.shape:
        raise ConfigError(f"the model has other layers now than it was loaded with, in place of {part.name}; save_gguf cannot tell what they hold. Load it again, or save it before they are replaced.")  # fmt: skip
    if not now.is_meta and torch.equal(values(part, now.dtype), now.detach().cpu()):
        return part
    return replace(part, tensor=_tensor(part.name, now), ranges=())


def _tensor(name: str, values: torch.Tensor) -> QTensor:
    """A tensor of torch as it lies in memory; other types than files hold as F32."""
    if values.is_meta:
        raise ConfigError(f"{name} has no values: the model is offloaded, or was never loaded. Load it in full, then save it.")  # fmt: skip
    values = values.detach().cpu().contiguous()
    values = values if values.dtype in PLAIN else values.float()
    data = values.reshape(-1).view(torch.uint8).numpy() if values.numel() else values.float().numpy().view("u1")
    return QTensor(name, BY_NAME[PLAIN[values.dtype]], tuple(values.shape), data, "the model")
