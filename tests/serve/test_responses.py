"""/v1/responses with OpenAI's own client: items, events, calls, thoughts."""

import json
from dataclasses import replace

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from qtransformers.errors import ConfigError
from qtransformers.serve.responses import Answer, ResponsesRequest, chat_of, messages_of
from qtransformers.serve.tools import Arguments, CallStart, Content, Reasoning
from servers import running

SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}},
    "required": ["on"],
    "additionalProperties": False,
}
LAMP = {"type": "function", "name": "set_lamp", "description": "A lamp.", "parameters": SCHEMA, "strict": False}
SETTINGS = {"model": "demo", "max_output_tokens": 200, "temperature": 0}
USAGE = {
    "prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 1},
    "completion_tokens_details": {"reasoning_tokens": 2},
}  # fmt: skip
EVENTS = [
    Reasoning("Hm"), Reasoning("."), Content("I "), Content("call."), CallStart(0, "call_1", "f"), Arguments(0, '{"a"'),
    Arguments(0, ": 1}"), CallStart(1, "call_2", "g"), Arguments(1, '{"input": "x\\n"}'), Content("Done."),
]  # fmt: skip


@pytest.fixture(scope="module")
def client(demo):
    """A server that takes <think> for a thought."""
    spec = replace(demo, reasoning_parser="think")
    with running([spec]) as (url, _), openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def told(events, finish="tool_calls", **ask):
    answer = Answer(ResponsesRequest(input="?", **ask), "1", "demo")
    return [*answer.start(), *answer.take(events), *answer.finish(finish, USAGE)], answer.response


def test_events_are_those_of_the_api():
    found, response = told(EVENTS, tools=[{"type": "function", "name": "f"}, {"type": "custom", "name": "g"}])
    kinds = [e["type"].removeprefix("response.") for e in found]
    item = ["output_item.added", "output_item.done"]
    assert kinds == [
        "created", "in_progress",
        item[0], "content_part.added", *["reasoning_text.delta"] * 2, "reasoning_text.done", "content_part.done", item[1],
        item[0], "content_part.added", *["output_text.delta"] * 2, "output_text.done", "content_part.done", item[1],
        item[0], *["function_call_arguments.delta"] * 2, "function_call_arguments.done", item[1],
        item[0], "custom_tool_call_input.delta", "custom_tool_call_input.done", item[1],
        item[0], "content_part.added", "output_text.delta", "output_text.done", "content_part.done", item[1],
        "completed",
    ]  # fmt: skip
    assert [e["sequence_number"] for e in found] == list(range(len(found)))
    for e in found:
        TypeAdapter(ResponseStreamEvent).validate_python(json.loads(json.dumps(e)), strict=True)
    whole = Response.model_validate(response, strict=True)
    assert [i.type for i in whole.output] == ["reasoning", "message", "function_call", "custom_tool_call", "message"]
    assert whole.output[0].content[0].text == "Hm." and whole.output[1].content[0].text == "I call."
    assert (whole.output[2].call_id, whole.output[2].arguments) == ("call_1", '{"a": 1}')
    assert whole.output[3].input == "x\n" and whole.output_text == "I call.Done."
    assert (whole.usage.input_tokens, whole.usage.output_tokens_details.reasoning_tokens) == (3, 2)
    assert [e["output_index"] for e in found if e["type"] == "response.output_item.done"] == [0, 1, 2, 3, 4]


def test_an_answer_that_is_cut_off_is_incomplete():
    found, response = told([Content("I ")], "length")
    assert found[-1]["type"] == "response.incomplete" and response["incomplete_details"] == {
        "reason": "max_output_tokens"
    }
    assert response["output"][0]["status"] == "incomplete"


def test_items_become_messages():
    items = [
        {"role": "user", "content": "Hello"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I call."}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "c2", "name": "g", "input": "x"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "2"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
    ]
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"id": "c2", "type": "function", "function": {"name": "g", "arguments": '{"input": "x"}'}},
    ]
    assert messages_of(items) == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "I call.", "reasoning_content": "Hm.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
        {"role": "tool", "tool_call_id": "c2", "content": "2"},
        {"role": "user", "content": "a\nb"},
    ]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"input": [{"type": "item_reference", "id": "x"}]}, r"input\[0\]\.type='item_reference'; expected"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            r"input\[0\]\.content\[0\] is 'input_image'",
        ),
        ({"input": [{"role": "user", "content": 3}]}, r"input\[0\]\.content=3"),
        ({"input": "?", "tools": [{"type": "web_search"}]}, r"tools\[0\]\.type='web_search'"),
        ({"input": "?", "tool_choice": {"type": "allowed_tools"}}, "allowed_tools"),
    ],
)
def test_requests_that_mean_nothing_here(given, message):
    with pytest.raises(ConfigError, match=message):
        chat_of(ResponsesRequest(**given))


def test_answer_and_stream_are_the_same(client):
    given = {**SETTINGS, "max_output_tokens": 24, "instructions": "Be brief.", "input": "Tell me a story."}
    whole = client.responses.create(**given)
    chat = client.chat.completions.create(
        model="demo", temperature=0, max_tokens=24,
        messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me a story."}],
    )  # fmt: skip
    assert whole.output_text == chat.choices[0].message.content and whole.status == "incomplete"
    with client.responses.stream(**given) as stream:
        events = list(stream)
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert events[-1].type == "response.incomplete"
    final = events[-1].response
    assert text == final.output_text == whole.output_text
    assert final.usage.output_tokens == whole.usage.output_tokens == 24


def test_a_forced_call_and_its_result(client):
    given = {**SETTINGS, "tools": [LAMP], "input": [{"role": "user", "content": "Light!"}]}
    whole = client.responses.create(**given, tool_choice={"type": "function", "name": "set_lamp"})
    (call,) = [item for item in whole.output if item.type == "function_call"]
    assert isinstance(json.loads(call.arguments)["on"], bool) and whole.status == "completed"
    with client.responses.stream(**given, tool_choice={"type": "function", "name": "set_lamp"}) as stream:
        arguments = "".join(e.delta for e in stream if e.type == "response.function_call_arguments.delta")
        final = stream.get_final_response()
    assert arguments == final.output[-1].arguments == call.arguments
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    items = [*given["input"], *(item.model_dump(exclude_none=True) for item in whole.output), result]
    after = client.responses.create(**{**given, "input": items}, tool_choice="none")
    assert [item.type for item in after.output] == ["message"]


def test_json_and_refusals(client):
    schema = {"type": "json_schema", "name": "n", "schema": {"const": 7}}
    plain = {**SETTINGS, "input": "?", "extra_body": {"chat_template_kwargs": {}}}
    with client.responses.stream(**plain, text={"format": schema}) as stream:
        final = stream.get_final_response()
    assert final.output_text == "7" or final.output[0].type == "reasoning"
    for field, value in (("previous_response_id", "resp_1"), ("truncation", "auto"), ("background", True)):
        with pytest.raises(openai.BadRequestError, match=f"{field}=.*Send the whole conversation"):
            client.responses.create(**SETTINGS, input="?", **{field: value})
    for field, more in (("verbosity", {"text": {"verbosity": "low"}}), ("service_tier", {"service_tier": "flex"})):
        with pytest.raises(openai.BadRequestError, match=f"{field}=.*Leave it out"):
            client.responses.create(**SETTINGS, input="?", **more)
    usual = client.responses.create(**SETTINGS, input="?", text={"verbosity": "medium"}, service_tier="auto")
    assert usual.output
