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

from qtransformers.diffusers.loading import load_transformer

__all__ = ["load_transformer"]

del accelerate, diffusers
