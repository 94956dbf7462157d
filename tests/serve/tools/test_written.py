"""Answers that have to call: every text that the grammar allows is a call that the parser reads."""

import json
import random

import jsonschema
import numpy as np
import pytest

from qtransformers.constrain import Grammars
from qtransformers.errors import ConfigError, ConstraintError
from qtransformers.load.tokenizer import Tokenizer
from qtransformers.serve.tools import syntax_of
from qtransformers.serve.tools.families import FAMILIES, GENERIC, parameters
from tool_samples import SAMPLES, TOOLS

NAMES = list(dict.fromkeys(row.name for row in (*FAMILIES, GENERIC)))
SHORT = [
    {
        "type": "function",
        "function": {
            "name": "set_lamp",
            "parameters": {
                "type": "object",
                "properties": {
                    "on": {"type": "boolean"},
                    "colour": {"enum": ["red", "green"]},
                    "level": {"type": "integer", "minimum": 0, "maximum": 20},
                    "fade": {"type": "object", "properties": {"to": {"const": 7}}, "required": ["to"], "additionalProperties": False},
                },
                "required": ["level", "on"],
            },
        },
    },
    {"type": "function", "function": {"name": "now"}},
]  # fmt: skip


@pytest.fixture(scope="module")
def grammars(data):
    found = Grammars(Tokenizer.from_gguf(data / "demo-Q8_0.gguf"))
    yield found
    found.close()


def grammar(grammars, family, tools=TOOLS, choice="required", control=lambda text: None, **given):
    reasoning = given.pop("reasoning", "none")
    syntax = syntax_of("", tool_parser=family, reasoning_parser=reasoning)
    return grammars.compile("lark", syntax.grammar(tools, choice, control, **given))


def accepts(grammars, compiled, text):
    matcher = compiled.matcher()
    ids = grammars._tokenizer.encode(text, add_bos=False)
    return matcher.valid_prefix(ids) == len(ids) and (([matcher.accept(i) for i in ids] or True) and matcher.complete)


def walk(compiled, rng, most=8000):
    """Tokens drawn evenly among those that are allowed, blanks only where nothing else is: they would go on for ever."""
    matcher, ids = compiled.matcher(), []
    while not (matcher.complete and (matcher.finished or rng.random() < 0.3)):
        allowed = [i for i in np.flatnonzero(matcher.allowed()).tolist() if i not in compiled.vocabulary.eos_ids]
        allowed = [i for i in allowed if compiled.vocabulary.tokens[i].strip()] or allowed
        ids.append(rng.choice(allowed))
        matcher.accept(ids[-1])
        assert len(ids) < most
    return ids


@pytest.mark.parametrize("family", NAMES)
def test_what_models_write_is_allowed(grammars, family):
    compiled = grammar(grammars, family)
    texts = [s.text for s in SAMPLES if s.family == family and s.calls and not s.content and not s.thought]
    assert any(accepts(grammars, compiled, text) for text in texts)
    assert not accepts(grammars, compiled, "Hello.")


@pytest.mark.parametrize("family", NAMES)
def test_what_is_allowed_is_a_call(grammars, family):
    compiled, rng = grammar(grammars, family, SHORT), random.Random(family)
    for _ in range(8):
        text = grammars._tokenizer.decode(walk(compiled, rng))
        found = syntax_of("", tool_parser=family, reasoning_parser="none").parser("", SHORT).whole(text)
        assert found.calls and not found.content, text
        for call in found.calls:
            jsonschema.validate(json.loads(call.arguments), parameters(SHORT)[call.name])


@pytest.mark.parametrize("family", NAMES)
def test_a_named_tool_is_called_once(grammars, family):
    compiled = grammar(grammars, family, SHORT, {"type": "function", "function": {"name": "now"}})
    text = grammars._tokenizer.decode(walk(compiled, random.Random(0)))
    found = syntax_of("", tool_parser=family, reasoning_parser="none").parser("", SHORT).whole(text)
    assert [(call.name, json.loads(call.arguments)) for call in found.calls] == [("now", {})]


@pytest.mark.parametrize("family", [name for name in NAMES if name not in ("llama-3", "gpt-oss")])
def test_several_calls_may_be_forbidden(grammars, family):
    twice = [s.text for s in SAMPLES if s.family == family and len(s.calls) == 2 and not s.content and not s.thought]
    for text in twice:
        if accepts(grammars, grammar(grammars, family), text):
            assert not accepts(grammars, grammar(grammars, family, several=False), text)


