"""A model with quantised weights as the plain one it stands for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from qtransformers.errors import ConfigError
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
    bare = any("pooler" in path for path, _ in model.named_modules())
    options = {} if bare or not hasattr(model, "pooler") else {"add_pooling_layer": False}
    with torch.no_grad():
        twin = type(model)._from_config(model.config, dtype=model.dtype, **options)
        for path, layer in layers.items():
            _fill(twin.get_submodule(path), layer)
        own = dict(twin.state_dict(keep_vars=True))
        for name, values in model.state_dict().items():
            if name in own and not any(name.startswith(f"{path}.") for path in layers):
                own[name].copy_(values)
    return twin.to(model.device).eval()


def _fill(module: Any, layer: Any) -> None:
    """The decoded weights of a quantised layer in the module whose place it took."""
    if isinstance(layer, QuantExperts):
        for name, values in layer.dequantize().items():
            getattr(module, name).copy_(values)
        return
    values = layer.dequantize()
    module.weight.copy_(values.T if is_conv1d(module) else values)
    bias = getattr(layer, "bias", None)
    if bias is not None:
        if module.bias is None:
            module.bias = nn.Parameter(torch.empty_like(bias))
        module.bias.copy_(bias)
