"""A model with quantised weights as the plain one it stands for."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from qtransformers.diffusers.loading import check_model
from qtransformers.diffusers.lora import LoRALinear
from qtransformers.errors import ConfigError
from qtransformers.torch import QuantEmbedding, QuantLinear
from qtransformers.torch.conv import CONVS


def dequantized(model: Any) -> Any:
    """A copy of a model of `load_transformer` whose layers have the decoded weights, in the model's dtype.

    It needs the memory of an unquantised model. ConfigError for a model without quantised layers, or with adapters beside them.
    """
    twin = copy.deepcopy(check_model(model))
    if any(isinstance(m, LoRALinear) for m in twin.modules()):
        raise ConfigError("the model has adapters beside its weights; fuse_lora or remove_lora first.")
    layers = [(path, m) for path, m in twin.named_modules() if type(m) in PLAIN]
    if not layers:
        raise ConfigError(f"{type(model).__name__} has no quantised layers; expected a model of load_transformer.")
    for path, layer in layers:
        parent, _, own = path.rpartition(".")
        setattr(twin.get_submodule(parent), own, PLAIN[type(layer)](layer))
    return twin


def _linear(layer: Any) -> nn.Module:
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight = nn.Parameter(layer.dequantize().to(layer.weight.dtype), requires_grad=False)
    plain.bias = layer.bias
    return plain


def _embedding(layer: Any) -> nn.Module:
    plain = nn.Embedding(layer.num_embeddings, layer.embedding_dim, layer.padding_idx, device="meta")
    plain.weight = nn.Parameter(layer.dequantize().to(layer.weight.dtype), requires_grad=False)
    return plain


def _conv(layer: Any) -> nn.Module:
    made: Any = next(plain for plain, quantised in CONVS.items() if quantised is type(layer))
    plain = made(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
        bias=False, padding_mode=layer.padding_mode, device="meta",
    )  # fmt: skip
    plain.weight = nn.Parameter(layer.dequantize().to(layer.weight.dtype), requires_grad=False)
    plain.bias = layer.bias
    return plain


PLAIN = {QuantLinear: _linear, QuantEmbedding: _embedding, **dict.fromkeys(CONVS.values(), _conv)}
