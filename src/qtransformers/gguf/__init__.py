"""The GGUF container: open, write, edit, split and merge."""

from qtransformers.gguf.backup import restore_header
from qtransformers.gguf.encode import TensorSpec
from qtransformers.gguf.metadata import MetadataEdit, edit_metadata
from qtransformers.gguf.reader import GGUFFile, Metadata, Tensors, ValueInfo
from qtransformers.gguf.split import merge, split
from qtransformers.gguf.values import Typed
from qtransformers.gguf.writer import GGUFWriter

__all__ = [
    "GGUFFile",
    "GGUFWriter",
    "Metadata",
    "MetadataEdit",
    "TensorSpec",
    "Tensors",
    "Typed",
    "ValueInfo",
    "edit_metadata",
    "merge",
    "restore_header",
    "split",
]
