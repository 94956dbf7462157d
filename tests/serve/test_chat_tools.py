"""Calls, thoughts and JSON in chats, with OpenAI's own client."""

import json
from dataclasses import replace

import jsonschema
import openai
import pytest

from servers import running

MESSAGES = [{"role": "user", "content": "What is the weather in Paris?"}]
SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}, "colour": {"enum": ["red", "green"]}},
    "required": ["on", "colour"],
    "additionalProperties": False,
}
LAMP = {"type": "function", "function": {"name": "set_lamp", "description": "A lamp.", "parameters": SCHEMA}}
NOW = {"type": "function", "function": {"name": "now"}}
SETTINGS = {"model": "demo", "max_tokens": 200, "temperature": 0}


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=f"{served[0]}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def thinker(demo):
    """A server that takes <think> for a thought, and calls as Mistral writes them."""
    spec = replace(demo, tool_parser="mistral-args", reasoning_parser="think")
    with running([spec]) as (url, _), openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def streamed(client, **given):
    """Text, thoughts, calls and the reason of the end, joined from a stream."""
    content, reasoning, calls, finish = "", "", [], None
    for chunk in client.chat.completions.create(stream=True, **given):
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        reasoning += getattr(choice.delta, "reasoning_content", None) or ""
        for delta in choice.delta.tool_calls or ():
            if delta.id:
                assert delta.index == len(calls) and delta.type == "function"
                calls.append([delta.function.name, ""])
            calls[delta.index][1] += delta.function.arguments or ""
        finish = choice.finish_reason or finish
    return content, reasoning, [tuple(call) for call in calls], finish


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "set_lamp"}}])
def test_a_forced_call_is_valid(client, choice):
    given = {**SETTINGS, "messages": MESSAGES, "tools": [LAMP], "tool_choice": choice, "parallel_tool_calls": False}
    answer = client.chat.completions.create(**given).choices[0]
    (call,) = answer.message.tool_calls
    assert call.function.name == "set_lamp" and call.id.startswith("call_")
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
    assert answer.finish_reason == "tool_calls" and answer.message.content is None
    assert streamed(client, **given) == ("", "", [("set_lamp", call.function.arguments)], "tool_calls")


def test_a_conversation_with_results_goes_on(client):
    given = {**SETTINGS, "tools": [LAMP, NOW]}
    first = client.chat.completions.create(**given, messages=MESSAGES, tool_choice="required").choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "done"} for call in first.tool_calls]
    after = client.chat.completions.create(
        **given, messages=[*MESSAGES, first.model_dump(exclude_none=True), *results], tool_choice="none"
    )
    assert after.choices[0].message.tool_calls is None and after.choices[0].message.content


def test_text_that_looks_like_a_call_is_text_where_there_are_no_tools(client):
    text = '<tool_call>{"name": "now"}</tool_call>'
    given = {**SETTINGS, "messages": MESSAGES, "extra_body": {"regex": text.replace("{", r"\{").replace("}", r"\}")}}
    assert client.chat.completions.create(**given).choices[0].message.content == text
    given["tools"] = [NOW]
    found = client.chat.completions.create(**given).choices[0]
    assert [c.function.name for c in found.message.tool_calls] == ["now"] and found.finish_reason == "tool_calls"


def test_thoughts_are_told_apart(thinker):
    given = {**SETTINGS, "messages": MESSAGES, "extra_body": {"regex": "<think>Hm, so\\.</think>\n\nYes\\."}}
    found = thinker.chat.completions.create(**given)
    message = found.choices[0].message
    assert (message.reasoning, message.reasoning_content, message.content) == ("Hm, so.", "Hm, so.", "Yes.")
    assert 0 < found.usage.completion_tokens_details.reasoning_tokens < found.usage.completion_tokens
    assert streamed(thinker, **given) == ("Yes.", "Hm, so.", [], "stop")


def test_the_parser_that_is_named_counts(thinker):
    given = {
        **SETTINGS,
        "messages": MESSAGES,
        "tools": [NOW],
        "extra_body": {"regex": r"Yes\.\[TOOL_CALLS\]now\[ARGS\]\{\}"},
    }
    message = thinker.chat.completions.create(**given).choices[0].message
    assert message.content == "Yes." and len(message.tool_calls[0].id) == 9
    assert streamed(thinker, **given) == ("Yes.", "", [("now", "{}")], "tool_calls")


def test_json_as_asked_for(client):
    schema = {"type": "json_schema", "json_schema": {"name": "lamp", "schema": SCHEMA, "strict": True}}
    found = client.chat.completions.create(**SETTINGS, messages=MESSAGES, response_format=schema)
    jsonschema.validate(json.loads(found.choices[0].message.content), SCHEMA)
    short = {**SETTINGS, "max_tokens": 60}
    found = client.chat.completions.create(**short, messages=MESSAGES, response_format={"type": "json_object"})
    assert found.choices[0].message.content.startswith("{")


def test_json_or_a_call(client):
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"const": 7}}}
    found = client.chat.completions.create(**SETTINGS, messages=MESSAGES, tools=[NOW], response_format=schema).choices[
        0
    ]
    assert found.message.content == "7" or [c.function.name for c in found.message.tool_calls] == ["now"]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"tools": [{"type": "function"}]}, r"tools\[0\]=.*expected"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, r"tools\[0\]\.function\.name='a b'"),
        ({"tools": [NOW], "tool_choice": "sometimes"}, "tool_choice='sometimes'; expected none, auto, required"),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "later"}}}, "names 'later'"),
        ({"response_format": {"type": "xml"}}, "response_format="),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 3}}}}, "json_schema"),
        ({"tools": [NOW], "tool_choice": "required", "extra_body": {"regex": "a"}}, "regex: the answer has to follow"),
        ({"extra_body": {"chat_template": "{{ messages }}"}}, "--allow-templates"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured(client, given, message):
    with pytest.raises(openai.BadRequestError, match=message):
        client.chat.completions.create(**SETTINGS, messages=MESSAGES, **given)
