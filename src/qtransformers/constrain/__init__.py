"""Answers that follow a grammar: JSON Schema, regular expressions, Lark, GBNF.

`Grammars` compiles for one vocabulary, each source once. A `Grammar` makes a `Matcher` for each request, which says at every step
what tokens may follow. Grammars decide on bytes: a token may end within a character, and a text may be cut into tokens in any
way. The work is llguidance's (https://github.com/guidance-ai/llguidance), imported with the first grammar.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict
from typing import TYPE_CHECKING, get_args

import numpy as np

from qtransformers.checks import shown
from qtransformers.constrain import schema as schemas
from qtransformers.constrain.matcher import Grammar
from qtransformers.constrain.sources import JSON_KINDS, Kind, Source, as_lark, limits, located, source_text
from qtransformers.constrain.vocabulary import Vocabulary, llguidance
from qtransformers.errors import ConstraintError

if TYPE_CHECKING:
    from qtransformers.load.tokenizer import Tokenizer

__all__ = ["Grammars"]

MAX_KEPT = 64  # compiled grammars


class Grammars:
    """Grammars for one vocabulary. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._vocabulary: Vocabulary | None = None
        self._kept: OrderedDict[tuple[str, str], Grammar] = OrderedDict()
        self._closed = False
        self._lock = threading.Lock()

    def compile(self, kind: Kind, source: Source = None) -> Grammar:
        """The grammar of `source`, compiled once; the last ones are kept.

        kind: "json" for any JSON object (no source), "json_schema" (JSON text or Python values), "regex" (the answer as a
        whole matches), "lark" (llguidance's dialect), "gbnf" (llama.cpp's).
        ConstraintError naming the place in a source that is invalid or too costly, or of which no text can be written;
        UnsupportedError without llguidance. A warning for keywords of a schema that constrain nothing.
        """
        if not isinstance(kind, str) or kind not in get_args(Kind):
            raise ConstraintError(f"grammar: kind={shown(kind)}; expected {', '.join(map(repr, get_args(Kind)))}.")
        source = source_text(kind, source)
        with self._lock:
            found = self._kept.get((kind, source))
            if found is None and self._closed:
                raise ConstraintError("grammar: these grammars were closed. Load the model again.")
            if self._vocabulary is not None and self._vocabulary.process != os.getpid():  # a fork has no threads
                self._vocabulary, found = None, None
                self._kept.clear()
            if found is None and self._vocabulary is None:
                self._vocabulary = Vocabulary(self._tokenizer)
        if found is None or found.broken:
            assert self._vocabulary is not None
            found = self._vocabulary.compiler.submit(_compiled, kind, source, self._vocabulary).result()
            for message in found.warnings:
                warnings.warn(f"{message}.", stacklevel=2)
        with self._lock:
            self._kept[kind, source] = found
            self._kept.move_to_end((kind, source))
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return found

    def close(self) -> None:
        """End the threads: nothing can be compiled then, and matchers in use compute in the threads of their callers."""
        with self._lock:
            self._closed = True
            if self._vocabulary is not None:
                self._vocabulary.workers.shutdown(wait=False)
                self._vocabulary.compiler.shutdown(wait=False)


def _compiled(kind: Kind, source: str, vocabulary: Vocabulary) -> Grammar:
    schema = schemas.read(source) if kind in JSON_KINDS else None
    lark = as_lark(kind, source, schema)
    state = llguidance().LLMatcher(vocabulary.native, lark, log_level=0, limits=limits())
    if state.is_error():
        raise ConstraintError(located(kind, state.get_error(), schema))
    unknown = schemas.unknown_keywords(schema) if schema is not None else []
    grammar = Grammar(kind, state, vocabulary, [*unknown, *state.get_grammar_warnings()])
    try:
        mask = grammar.matcher().allowed()
        grammar.empty = vocabulary.eos_ids.issuperset(np.flatnonzero(mask).tolist())
    except ConstraintError as e:
        raise ConstraintError(f"{kind}: nothing can be written that follows this grammar ({e})") from None
    return grammar
