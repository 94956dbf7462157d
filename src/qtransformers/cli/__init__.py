"""The command: `qtransformers`, `qtf` for short. One file a verb; a verb's module is imported when it is called."""

from qtransformers.cli.command import main

__all__ = ["main"]
