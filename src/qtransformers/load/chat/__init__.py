"""From chat messages to the prompt a model was trained on.

The template's own text may hold control tokens; what users write may not become any. A control token spelled out in a
message is split by a mark, a Unicode noncharacter, before the template sees it, and the tokenizer leaves the mark out
and reads the parts as plain text. So the template may trim, cut or repeat a message as it likes; only comparing a
message with a control token's text gives another answer than without the mark.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

from qtransformers.checks import shown, text, whole
from qtransformers.errors import ConfigError, TemplateError
from qtransformers.load.chat.budget import Limits
from qtransformers.load.chat.formats import CHOICES, PromptFormat
from qtransformers.load.chat.sandbox import Template
from qtransformers.load.start import with_start
from qtransformers.load.tokenizer.specials import SpecialMatcher

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MAX_DEPTH = 64
MARKS = [chr(c) for c in range(0xFDD0, 0xFDF0)]  # noncharacters: never part of a text that is exchanged

JSON = Any  # None, bool, int, float, str, or lists and dicts of them


class Vocabulary(Protocol):
    """What a chat needs to know about a tokenizer."""

    before: list[int]  # ids the model expects in front of a text
    special_ids: frozenset[int]

    def token_text(self, i: int, /) -> str:
        """How the vocabulary spells a token."""

    def encode(self, text: str, add_bos: bool | None = None, encode_special: bool = False) -> list[int]:
        """The ids of a text."""


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt. `mark`, where there is one, splits what looks like a control token and is none."""

    marked: str
    mark: str = ""

    @property
    def text(self) -> str:
        """The prompt as it reads."""
        return self.marked.replace(self.mark, "") if self.mark else self.marked