@pytest.mark.parametrize("family", NAMES)
def test_text_may_come_first_where_calls_are_strict(grammars, family):
    strict = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]
    compiled = grammar(grammars, family, strict, "auto")
    assert accepts(grammars, compiled, "Hello, you.")
    texts = [s.text for s in SAMPLES if s.family == family and s.calls and not s.content and not s.thought]
    assert any(accepts(grammars, compiled, text) for text in texts)
    wrong = [text.replace('"days": 3', '"days": "3"') for text in texts]
    assert not any(accepts(grammars, compiled, text) for text in set(wrong) - set(texts))


@pytest.mark.parametrize("reasoning", ["think", "mistral", "seed-oss", "command-r7b", "granite-3.2"])
def test_a_thought_may_come_first(grammars, reasoning):
    thoughts = syntax_of("", reasoning_parser=reasoning).thoughts.thoughts
    call = SAMPLES[0].text
    compiled = grammar(grammars, "hermes", reasoning=reasoning)
    thought = f"Hm. <tool_call>{thoughts.close[0]}\n\n"
    assert accepts(grammars, compiled, call)
    assert accepts(grammars, compiled, thoughts.open[0] + thought + call)
    assert not accepts(grammars, compiled, thought + call)
    opened = grammar(grammars, "hermes", reasoning=reasoning, prompt=f"assistant{thoughts.open[0]}\n")
    assert accepts(grammars, opened, thought + call)
    assert not accepts(grammars, opened, call)


def test_json_may_follow_a_thought(grammars):
    syntax = syntax_of("<think> </think>")
    compiled = grammars.compile("lark", syntax.json_grammar({"type": "integer"}, lambda text: None, "<think>"))
    assert accepts(grammars, compiled, "So.</think>\n\n12")
    assert not accepts(grammars, compiled, "12")
    assert syntax_of("").json_grammar({}, lambda text: None) is None


def test_control_tokens_are_meant_as_such(grammars):
    """Marks that the vocabulary has as control tokens are those tokens, not their letters."""
    marks = {"<|START_ACTION|>": 1, "<|END_ACTION|>": 2}
    compiled = grammar(grammars, "command-r7b", SHORT, control=marks.get)
    ids = walk(compiled, random.Random(1))
    assert ids[0] == 1 and ids[-1] == 2 and ids.count(1) == 1
    assert not accepts(grammars, compiled, next(s for s in SAMPLES if s.family == "command-r7b").text)


def test_free_choices_need_no_grammar():
    syntax = syntax_of("<tool_call>")
    assert syntax.grammar(TOOLS, None, lambda text: None) is None
    assert syntax.grammar(TOOLS, "auto", lambda text: None) is None
    assert syntax.grammar(TOOLS, "none", lambda text: None) is None


@pytest.mark.parametrize(
    "tools, choice, message",
    [
        (TOOLS, "any", "tool_choice='any'; expected none, auto, required"),
        (TOOLS, {"type": "function", "function": {"name": "later"}}, "tool_choice names 'later'; expected one of tools: get_weather, now"),
        (TOOLS, {"function": 3}, "tool_choice names None"),
        ([], "required", "there are no tools"),
    ],
)  # fmt: skip
def test_choices_that_cannot_be_honoured(tools, choice, message):
    with pytest.raises(ConfigError, match=message):
        syntax_of("<tool_call>").grammar(tools, choice, lambda text: None)


def test_broken_schemas_are_errors(grammars):
    for family in ("hermes", "qwen3-coder", "llama-4"):
        with pytest.raises(ConstraintError, match="json_schema"):
            grammar(
                grammars,
                family,
                [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": 3}}}}],
            )


def test_many_tools_are_no_too_long_grammar(grammars):
    """The schemas of all tools together may be longer than a grammar may be else."""
    fields = {f"field_{i}": {"type": "integer", "minimum": i} for i in range(40)}
    tools = [
        {"type": "function", "function": {"name": f"f{i}", "parameters": {"type": "object", "properties": fields}}}
        for i in range(30)
    ]
    source = syntax_of("<tool_call>").grammar(tools, "required", lambda text: None)
    assert len(source) > 50_000
    assert accepts(
        grammars,
        grammars.compile("lark", source),
        '<tool_call>\n{"name": "f29", "arguments": {"field_3": 7}}\n</tool_call>',
    )
    with pytest.raises(ConstraintError, match="1,100 alternatives"):
        grammars.compile("lark", source + "\nx: %json " + json.dumps({"anyOf": [{"const": i} for i in range(1100)]}))
    for hostile in ("start: " + '"a" ' * 20_000, "start: " + '%json ["' * 200_000):
        with pytest.raises(ConstraintError, match=r"lark has .* characters; expected at most 50,000"):
            grammars.compile("lark", hostile)
