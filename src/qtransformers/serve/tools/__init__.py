"""Calls of tools and thoughts in what a model writes: found by how its chat template writes them."""

from qtransformers.serve.tools.events import Arguments, CallStart, Content, Event, Message, Reasoning, ToolCall, collect
from qtransformers.serve.tools.families import Syntax, parser_for, syntax_of
from qtransformers.serve.tools.parser import Parser

__all__ = [
    "Arguments",
    "CallStart",
    "Content",
    "Event",
    "Message",
    "Parser",
    "Reasoning",
    "Syntax",
    "ToolCall",
    "collect",
    "parser_for",
    "syntax_of",
]
