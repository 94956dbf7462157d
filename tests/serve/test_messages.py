"""/v1/messages with Anthropic's own client: blocks, events, calls, thoughts."""

import json
from dataclasses import replace

import anthropic
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from pydantic import TypeAdapter

from qtransformers.errors import ConfigError
from qtransformers.serve.messages import Answer, MessagesRequest, chat_of, messages_of
from qtransformers.serve.tools import Arguments, CallStart, Content, Reasoning
from servers import running

SCHEMA = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}},
    "required": ["on"],
    "additionalProperties": False,
}
LAMP = {"name": "set_lamp", "description": "A lamp.", "input_schema": SCHEMA}
SETTINGS = {"model": "demo", "max_tokens": 200, "extra_body": {"temperature": 0}}
STORY = [{"role": "user", "content": "Tell me a story."}]
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 1}}


@pytest.fixture(scope="module")
def client(demo):
    spec = replace(demo, reasoning_parser="none")
    with running([spec]) as (url, _), anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def told(events, finish="tool_calls", stop=None):
    answer = Answer("1", "demo", 3)
    start = json.loads(json.dumps({"type": "message_start", "message": answer.message}))
    return [start, *answer.take(events), *answer.finish(finish, USAGE, stop)], answer.message


def test_events_are_those_of_the_api():
    found, message = told(
        [Reasoning("Hm."), Content("I "), Content("call."), CallStart(0, "t1", "f"), Arguments(0, '{"a": 1}'), CallStart(1, "t2", "g"), Arguments(1, "{}")]
    )  # fmt: skip
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert [e["type"] for e in found] == [
        "message_start", *block, block[0], block[1], block[1], block[2], *block, *block, "message_delta", "message_stop",
    ]  # fmt: skip
    for e in found:
        TypeAdapter(RawMessageStreamEvent).validate_python(json.loads(json.dumps(e)), strict=True)
    whole = Message.model_validate(message, strict=True)
    assert [b.type for b in whole.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert (
        whole.content[0].thinking == "Hm." and whole.content[1].text == "I call." and whole.content[2].input == {"a": 1}
    )
    assert whole.stop_reason == "tool_use" and (whole.usage.input_tokens, whole.usage.cache_read_input_tokens) == (2, 1)


def test_reasons_of_the_end():
    assert told([Content("a")], "length")[1]["stop_reason"] == "max_tokens"
    assert told([Content("a")], "stop")[1]["stop_reason"] == "end_turn"
    assert told([Content("a")], "stop", "b")[1]["stop_sequence"] == "b"
    assert told([CallStart(0, "t", "f"), Arguments(0, '{"a": "cut')], "length")[1]["content"][0]["input"] == {
        "arguments": '{"a": "cut'
    }


def test_blocks_become_messages():
    found = messages_of("m", {"role": "assistant", "content": [
        {"type": "thinking", "thinking": "Hm.", "signature": ""}, {"type": "text", "text": "I call."},
        {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
    ]})  # fmt: skip
    call = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    assert found == [{"role": "assistant", "content": "I call.", "tool_calls": [call], "reasoning_content": "Hm."}]
    found = messages_of("m", {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "1"}]},
        {"type": "tool_result", "tool_use_id": "t2", "content": "2"}, {"type": "text", "text": "So?"},
    ]})  # fmt: skip
    assert found == [
        {"role": "tool", "tool_call_id": "t1", "content": "1"},
        {"role": "tool", "tool_call_id": "t2", "content": "2"},
        {"role": "user", "content": "So?"},
    ]


def test_choices_and_thinking():
    chat = chat_of(MessagesRequest(messages=STORY, max_tokens=5, system=[{"type": "text", "text": "Be brief."}],
        tools=[LAMP], tool_choice={"type": "any", "disable_parallel_tool_use": True}, thinking={"type": "enabled", "budget_tokens": 9},
        stop_sequences=["x"]))  # fmt: skip
    assert chat.messages[0] == {"role": "system", "content": "Be brief."}
    assert chat.tools[0]["function"]["parameters"] == SCHEMA and chat.tool_choice == "required"
    assert chat.parallel_tool_calls is False and chat.chat_template_kwargs == {"enable_thinking": True}
    assert (chat.max_tokens, chat.stop) == (5, ["x"])


