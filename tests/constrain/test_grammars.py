"""Compiled grammars: each once, so many of them, and what ends with them."""

import gc
import json
import random
import subprocess
import sys

import pytest

from constrain.walks import walk
from qtransformers.constrain import Grammars
from qtransformers.constrain.vocabulary import Vocabulary
from qtransformers.errors import ConstraintError, UnsupportedError


def test_each_source_is_compiled_once(demo):
    _, grammars = demo
    schema = {"type": "integer"}
    assert grammars.compile("json_schema", schema) is grammars.compile("json_schema", json.dumps(schema))
    assert grammars.compile("regex", "a") is grammars.compile("regex", "a")
    assert grammars.compile("regex", "a") is not grammars.compile("lark", 'start: "a"')


def test_only_so_many_are_kept(data):
    from qtransformers.constrain import MAX_KEPT
    from qtransformers.load.tokenizer import Tokenizer

    grammars = Grammars(Tokenizer.from_gguf(data / "demo-Q8_0.gguf"))
    first = grammars.compile("regex", "x")
    for i in range(MAX_KEPT - 1):
        grammars.compile("regex", f"a{i}")
    assert grammars.compile("regex", "x") is first
    for i in range(MAX_KEPT):
        grammars.compile("regex", f"b{i}")
    assert grammars.compile("regex", "x") is not first


def test_a_closed_one_still_answers(data):
    from qtransformers.load.tokenizer import Tokenizer

    grammars = Grammars(Tokenizer.from_gguf(data / "demo-Q8_0.gguf"))
    matcher = grammars.compile("regex", "ab").matcher()
    grammars.close()
    with pytest.raises(ConstraintError, match="closed"):
        grammars.compile("regex", "c")
    matcher.prepare()
    assert matcher.allowed().any()


def test_what_a_grammar_keeps_goes_with_it(data):
    """A vocabulary and its twin in llguidance: models that come and go would leave a megabyte each."""
    from qtransformers.load.tokenizer import Tokenizer

    def alive():
        gc.collect()
        return sum(isinstance(x, Vocabulary) for x in gc.get_objects())

    before = alive()
    grammars = Grammars(Tokenizer.from_gguf(data / "demo-Q8_0.gguf"))
    matcher = grammars.compile("regex", "ab").matcher()
    matcher.prepare()
    assert matcher.allowed().any() and alive() == before + 2
    grammars.close()
    del grammars, matcher
    assert alive() == before


def test_a_grammar_that_exceeded_its_limits_is_made_anew(demo):
    tokenizer, grammars = demo
    source = r"([a-z]{1,50}\d?){1,50}"
    grammar = grammars.compile("regex", source)
    with pytest.raises(ConstraintError, match="too many"):
        for seed in range(50):
            walk(grammar, tokenizer, random.Random(seed), prefer_end=0)
    assert grammar.broken
    fresh = grammars.compile("regex", source)
    assert fresh is not grammar
    assert fresh.matcher().allowed().any()


def test_llguidance_is_imported_with_the_first_grammar():
    code = "import sys, qtransformers.constrain as c; assert 'llguidance' not in sys.modules; print(c.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "qtransformers.constrain"


def test_without_llguidance_the_error_names_it(data, monkeypatch):
    from qtransformers.load.tokenizer import Tokenizer

    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UnsupportedError, match="pip install llguidance"):
        Grammars(Tokenizer.from_gguf(data / "demo-Q8_0.gguf")).compile("regex", "a")
