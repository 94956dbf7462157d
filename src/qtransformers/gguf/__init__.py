"""The GGUF container: open, write, edit, split and merge."""

from qtransformers.gguf.reader import GGUFFile, Metadata, Tensors, ValueInfo
from qtransformers.gguf.values import Typed

__all__ = ["GGUFFile", "Metadata", "Tensors", "Typed", "ValueInfo"]