@pytest.mark.parametrize(
    "given, message",
    [
        ({"messages": [{"role": "tool", "content": "x"}]}, r"messages\[0\]\.role='tool'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            r"messages\[0\]\.content\[0\] is 'image'",
        ),
        (
            {"messages": STORY, "tools": [{"type": "bash_20250124", "name": "bash"}]},
            r"tools\[0\]\.type='bash_20250124'",
        ),
        (
            {"messages": STORY, "tool_choice": {"type": "some"}},
            "tool_choice.type='some'; expected auto, any, none, tool",
        ),
        ({"messages": STORY, "thinking": {"type": "much"}}, "thinking.type='much'"),
    ],
)
def test_requests_that_mean_nothing_here(given, message):
    with pytest.raises(ConfigError, match=message):
        chat_of(MessagesRequest(max_tokens=5, **given))


def test_answer_and_stream_are_the_same(client):
    given = {**SETTINGS, "max_tokens": 24, "messages": STORY, "system": "Be brief."}
    whole = client.messages.create(**given)
    assert whole.stop_reason == "max_tokens" and whole.usage.output_tokens == 24 and whole.content[0].text
    with client.messages.stream(**given) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text
    counted = client.messages.count_tokens(model="demo", messages=STORY, system="Be brief.").input_tokens
    for usage in (whole.usage, final.usage):
        assert usage.input_tokens + usage.cache_read_input_tokens == counted


def test_a_forced_call_and_its_result(client):
    given = {**SETTINGS, "tools": [LAMP], "messages": [{"role": "user", "content": "Light!"}]}
    choice = {"type": "tool", "name": "set_lamp"}
    whole = client.messages.create(**given, tool_choice=choice)
    (call,) = whole.content
    assert call.type == "tool_use" and isinstance(call.input["on"], bool) and whole.stop_reason == "tool_use"
    with client.messages.stream(**given, tool_choice=choice) as stream:
        parts = [e.delta.partial_json for e in stream if e.type == "content_block_delta"]
        final = stream.get_final_message()
    assert json.loads("".join(parts)) == final.content[0].input == call.input and len(parts) > 1
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "done"}]}
    messages = [*given["messages"], {"role": "assistant", "content": [call.model_dump(exclude_none=True)]}, result]
    after = client.messages.create(**{**given, "messages": messages}, tool_choice={"type": "none"})
    assert [block.type for block in after.content] == ["text"]


def test_the_text_that_ended_an_answer_is_said(client):
    text = client.messages.create(**{**SETTINGS, "max_tokens": 24}, messages=STORY).content[0].text
    word = text.split()[4]
    found = client.messages.create(**SETTINGS, messages=STORY, stop_sequences=["never", word])
    assert (found.stop_reason, found.stop_sequence) == ("stop_sequence", word)
    assert found.content[0].text == text.partition(word)[0]


def test_errors_have_the_shape_of_the_api(client):
    with pytest.raises(anthropic.BadRequestError, match="the last is the assistant's"):
        client.messages.create(**SETTINGS, messages=[*STORY, {"role": "assistant", "content": "Once"}])
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**SETTINGS, "model": "other"}, messages=STORY)


@pytest.mark.parametrize(
    "content, where",
    [
        ([{"type": "image"}], "messages[0].content[0] is"),
        ([{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "b"}, 5]}], "messages[0].content[0].content[1] is"),
    ],
)  # fmt: skip
def test_a_block_that_is_no_text_is_named(content, where):
    with pytest.raises(ConfigError) as found:
        messages_of("messages[0]", {"role": "user", "content": content})
    assert str(found.value).startswith(where)
