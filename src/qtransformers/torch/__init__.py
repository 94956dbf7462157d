"""GGUF weights in torch models: quantised layers, and whole models of transformers with them (extra `[torch]`)."""

from __future__ import annotations

from qtransformers.errors import MissingExtraError

try:
    import torch
except ImportError as e:
    raise MissingExtraError(
        "qtransformers.torch needs torch, which is not installed: pip install 'qtransformers[torch]'"
    ) from e

from qtransformers.torch.conv import QuantConv1d, QuantConv2d, QuantConv3d
from qtransformers.torch.loading import load_transformers
from qtransformers.torch.modules import QuantEmbedding, QuantExperts, QuantJoined, QuantLinear, QuantTransposed
from qtransformers.torch.plain import dequantized
from qtransformers.torch.saving import save_gguf
from qtransformers.torch.weight import QuantWeight

__all__ = [
    "QuantConv1d",
    "QuantConv2d",
    "QuantConv3d",
    "QuantEmbedding",
    "QuantExperts",
    "QuantJoined",
    "QuantLinear",
    "QuantTransposed",
    "QuantWeight",
    "dequantized",
    "load_transformers",
    "save_gguf",
]

del torch
