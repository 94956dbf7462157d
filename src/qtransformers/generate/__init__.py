"""From prompt ids to text: requests, the engine that runs forwards for them, and the stream a caller reads."""

from qtransformers.generate.engine import Engine, Usage
from qtransformers.generate.requests import Request
from qtransformers.generate.sequence import Chunk, Completion, Sequence, Timings
from qtransformers.generate.stream import Stream

__all__ = ["Chunk", "Completion", "Engine", "Request", "Sequence", "Stream", "Timings", "Usage"]
