"""The vocabulary models are written in. Each function runs where its array lives: NumPy arrays by the C++ kernels, torch tensors by Triton's."""

from __future__ import annotations

from qtransformers.nn.arrays import join, log1p, repeat, softplus, split
from qtransformers.nn.attention import attention
from qtransformers.nn.linear import embedding, linear, linears, per_head
from qtransformers.nn.mlp import activate, gated, softcap
from qtransformers.nn.moe import moe, route
from qtransformers.nn.norm import head_norm, layer_norm, rms_norm
from qtransformers.nn.recurrent import causal_conv, gated_delta
from qtransformers.nn.rope import Rotation, rope, rope_frequencies
from qtransformers.nn.stages import layers

__all__ = [
    "Rotation",
    "activate",
    "attention",
    "causal_conv",
    "embedding",
    "gated",
    "gated_delta",
    "head_norm",
    "join",
    "layer_norm",
    "layers",
    "linear",
    "linears",
    "log1p",
    "moe",
    "per_head",
    "repeat",
    "rms_norm",
    "rope",
    "rope_frequencies",
    "route",
    "softcap",
    "softplus",
    "split",
]
