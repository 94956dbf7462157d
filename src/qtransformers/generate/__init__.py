"""From prompt ids to text: requests, the engine that runs forwards for them, and the stream a caller reads."""

from qtransformers.generate.engine import Engine
from qtransformers.generate.requests import Request, Sequence
from qtransformers.generate.stream import Chunk, Completion, Stream, Timings

__all__ = ["Chunk", "Completion", "Engine", "Request", "Sequence", "Stream", "Timings"]
