"""Tiny diffusion models and GGUF files of them, in either layout, for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import accelerate
import diffusers
import diffusers.loaders.single_file_utils as theirs
import numpy as np
import torch

from qtransformers.archs.diffusion import SPECS, DiffusionSpec
from qtransformers.archs.diffusion.spec import PREFIXES
from qtransformers.gguf import GGUFWriter
from qtransformers.gguf.encode import TensorSpec
from qtransformers.quants import quantize
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME
from tiny_diffusion.cases import Case


def model_of(case: Case, **config: Any) -> Any:
    """A model of the class with random weights, none of them zero or one: a tensor that is left out shows."""
    generator = torch.Generator().manual_seed(7)
    with accelerate.init_empty_weights(include_buffers=False):  # the class's own numbers would be thrown away
        made = getattr(diffusers, SPECS[case.id].class_name)(**{**case.config, **config}).eval()
    for name, p in list(made.named_parameters()):
        around = 1.0 if p.ndim == 1 and name.endswith("weight") else 0.0
        scale = 0.3 if p.ndim == 1 else min(0.3, 1.4 / max(1, p[0].numel()) ** 0.5)
        values = around + scale * torch.randn(p.shape, generator=generator)
        parent, _, own = name.rpartition(".")
        setattr(made.get_submodule(parent), own, torch.nn.Parameter(values, requires_grad=False))
    return made


def settings(case: Case, model: Any) -> dict[str, Any]:
    """The settings that the spec knows, as the class has them."""
    return {p.name: model.config[p.name] for p in SPECS[case.id].hparams if p.name in model.config}


def original_layout(spec: DiffusionSpec, config: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:  # fmt: skip
    """The same values under the names of the original layout, which some of them share."""
    found: dict[str, torch.Tensor] = {}
    height: dict[str, int] = {}
    there = [d for d in spec.declared(config) if d.name in state and d.origin is not None]
    for d in there:
        height[d.origin.name] = max(height.get(d.origin.name, 0), *(stop for _, stop in d.origin.ranges), 0)
    for d in there:
        values, name = state[d.name], d.origin.name
        if not d.origin.ranges:
            assert name not in found, name
            found[name] = values
            continue
        whole = found.setdefault(name, torch.full((height[name], *values.shape[1:]), float("nan")))
        assert sum(stop - start for start, stop in d.origin.ranges) == len(values), d.name
        done = 0
        for start, stop in d.origin.ranges:
            assert whole[start:stop].isnan().all(), f"{d.name}: rows {start}..{stop} of {name} belong to another too"
            whole[start:stop] = values[done : done + stop - start]
            done += stop - start
    assert not any(values.isnan().any() for values in found.values())
    return found


def write(path: Path, arch: str, state: Mapping[str, torch.Tensor], type: str = "F32", metadata: Mapping[str, Any] | None = None) -> Path:  # fmt: skip
    """A GGUF file with these tensors: matrices in `type` where their rows fill its blocks, all else in F32."""
    arrays = {name: np.ascontiguousarray(values.float().numpy()) for name, values in state.items()}
    kinds = {
        name: BY_NAME[type if v.ndim == 2 and v.shape[1] % BY_NAME[type].block_size == 0 else "F32"] for name, v in arrays.items()
    }  # fmt: skip
    specs = [TensorSpec(name, values.shape, kinds[name]) for name, values in arrays.items()]
    with GGUFWriter(path, {"general.architecture": arch, **(metadata or {})}, specs, overwrite=True) as writer:
        for name, values in arrays.items():
            data = quantize(values.reshape(-1), kinds[name])
            writer.write(name, QTensor(name, kinds[name], values.shape, data))
    return path


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative error of two pictures."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def run(model: Any, case: Case) -> torch.Tensor:
    """What the model makes of the case's inputs."""
    with torch.no_grad():
        picture = model(**case.inputs(model.config), return_dict=False)[0]
    return picture[0] if isinstance(picture, list) else picture


def conversion(case: Case) -> Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]]:
    """The function of diffusers from the original layout to its own, with the widths of the tiny model in place of the real one's."""
    found = getattr(theirs, case.convert)
    made = FunctionType(_resized(found.__code__, case.widths), found.__globals__, None, found.__defaults__)
    if case.convert != "convert_ldm_unet_checkpoint":
        return made
    return lambda tensors: made({f"{PREFIXES[0]}{name}": values for name, values in tensors.items()}, case.config)


def _resized(code: CodeType, widths: Mapping[int, int]) -> CodeType:
    constants = (_resized(c, widths) if isinstance(c, CodeType) else widths.get(c, c) if type(c) is int else c for c in code.co_consts)  # fmt: skip
    return code.replace(co_consts=tuple(constants))