class ControlTexts:
    """The spellings of a vocabulary's control tokens, and where a text has one."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = sorted({t for t in texts if len(t) > 1})
        self._known = set(self._texts)
        lengths: dict[str, set[int]] = {}
        for t in self._texts:
            lengths.setdefault(t[:2], set()).add(len(t))
        self._lengths = {head: sorted(n) for head, n in lengths.items()}
        self._heads = re.compile(f"(?={'|'.join(map(re.escape, self._lengths))})") if lengths else None
        self._longest = max(map(len, self._texts), default=0)

    def splits(self, value: str) -> list[int]:
        """Where to split `value`: inside every control token in it."""
        if self._heads is None:
            return []
        return sorted(
            {
                m.start() + 1
                for m in self._heads.finditer(value)
                for n in self._lengths[value[m.start() : m.start() + 2]]
                if value[m.start() : m.start() + n] in self._known
            }
        )

    def splits_of_content(self, value: str) -> list[int]:
        """The same, and inside what may be the beginning of one at the end, blanks apart: the next content may end it."""
        places = self.splits(value)
        for tail in {value, value.rstrip()}:
            begin = max(0, len(tail) - self._longest)
            places += [at + 1 for at in range(begin, len(tail)) if self._begins(tail[at:])]
        return sorted(set(places))

    def _begins(self, part: str) -> bool:
        i = bisect_left(self._texts, part)
        return i < len(self._texts) and self._texts[i].startswith(part)


@dataclass(frozen=True)
class ChatTemplate:
    """A model's chat template. Compiled at first use, so that a broken one does not keep a model from loading."""

    format: PromptFormat
    tool_template: str = ""  # used instead where tools are given
    special_tokens: Mapping[str, str] = field(default_factory=dict)  # bos_token, eos_token, ...: their texts
    control_texts: tuple[str, ...] = ()

    def render(
        self,
        messages: Any,
        *,
        tools: Any = None,
        documents: Any = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        encode_special: bool = False,
        now: datetime | None = None,
        limits: Limits | None = None,
    ) -> Prompt:
        """The prompt for OpenAI-shaped messages `{"role", "content", ...}`.

        `variables` are passed on to the template (`enable_thinking`, `date_string`, ...); `encode_special` lets control
        tokens that messages spell out become those tokens; `now` is the template's clock.
        ConfigError naming message and field for malformed input, TemplateError for what the template does.
        """
        given: dict[str, Any] = {
            "messages": checked_messages(messages),
            "tools": _objects("tools", tools),
            "documents": _objects("documents", documents),
            "add_generation_prompt": add_generation_prompt,
            **self.special_tokens,
        }
        if not isinstance(variables, (Mapping, type(None))):
            raise ConfigError(f"template_variables={shown(variables)}; expected a mapping of names to values.")
        for name, value in (variables or {}).items():
            if not isinstance(name, str) or name in given:
                raise ConfigError(f"template variable {shown(name)} is set by the chat itself. Leave it out.")
            given[name] = plain(name, value)
        template = self._tool_template if tools and self.tool_template else self._template
        if any(message.get("tool_calls") for message in given["messages"]) and self._arguments_are_text:
            for message in given["messages"]:
                message["tool_calls"] = [_with_text(call) for call in message.get("tool_calls") or ()]
        guarded, mark = (given, "") if encode_special else self._guard(given)
        try:
            rendered = template.render(guarded, now=now, limits=limits)
        except TemplateError:
            silent = [message for message in guarded["messages"] if message.get("content", "") is None]
            if not silent:
                raise
            for message in silent:  # some templates ask whether there is content, others take it for text
                message["content"] = ""
            rendered = template.render(guarded, now=now, limits=limits)
        if mark:  # templates may write JSON in ASCII
            rendered = rendered.replace(_escaped(mark), mark)
        return Prompt(rendered, mark)

    def _guard(self, given: dict[str, Any]) -> tuple[dict[str, Any], str]:
        """The variables with the control tokens that users spell out split by a mark, and the mark; "" where there are none."""
        controls = self._controls
        written = {name: value for name, value in given.items() if name not in self.special_tokens}
        found = any(controls.splits(s) or controls.splits_of_content(s) for s in _strings(written))
        if not found:
            return given, ""
        mark = _unused_mark(_strings(written))

        def key(k: str) -> str:
            return _insert(mark, k, controls.splits(k))

        def guard(value: JSON) -> JSON:
            if isinstance(value, str):
                return _insert(mark, value, controls.splits_of_content(value))
            if isinstance(value, list):
                return [guard(item) for item in value]
            if isinstance(value, dict):
                return {key(k): guard(v) for k, v in value.items()}
            return value

        guarded = {name: guard(value) for name, value in written.items()}
        for message, original in zip(guarded["messages"], given["messages"], strict=True):
            message["role"] = original["role"]  # one of ROLES, and part of control tokens in some templates
        return {**given, **guarded}, mark

    @cached_property
    def _arguments_are_text(self) -> bool:
        """Whether the template writes the arguments of calls as they are: then they must be JSON text, else the object."""
        template = self._tool_template if self.tool_template else self._template
        for arguments, sign in (({"probe": 1}, r"(?<!')probe(?!')"), ('{"probe": 1}', '"probe"')):
            for content in (None, ""):
                call = {"type": "function", "id": "probe0001", "function": {"name": "probing", "arguments": arguments}}
                messages = [
                    {"role": "user", "content": "?"},
                    {"role": "assistant", "content": content, "tool_calls": [call]},
                ]
                given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": False}
                with suppress(TemplateError):
                    found = template.render({**given, **self.special_tokens})
                    if "probing" in found and re.search(sign, found):
                        return isinstance(arguments, str)
        return False

    @cached_property
    def _template(self) -> Template:
        return Template(self.format.template)

    @cached_property
    def _tool_template(self) -> Template:
        return Template(self.tool_template)

    @cached_property
    def _controls(self) -> ControlTexts:
        return ControlTexts(self.control_texts)


def no_template(file: str) -> ConfigError:
    """The error for a chat with a model that does not say how its prompts look."""
    return ConfigError(
        f"{file} carries no chat template, so how its prompts look is unknown. Say it with prompt_format=: {CHOICES}. "
        "Or complete text with generate()."
    )


def checked_messages(messages: Any) -> list[dict[str, JSON]]:
    """Messages as plain dicts of JSON values, the texts of content parts joined; ConfigError naming message and field."""
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ConfigError(
            f'messages={shown(messages)}; expected a list of at least one {{"role": ..., "content": ...}}.'
        )
    return [_message(f"messages[{i}]", message) for i, message in enumerate(messages)]


def _message(where: str, message: Any) -> dict[str, JSON]:
    if not isinstance(message, Mapping):
        raise ConfigError(f'{where}={shown(message)}; expected {{"role": ..., "content": ...}}.')
    if message.get("role") not in ROLES if isinstance(message.get("role"), str) else True:
        raise ConfigError(f"{where}.role={shown(message.get('role'))}; expected one of {', '.join(ROLES)}.")
    out: dict[str, JSON] = plain(where, message)
    calls = out.get("tool_calls")
    if isinstance(out.get("content"), list):
        out["content"] = "\n".join(_part(f"{where}.content[{i}]", part) for i, part in enumerate(out["content"]))
    elif out.get("content") is None and not (out["role"] == "assistant" and (calls or out.get("function_call"))):
        raise ConfigError(
            f"{where}.content is missing; expected text. Only an assistant that calls tools may have none."
        )
    elif not isinstance(out.get("content"), (str, type(None))):
        raise ConfigError(f"{where}.content={shown(out['content'])}; expected text or a list of parts.")
    if calls is not None:
        if not isinstance(calls, list):
            raise ConfigError(f"{where}.tool_calls={shown(calls)}; expected a list.")
        out["tool_calls"] = [_tool_call(f"{where}.tool_calls[{i}]", call) for i, call in enumerate(calls)]
    return out


