"""The GGUF container: open, write, edit, split and merge."""

from qtransformers.gguf.reader import GGUFFile

__all__ = ["GGUFFile"]
