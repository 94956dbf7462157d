"""Templates of all families, held against what transformers renders."""

import pytest

from load.chat.styles import ANSWER, CALL, SPECIAL, STYLES, TOOL, USER
from qtransformers.errors import TemplateError
from qtransformers.load.chat import ChatTemplate
from qtransformers.load.chat.formats import FORMATS, PromptFormat

SYSTEM = {"role": "system", "content": "Be <kind> & brief. 🦊"}
CHATS = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, ANSWER, {"role": "user", "content": "And now?"}],
    "system and turns": [SYSTEM, USER, ANSWER, {"role": "user", "content": "<result>x</result>"}],
    "tool call": [SYSTEM, USER, CALL, {"role": "tool", "content": "12 °C", "name": "weather"}, ANSWER, USER],
    "two tool answers": [USER, CALL, {"role": "tool", "content": "12"}, {"role": "tool", "content": "13"}],
    "empty": [{"role": "user", "content": ""}],
    "answered": [USER, {"role": "assistant", "content": ""}],
}
GIVEN = {
    "plain": {},
    "no invitation": {"add_generation_prompt": False},
    "tools": {"tools": [TOOL, TOOL]},
    "variables": {"variables": {"enable_thinking": False, "date_string": "1 May 2025"}},
    "documents": {"documents": [{"title": "A", "text": "a"}, {"title": "B", "text": "b"}]},
}
assert len(STYLES) == 5 + len(FORMATS)


def outcome(render):
    """The text, or that the template refused."""
    import jinja2

    try:
        return render()
    except (TemplateError, jinja2.TemplateError):
        return "refused"


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("style", STYLES)
def test_as_transformers_renders(reference, style, chat, given):
    options = {"add_generation_prompt": True, **GIVEN[given]}
    variables = options.pop("variables", {})
    template = ChatTemplate(PromptFormat(style, STYLES[style]), special_tokens=SPECIAL)
    ours = outcome(lambda: template.render(CHATS[chat], variables=variables, **options).text)
    theirs = outcome(lambda: reference.apply_chat_template(CHATS[chat], chat_template=STYLES[style], tokenize=False, **options, **variables))  # fmt: skip
    assert ours == theirs
    assert ours == "refused" or "How are you?" in ours or chat == "empty"


def test_most_of_these_are_not_refused():
    """So that the comparison above compares texts."""
    refused = 0
    for source in STYLES.values():
        for chat in CHATS.values():
            refused += outcome(lambda: ChatTemplate(PromptFormat("", source), special_tokens=SPECIAL).render(chat)) == "refused"  # noqa: B023  # fmt: skip
    assert refused <= len(STYLES) * len(CHATS) / 3
