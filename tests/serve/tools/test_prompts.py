"""What chat templates are given for requests with tools."""

import json

import pytest

from qtransformers.errors import ConfigError
from qtransformers.serve.tools import syntax_of
from qtransformers.serve.tools.families import FAMILIES, GENERIC
from qtransformers.serve.tools.prompts import checked_tools, for_template
from tool_samples import TOOLS

CALLS = [
    {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Paris", "days": 3}'},
    },
    {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": "{}"}},
]
MESSAGES = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": CALLS, "reasoning": "Hm."},
    {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    {"role": "tool", "tool_call_id": "call_2", "content": "noon"},
]
KNOWING = "{{ tools }} {{ message.tool_calls }} "
WHERE_TOLD = (
    "hermes",
    "qwen3-coder",
    "glm-4.5",
    "llama-3",
    "mistral",
    "gemma",
    "deepseek-v3.2",
    "command-r",
    "generic",
)


def test_templates_that_know_tools_get_them():
    messages, tools = for_template(MESSAGES, checked_tools(TOOLS), syntax_of(KNOWING + "<tool_call>"))
    assert [t["function"]["name"] for t in tools] == ["get_weather", "now"]
    assert tools[1]["function"]["description"] == ""
    assert messages[1] == {"role": "assistant", "content": None, "tool_calls": CALLS, "reasoning_content": "Hm."}
    assert [m.get("name") for m in messages[2:]] == ["get_weather", "now"]
    assert MESSAGES[1]["reasoning"] == "Hm." and "name" not in MESSAGES[2]  # what the caller gave stays


def test_ids_that_a_template_refuses_are_replaced_alike_everywhere():
    messages, _ = for_template(MESSAGES, [], syntax_of(KNOWING + "[TOOL_CALLS] [ARGS]"))
    ids = [call["id"] for call in messages[1]["tool_calls"]]
    assert [m["tool_call_id"] for m in messages[2:]] == ids and len(set(ids)) == 2
    assert all(len(id) == 9 and id.isalnum() for id in ids)
    assert CALLS[0]["id"] == "call_1"


@pytest.mark.parametrize("family", WHERE_TOLD)
def test_templates_that_know_no_tools_are_told_in_text(family):
    syntax = syntax_of("{{ messages }}", tool_parser=family)
    messages, tools = for_template(MESSAGES, checked_tools(TOOLS), syntax)
    assert tools is None and [m["role"] for m in messages] == ["system", "user", "assistant", "user"]
    assert all(isinstance(m["content"], str) and set(m) == {"role", "content"} for m in messages)
    assert '"name": "get_weather"' in messages[0]["content"] and "Weather of a city." in messages[0]["content"]
    assert messages[3]["content"] == "<tool_response>\nrain\n</tool_response>\n<tool_response>\nnoon\n</tool_response>"
    found = syntax.parser("", TOOLS).whole(messages[2]["content"])
    assert [(c.name, json.loads(c.arguments)) for c in found.calls] == [
        ("get_weather", {"city": "Paris", "days": 3}),
        ("now", {}),
    ]
    assert found.content == ""


@pytest.mark.parametrize("family", [row.name for row in (*FAMILIES, GENERIC)])
def test_the_example_of_a_call_is_one(family):
    syntax = syntax_of("{{ messages }}", tool_parser=family)
    text = for_template([{"role": "user", "content": "?"}], checked_tools(TOOLS), syntax)[0][0]["content"]
    example = text.split("after it:\n")[1].split("\nResults come back")[0]
    offered = [{"type": "function", "function": {"name": "function_name"}}]
    (call,) = syntax.parser("", offered).whole(example).calls
    assert (call.name, json.loads(call.arguments)) == ("function_name", {"argument": "value"})


def test_the_system_s_text_comes_first_and_once():
    syntax = syntax_of("{{ messages }}")
    messages, _ = for_template([{"role": "system", "content": "Be brief."}, *MESSAGES], checked_tools(TOOLS), syntax)
    assert messages[0]["content"].startswith("Be brief.\n\nYou may call") and len(messages) == 4
    assert for_template(MESSAGES[:1], [], syntax) == (MESSAGES[:1], None)
    gemma = syntax_of("<start_of_turn> raise_exception('System role not supported')")
    messages, _ = for_template(MESSAGES[:1], checked_tools(TOOLS), gemma)
    assert [m["role"] for m in messages] == ["user"] and messages[0]["content"].endswith("\n\nWeather?")


def test_calls_are_text_where_a_template_has_no_place_for_them():
    messages, tools = for_template(MESSAGES, checked_tools(TOOLS), syntax_of("{{ tools }} <|tool_list_start|>"))
    assert messages[1]["content"] == '<|tool_call_start|>[get_weather(city="Paris", days=3), now()]<|tool_call_end|>'
    assert tools and messages[2]["role"] == "tool"


def test_tools_that_a_template_reads_from_the_system_s_message():
    messages, _ = for_template(MESSAGES[:1], checked_tools(TOOLS), syntax_of("message['tools'] tool_calls <|/tool|>"))
    assert messages[0]["role"] == "system" and json.loads(messages[0]["tools"])[0]["function"]["name"] == "get_weather"


@pytest.mark.parametrize(
    "tools, message",
    [
        ("x", "tools='x'; expected a list"),
        ([3], r"tools\[0\]=3; expected"),
        ([{"type": "web_search"}], r"tools\[0\]="),
        ([TOOLS[0], {"type": "function", "function": {"name": ""}}], r"tools\[1\]\.function\.name=''"),
        ([{"type": "function", "function": {"name": "f", "parameters": []}}], r"tools\[0\]\.function\.parameters=\[\]; expected an object"),
        ([{"type": "function", "function": {"name": "f", "strict": 1}}], r"tools\[0\]\.function\.strict=1; expected bool"),
    ],
)  # fmt: skip
def test_what_is_no_tool(tools, message):
    with pytest.raises(ConfigError, match=message):
        checked_tools(tools)


@pytest.mark.parametrize(
    "call",
    [
        3,
        {"function": 3},
        {"function": {"name": "f", "arguments": "{"}},
        {"function": {"name": "f", "arguments": "[1]"}},
    ],
)
def test_calls_that_are_none(call):
    with pytest.raises(ConfigError, match=r"tool_calls\[0\]"):
        for_template([{"role": "assistant", "tool_calls": [call]}], [], syntax_of("{{ messages }}"))
