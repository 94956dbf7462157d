"""Messages, tools and variables as callers give them: checked, named, and put as a template needs them."""

from datetime import datetime

import pytest

from load.chat.styles import LLAMA_TOOLS, SPECIAL, TOOL, USER
from qtransformers.errors import ConfigError, TemplateError
from qtransformers.load.chat import ChatTemplate, no_template, plain
from qtransformers.load.chat.formats import FORMATS, PromptFormat

BAD_MESSAGES = [
    ([], r"^messages=\[\]"),
    ("Hi", r"^messages='Hi'"),
    (None, r"^messages=None"),
    ({"role": "user", "content": "x"}, r"^messages="),
    (["Hi"], r"^messages\[0\]='Hi'"),
    ([{"content": "x"}], r"^messages\[0\]\.role=None; expected one of system, developer, user, assistant, tool"),
    ([{"role": "admin", "content": "x"}], r"^messages\[0\]\.role='admin'"),
    ([{"role": ["user"], "content": "x"}], r"^messages\[0\]\.role=\['user'\]"),
    ([{"role": "user"}], r"^messages\[0\]\.content is missing"),
    ([{"role": "user", "content": None}], r"^messages\[0\]\.content is missing"),
    ([{"role": "assistant", "content": None}], r"^messages\[0\]\.content is missing"),
    ([{"role": "user", "content": 5}], r"^messages\[0\]\.content=5; expected text or a list of parts"),
    ([{"role": "user", "content": b"x"}], r"^messages\[0\]\.content=b'x'; expected a JSON value, found bytes"),
    ([{"role": "user", "content": {"type": "text"}}], r"^messages\[0\]\.content="),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}], r"^messages\[0\]\.content\[0\] is 'image_url'.*reads text only"),
    ([{"role": "user", "content": ["x"]}], r"^messages\[0\]\.content\[0\] is 'x'"),
    ([{"role": "user", "content": [{"type": "text", "text": 5}]}], r"^messages\[0\]\.content\[0\] is 'text'"),
    ([{"role": "user", "content": "a\ud800"}], r"^messages\[0\]\.content has a lone surrogate"),
    ([{"role": "user", "content": "x", "a\ud800": 1}], r"^messages\[0\], a key, has a lone surrogate"),
    ([{"role": "user", "content": "x", 5: 1}], r"^messages\[0\] has the key 5"),
    ([{"role": "user", "content": "x", "extra": object()}], r"^messages\[0\]\.extra=.*found object"),
    ([{"role": "user", "content": "x", "n": 10**400}], r"^messages\[0\]\.n="),
    ([{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": "x"}], r"^messages\[1\]\.tool_calls='x'"),
    ([{"role": "assistant", "tool_calls": ["x"]}], r"^messages\[0\]\.tool_calls\[0\]='x'"),
    ([{"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}], r"^messages\[0\]\.tool_calls\[0\]\.function="),
    ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], r"^messages\[0\]\.tool_calls\[0\]\.function\.arguments='{'; expected a JSON object"),
    ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 9999}}]}], r"^messages\[0\]\.tool_calls\[0\]\.function\.arguments="),
]  # fmt: skip


@pytest.mark.parametrize("messages, message", BAD_MESSAGES, ids=[m for _, m in BAD_MESSAGES])
def test_malformed_messages_name_the_field(messages, message):
    with pytest.raises(ConfigError, match=message):
        ChatTemplate(FORMATS["chatml"]).render(messages)


def test_deep_nesting_is_refused():
    deep = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ConfigError, match="nested more than 64 deep"):
        ChatTemplate(FORMATS["chatml"]).render([{"role": "user", "content": "x", "extra": deep}])


@pytest.mark.parametrize("name", ["tools", "documents"])
@pytest.mark.parametrize("value", ["x", 5, ["x"], [None], {"a": 1}])
def test_malformed_tools_and_documents(name, value):
    with pytest.raises(ConfigError, match=f"^{name}="):
        ChatTemplate(FORMATS["chatml"]).render([USER], **{name: value})


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "bos_token"])
def test_template_variables_cannot_replace_the_chat(name):
    with pytest.raises(ConfigError, match=f"template variable '{name}' is set by the chat itself"):
        ChatTemplate(FORMATS["chatml"], special_tokens=SPECIAL).render([USER], variables={name: 1})