def _part(where: str, part: JSON) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, dict) else part
    raise ConfigError(
        f'{where} is {shown(kind)}; expected {{"type": "text", "text": ...}}: this model reads text only.'
    )


def _tool_call(where: str, call: JSON) -> JSON:
    """A tool call whose arguments are an object: clients send them as JSON text, most templates expect the object."""
    if not isinstance(call, dict):
        raise ConfigError(f"{where}={shown(call)}; expected an object.")
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ConfigError(f"{where}.function={shown(function)}; expected an object with a name.")
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        parsed = plain(f"{where}.function.arguments", json.loads(arguments or "{}"))
    except (ValueError, RecursionError) as e:
        if isinstance(e, ConfigError):
            raise
        raise ConfigError(f"{where}.function.arguments={shown(arguments)}; expected a JSON object.") from None
    function = {**function, "arguments": parsed}
    return {**call, "function": function} if "function" in call else function


def _with_text(call: JSON) -> JSON:
    """A checked call with its arguments as JSON text."""
    function = call.get("function", call)
    text = function.get("arguments", {})
    function = {**function, "arguments": text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)}
    return {**call, "function": function} if "function" in call else function


def _objects(name: str, value: Any) -> list[JSON] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, Mapping) for item in value):
        raise ConfigError(f"{name}={shown(value)}; expected a list of objects.")
    return plain(name, value) or None


def plain(where: str, value: Any, depth: int = 0) -> JSON:
    """A copy of a JSON value made of nothing but dict, list, str, int, float, bool and None; ConfigError naming what else there is."""
    if depth > MAX_DEPTH:
        raise ConfigError(f"{where[:80]}... is nested more than {MAX_DEPTH} deep.")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(text(where, value))
    if isinstance(value, int):
        return whole(where, value, -(2**63), 2**64 - 1)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, (list, tuple)):
        return [plain(f"{where}[{i}]", item, depth + 1) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {_key(where, k): plain(f"{where}.{k}", v, depth + 1) for k, v in value.items()}
    raise ConfigError(f"{where}={shown(value)}; expected a JSON value, found {type(value).__name__}.")


def _key(where: str, key: Any) -> str:
    if not isinstance(key, str):
        raise ConfigError(f"{where} has the key {shown(key)}; expected text.")
    return str.__str__(text(f"{where}, a key,", key))


def _strings(value: JSON) -> Iterator[str]:
    """Every text in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for k, v in value.items():
            yield k
            yield from _strings(v)


def _insert(mark: str, value: str, places: Iterable[int]) -> str:
    """`value` with the mark at each of the rising `places`."""
    cuts = [0, *places, len(value)]
    return mark.join(value[a:b] for a, b in pairwise(cuts)) if len(cuts) > 2 else value


def _unused_mark(texts: Iterable[str]) -> str:
    everything = "\0".join(texts)
    for mark in MARKS:
        if mark not in everything and _escaped(mark) not in everything:
            return mark
    raise ConfigError("the messages hold control tokens and every noncharacter of Unicode at once. Remove either.")


def _escaped(mark: str) -> str:
    return f"\\u{ord(mark):04x}"


def encode(prompt: Prompt, tokenizer: Vocabulary) -> list[int]:
    """Token ids of a prompt, with what the model expects in front of a text, once, and nothing behind."""
    if not prompt.mark:
        return with_start(tokenizer.encode(prompt.marked, add_bos=False, encode_special=True), tokenizer)
    controls = sorted(tokenizer.special_ids)
    matcher = SpecialMatcher([tokenizer.token_text(i) for i in controls], range(len(controls)))
    ids: list[int] = []
    for piece in matcher.split(prompt.marked):
        if isinstance(piece, int):
            ids.append(controls[piece])
        else:
            ids += tokenizer.encode(piece.replace(prompt.mark, ""), add_bos=False)
    return with_start(ids, tokenizer)
