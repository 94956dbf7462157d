"""Run, quantise and serve GGUF transformers. Everything public is imported on first use, so this import stays instant."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "GGUFFile": "qtransformers.gguf",
    "Model": "qtransformers.model",
    "QTensor": "qtransformers.tensor",
    "QTransformersError": "qtransformers.errors",
    "Sampling": "qtransformers.sampling",
    "Tokenizer": "qtransformers.load.tokenizer",
}
__all__ = ["GGUFFile", "Model", "QTensor", "QTransformersError", "Sampling", "Tokenizer", "__version__"]

if TYPE_CHECKING:
    from qtransformers.errors import QTransformersError
    from qtransformers.gguf import GGUFFile
    from qtransformers.load.tokenizer import Tokenizer
    from qtransformers.model import Model
    from qtransformers.sampling import Sampling
    from qtransformers.tensor import QTensor


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qtransformers' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