@pytest.mark.parametrize("variables", [5, "x", ["a"], {5: 1}, {"x": object()}, {"x": b"y"}])
def test_malformed_template_variables(variables):
    with pytest.raises(ConfigError, match=r"^(template.variable|x=)"):
        ChatTemplate(FORMATS["chatml"]).render([USER], variables=variables)


def test_parts_of_text_are_joined_by_lines():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    text = ChatTemplate(FORMATS["chatml"]).render([{"role": "user", "content": parts}]).text
    assert text == "<|im_start|>user\na\nb<|im_end|>\n<|im_start|>assistant\n"


def test_arguments_in_json_text_become_an_object():
    """OpenAI clients send them so; templates expect the object."""
    template = ChatTemplate(PromptFormat("", "{{ messages[0].tool_calls[0].function.arguments.x + 1 }}"))
    for call in (
        {"function": {"name": "f", "arguments": '{"x": 1}'}},
        {"function": {"name": "f", "arguments": {"x": 1}}},
    ):
        assert template.render([{"role": "assistant", "content": None, "tool_calls": [call]}]).text == "2"


def test_what_the_caller_gave_is_not_changed():
    messages = [{"role": "user", "content": [{"type": "text", "text": "<|end|>"}]}]
    ChatTemplate(FORMATS["chatml"], control_texts=("<|end|>",)).render(messages)
    assert messages == [{"role": "user", "content": [{"type": "text", "text": "<|end|>"}]}]


def test_plain_strips_subclasses():
    class Sneaky(str):
        def __format__(self, spec):
            raise AssertionError

    assert type(plain("x", Sneaky("a"))) is str and plain("x", (1, 2.5, None, {"a": True})) == [
        1,
        2.5,
        None,
        {"a": True},
    ]


def test_the_tool_template_serves_chats_with_tools():
    template = ChatTemplate(PromptFormat("", "plain"), tool_template="tools")
    assert (template.render([USER]).text, template.render([USER], tools=[TOOL]).text) == ("plain", "tools")
    assert template.render([USER], tools=[]).text == "plain"


def test_the_clock_of_a_template():
    template = ChatTemplate(PromptFormat("", LLAMA_TOOLS), special_tokens=SPECIAL)
    assert "Today: 26 Jul 2024\n" in template.render([USER], now=datetime(2024, 7, 26)).text


def test_no_template_says_what_to_do():
    error = no_template("a.gguf")
    assert isinstance(error, ConfigError)
    assert str(error).startswith(
        "a.gguf carries no chat template"
    ) and "prompt_format=: llama-2, mistral, chatml" in str(error)


CALLING = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": {"a": "é"}}}],
}
BEFORE = "{% for m in messages %}{% for call in m.tool_calls or [] %}{{ '[' + call.function.name + ' ' }}"
AFTER = "{{ ']' }}{% endfor %}{{ m.content or '' }}{% endfor %}"


@pytest.mark.parametrize(
    "write, text",
    [
        ("{{ call.function.arguments | tojson }}", '[f {"a": "é"}]'),
        ("{{ '' + call.function.arguments }}", '[f {"a": "é"}]'),  # only a text can be joined to a text
        ("{{ call.function.arguments }}", '[f {"a": "é"}]'),  # of an object this were Python's form
        ("{{ call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}", '[f {"a": "é"}]'),
        ("{% for k, v in call.function.arguments.items() %}{{ k }}={{ v }}{% endfor %}", "[f a=é]"),
    ],
)  # fmt: skip
def test_arguments_of_calls_are_objects_or_text_as_the_template_writes_them(write, text):
    template = ChatTemplate(PromptFormat("t", BEFORE + write + AFTER))
    as_text = {**CALLING, "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"a": "é"}'}}]}
    for message in (CALLING, as_text):
        assert template.render([{"role": "user", "content": ""}, message]).text == text


def test_content_that_is_missing_is_empty_where_a_template_needs_text():
    calls = BEFORE + AFTER
    assert (
        ChatTemplate(PromptFormat("t", calls + "{{ messages[0].content is none }}")).render([CALLING]).text
        == "[f ]True"
    )
    assert (
        ChatTemplate(PromptFormat("t", calls + "{{ messages[0].content | length }}")).render([CALLING]).text == "[f ]0"
    )
    with pytest.raises(TemplateError, match="never"):
        ChatTemplate(PromptFormat("t", "{{ raise_exception('never') }}")).render([CALLING])
