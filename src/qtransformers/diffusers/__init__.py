"""GGUF weights in the diffusion transformers of diffusers: built without memory, then filled tensor by tensor (extra `[diffusers]`)."""

from __future__ import annotations

from qtransformers.errors import MissingExtraError

try:
    import accelerate
    import diffusers
except ImportError as e:
    raise MissingExtraError(
        f"qtransformers.diffusers needs {e.name}, which is not installed: pip install 'qtransformers[diffusers]'"
    ) from e

from qtransformers.diffusers.encoders import load_text_encoder
from qtransformers.diffusers.loading import load_transformer
from qtransformers.diffusers.lora import adapters, fuse_lora, load_lora, remove_lora, set_lora
from qtransformers.diffusers.pipelines import Picture, load_pipeline, paint
from qtransformers.diffusers.plain import dequantized
from qtransformers.diffusers.saving import save_gguf

__all__ = [
    "Picture",
    "adapters",
    "dequantized",
    "fuse_lora",
    "load_lora",
    "load_pipeline",
    "load_text_encoder",
    "load_transformer",
    "paint",
    "remove_lora",
    "save_gguf",
    "set_lora",
]

del accelerate, diffusers
