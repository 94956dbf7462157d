"""A model with quantised weights as the plain one it stands for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from qtransformers.errors import ConfigError
from qtransformers.torch.loading import compute_buffers, set_tensor
from qtransformers.torch.modules import QuantEmbedding, QuantExperts, QuantJoined, QuantLinear, QuantTransposed
from qtransformers.torch.places import is_conv1d

QUANTISED = (QuantLinear, QuantTransposed, QuantJoined, QuantEmbedding, QuantExperts)


def dequantized(model: Any) -> Any:
    """A new model of the same class, whose weights are the decoded ones of a model that `load_transformers` made.

    It needs the memory of an unquantised model. ConfigError for a model without quantised layers.
    """
    found = {path: m for path, m in model.named_modules(remove_duplicate=False) if isinstance(m, QUANTISED)}
    layers = {path: m for path, m in found.items() if path.partition(".parts.")[0] not in found.keys() - {path}}
    if not layers:
        raise ConfigError(f"{type(model).__name__} has no quantised layers; expected a model of load_transformers.")
    options = {} if getattr(model, "pooler", True) else {"add_pooling_layer": False}
    with torch.device("meta"):
        twin = type(model)._from_config(model.config, dtype=model.dtype, **options)
    shared: dict[int, nn.Parameter] = {}
    for path, layer in layers.items():
        for name, values in _values(layer, twin.get_submodule(path)):
            parameter = nn.Parameter(values)
            if name == "weight" and isinstance(layer, (QuantLinear, QuantEmbedding)):
                parameter = shared.setdefault(id(layer.weight), parameter)
            set_tensor(twin, f"{path}.{name}", parameter)
    for name, values in model.state_dict().items():
        if not any(name.startswith(f"{path}.") for path in layers):
            set_tensor(twin, name, values.clone())
    compute_buffers(twin)
    return twin.requires_grad_(True).to(model.device).eval()


def _values(layer: Any, module: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters of the module whose place a quantised layer took, by their names there."""
    if isinstance(layer, QuantExperts):
        yield from layer.dequantize().items()
        return
    values = layer.dequantize()
    yield "weight", values.T.contiguous() if is_conv1d(module) else values
    if getattr(layer, "bias", None) is not None:
        yield "bias", layer.bias.detach().clone()
