"""What answers of each family mean, however they are cut into pieces."""

import itertools
import json
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qtransformers.errors import ConfigError
from qtransformers.serve.tools import Arguments, CallStart, Content, collect, parser_for, syntax_of
from qtransformers.serve.tools.families import FAMILIES, GENERIC, THOUGHTS
from tool_samples import ARGS, SAMPLES, TOOLS

NAMES = [row.name for row in FAMILIES] + [GENERIC.name]


def parser(sample, prompt=None):
    ids = itertools.count()
    syntax = syntax_of("", tool_parser=sample.family, reasoning_parser=sample.reasoning)
    return syntax.parser(sample.prompt if prompt is None else prompt, TOOLS, lambda: f"id{next(ids)}")


def parsed(sample, pieces):
    p = parser(sample)
    return collect([event for piece in pieces for event in p.feed(piece)] + p.finish())


def ident(sample):
    return f"{sample.family}-{SAMPLES.index(sample)}"


@pytest.mark.parametrize("sample", SAMPLES, ids=ident)
def test_an_answer_means(sample):
    found = parsed(sample, [sample.text])
    assert [(call.name, json.loads(call.arguments)) for call in found.calls] == sample.calls
    assert (found.content, found.reasoning) == (sample.content, sample.thought)


@pytest.mark.parametrize("sample", SAMPLES, ids=ident)
def test_every_split_means_the_same(sample):
    whole = parsed(sample, [sample.text])
    assert parsed(sample, sample.text) == whole
    for i in range(len(sample.text)):
        assert parsed(sample, [sample.text[:i], "", sample.text[i:]]) == whole, (sample.text[:i], sample.text[i:])


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.calls and not s.content], ids=ident)
def test_a_mark_behind_a_call_that_is_cut_off_is_not_shown(sample):
    n_calls = len(sample.calls)
    for end in range(1, len(sample.text)):
        for pieces in ([sample.text[:end]], sample.text[:end]):
            found = parsed(sample, pieces)
            if len(found.calls) == n_calls and json_or_none(found.calls[-1].arguments) is not None:
                assert not found.content, sample.text[:end]


def json_or_none(text):
    try:
        return json.loads(text)
    except ValueError:
        return None


def test_every_family_has_an_answer():
    assert {sample.family for sample in SAMPLES} >= set(NAMES)
    assert {sample.reasoning for sample in SAMPLES} >= {row.name for row in THOUGHTS} - {"minimax-m3"}


MARKS = sorted({mark for name in NAMES for mark in syntax_of("", tool_parser=name).shown} | {"<think>", "</think>"})
PIECES = st.sampled_from(
    [*MARKS, *"{}[]()\"'\\:,;<>\n =", "name", '"name": "now"', '{"name": "now", ', '"arguments": ', ARGS, "now", "get_weather(", "days=3"]
) | st.text(string.ascii_letters + "é🦊 \n", max_size=4)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(NAMES), st.sampled_from([row.name for row in THOUGHTS]), st.lists(PIECES, max_size=20), st.data()
)
def test_any_text_means_the_same_however_it_is_cut(family, reasoning, pieces, data):
    text = "".join(pieces)
    syntax = syntax_of("", tool_parser=family, reasoning_parser=reasoning)

    def run(parts):
        p = syntax.parser("", TOOLS, itertools.repeat("id").__next__)
        return collect([event for part in parts for event in p.feed(part)] + p.finish())

    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    whole = run([text])
    assert run([text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]) == whole
    assert run(text) == whole


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([name for name in NAMES if name != "gpt-oss"]), st.lists(PIECES, max_size=12))
def test_what_is_no_call_is_content(family, pieces):
    text = "".join(pieces)
    found = syntax_of("", tool_parser=family, reasoning_parser="none").parser("", TOOLS).whole(text)
    assert found.calls or found.content == text


@pytest.mark.parametrize("family", NAMES)
@pytest.mark.parametrize(
    "text", ["{", "<", "[[", '{"name": "now", "arguments": {', '<tool_call>{"a": "', "now(", "\n", '"\\']
)
def test_time_grows_as_the_text(family, text):
    """Texts that may become a call, character by character: what is looked at again with each is bounded."""
    p = syntax_of("", tool_parser=family, reasoning_parser="think").parser("", TOOLS)
    reader = p._answer.reader
    most = 0
    for char in text * (4_000 // len(text)):
        p.feed(char)
        most = max(most, len(reader._text))
    assert most < 600


def test_without_tools_no_text_is_a_call():
    text = SAMPLES[0].text
    assert parser_for("<tool_call>").whole(text).content == text


def test_content_comes_at_once():
    p = parser_for("<tool_call> tools", tools=TOOLS)
    assert p.feed("Hello the") == [Content("Hello the")]
    assert p.feed("re <to") == [Content("re")]
    assert p.feed("ol_") == []
    assert p.feed("x") == [Content(" <tool_x")]


def test_arguments_come_at_once():
    p = parser_for("<tool_call> tools", tools=TOOLS)
    start, *rest = p.feed('<tool_call>{"name": "get_weather", "arguments": {"ci')
    assert isinstance(start, CallStart) and start.name == "get_weather" and start.id.startswith("call_")
    assert rest == [Arguments(0, '{"ci')]
    assert p.feed('ty": "P') == [Arguments(0, 'ty": "P')]


def test_a_prompt_may_open_the_thought():
    template = "<think> </think> tools"
    assert parser_for(template, prompt="...<think>\n").whole("Hm.</think>Yes.").reasoning == "Hm."
    assert parser_for(template, prompt="...<think>\n\n</think>\n\n").whole("Hm.").content == "Hm."
    assert parser_for(template, prompt="...").whole("<think>Hm.").reasoning == "Hm."


def test_ids_are_as_templates_take_them():
    calls = parser_for("[TOOL_CALLS] [ARGS]", tools=TOOLS).whole("[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]now[ARGS]{}").calls
    assert all(len(call.id) == 9 and call.id.isalnum() for call in calls) and calls[0].id != calls[1].id
    calls = (
        syntax_of("", tool_parser="kimi-k2")
        .parser("", TOOLS)
        .whole(next(s for s in SAMPLES if s.family == "kimi-k2").text)
        .calls
    )
    assert [call.id for call in calls] == ["functions.get_weather:0", "functions.now:1"]


@pytest.mark.parametrize("field", ["tool_parser", "reasoning_parser"])
def test_unknown_names_are_errors(field):
    with pytest.raises(ConfigError, match=rf"{field}='hermse'; expected one of .*none"):
        syntax_of("", **{field: "hermse"})


def test_templates_show_their_family():
    for row in FAMILIES:
        assert syntax_of(" ... ".join(row.marks)).family.name == row.name
    for row in THOUGHTS:
        assert syntax_of(" ... ".join(row.marks)).thoughts.name == row.name
    assert syntax_of("{{ messages }}").family is GENERIC
    assert syntax_of(None, architecture="gpt-oss").family.name == "gpt-oss"


def test_marks_are_not_part_of_each_other():
    """What a reader looks for at the same time: else a text could be cut so that the shorter is found first."""
    for row in (*FAMILIES, GENERIC):
        if row.frame:
            for a, b in itertools.permutations({*row.frame.begin, *row.frame.open}, 2):
                assert a not in b, row.name
            for a, b in itertools.permutations({*row.frame.open, *row.frame.close, *row.frame.end}, 2):
                assert a not in b or b.startswith(a), row.name
