"""What a chat template is given, so that a request with tools, calls and results comes out as its model knows it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qtransformers.checks import shown
from qtransformers.errors import ConfigError
from qtransformers.serve.tools.answer import NAME
from qtransformers.serve.tools.written import JSON, PYTHON, QUOTE, QUOTED, Parameter, Written

if TYPE_CHECKING:
    from qtransformers.serve.tools.families import Syntax

Messages = list[dict[str, Any]]
_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
_EXAMPLE: Mapping[str, str] = {
    JSON: '{"argument": "value"}',
    PYTHON: 'argument="value"',
    QUOTED: f"argument:{QUOTE}value{QUOTE}",
}


def checked_tools(tools: Any) -> list[dict[str, Any]]:
    """OpenAI's tool definitions; ConfigError naming the field of what is none."""
    if tools is None:
        return []
    if not isinstance(tools, (list, tuple)):
        raise ConfigError(f"tools={shown(tools)}; expected a list of tools.")
    return [_checked(f"tools[{i}]", tool) for i, tool in enumerate(tools)]


def _checked(where: str, tool: Any) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(tool, Mapping) or tool.get("type", "function") != "function" or not isinstance(function, Mapping):
        raise ConfigError(f'{where}={shown(tool)}; expected {{"type": "function", "function": {{"name": ...}}}}.')
    if not isinstance(function.get("name"), str) or not NAME.fullmatch(function["name"]):
        raise ConfigError(
            f"{where}.function.name={shown(function.get('name'))}; expected 1 to 256 letters, digits, `_-.:/`."
        )
    for field, kind in (("parameters", Mapping), ("description", str), ("strict", bool)):
        if function.get(field) is not None and not isinstance(function[field], kind):
            raise ConfigError(f"{where}.function.{field}={shown(function[field])}; expected {'an object' if kind is Mapping else kind.__name__}.")  # fmt: skip
    given = {k: v for k, v in function.items() if v is not None}
    return {
        "type": "function",
        "function": {**given, "description": given.get("description", "")},
    }  # templates want one


def for_template(
    messages: Sequence[Mapping[str, Any]], tools: list[dict[str, Any]], syntax: Syntax
) -> tuple[Messages, list[dict[str, Any]] | None]:
    """Messages and tools as the template takes them. What is no message stays as it is: the template's checks name it."""
    found: Messages = [dict(m) if isinstance(m, Mapping) else m for m in messages]
    names: dict[str, str] = {}
    for message in found:
        if isinstance(message, dict):
            _with_thoughts(message, syntax)
            _with_names(message, names, syntax.family.short_ids)
    if not syntax.knows_tools:
        return _told(found, tools, syntax), None
    if not syntax.knows_calls and syntax.family.written:
        found = [_as_text(message, syntax.family.written) for message in found]
    if tools and syntax.family.tools_in_system:
        found = _with_system(found, "", inside_user=False)
        found[0]["tools"] = json.dumps(tools, ensure_ascii=False)
    return found, tools or None


def _with_thoughts(message: dict[str, Any], syntax: Syntax) -> None:
    """Thoughts under the names by which templates know them."""
    said = message.pop("reasoning", None)
    if isinstance(said, str) and said and not message.get("reasoning_content"):
        message["reasoning_content"] = said
    if syntax.family.name == "gpt-oss" and message.get("tool_calls") and not message.get("content"):
        message["thinking"] = message.get("reasoning_content", "")


def _with_names(message: dict[str, Any], names: dict[str, str], short: bool) -> None:
    """Results with the names of what was called, and ids that the template takes."""
    calls = message.get("tool_calls")
    if not calls:
        message.pop("tool_calls", None)  # templates ask whether there are any, not how many
    elif isinstance(calls, list):
        message["tool_calls"] = calls = [dict(c) if isinstance(c, Mapping) else c for c in calls]
        for call in calls:
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, Mapping) and isinstance(call.get("id"), str):
                names[call["id"]] = function.get("name", "")
                call["id"] = _short(call["id"]) if short else call["id"]
    id = message.get("tool_call_id")
    if isinstance(id, str):
        if names.get(id) and not message.get("name"):
            message["name"] = names[id]
        message["tool_call_id"] = _short(id) if short else id


def _short(id: str) -> str:
    return id if _SHORT_ID.fullmatch(id) else hashlib.sha256(id.encode("utf-8", "replace")).hexdigest()[:9]


def _told(messages: Messages, tools: list[dict[str, Any]], syntax: Syntax) -> Messages:
    """For templates that know no tools: they are told in the system's text, calls are text, results come from the user."""
    out: Messages = []
    written = syntax.family.written
    for message in messages:
        if not isinstance(message, dict) or written is None:
            out.append(message)
        elif message.get("role") == "tool":
            text = f"<tool_response>\n{_text(message.get('content'))}\n</tool_response>"
            if out and isinstance(out[-1], dict) and out[-1].get("result"):
                out[-1]["content"] += "\n" + text
            else:
                out.append({"role": "user", "content": text, "result": True})
        else:
            out.append(_as_text(message, written))
    for message in out:
        if isinstance(message, dict):
            message.pop("result", None)
    return _with_system(out, _told_tools(tools, written), syntax.no_system) if tools and written else out


def _as_text(message: dict[str, Any], written: Written) -> dict[str, Any]:
    """A message with its calls in its text."""
    if not isinstance(message, dict) or not isinstance(message.get("tool_calls"), list):
        return message
    said = [_text(message.get("content")), _calls(written, message["tool_calls"])]
    return {"role": message.get("role"), "content": "\n".join(filter(None, said))}


def _told_tools(tools: list[dict[str, Any]], written: Written) -> str:
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    form = written.arguments
    arguments = _EXAMPLE[form] if isinstance(form, str) else _parameters(form, {"argument": "value"})
    example = _filled(written, "function_name", arguments, 0)
    return (
        "You may call these functions, each described by a line of JSON:\n"
        f"{listed}\n"
        "To call one, write exactly this, with its name and arguments, and nothing after it:\n"
        f"{written.start}{example}{written.finish}\n"
        "Results come back between <tool_response> and </tool_response>. Call a function only where it is needed."
    )


def _calls(written: Written, calls: Sequence[Any]) -> str:
    """Calls as the family writes them."""
    texts = []
    for i, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            raise ConfigError(
                f'tool_calls[{i}]={shown(call)}; expected {{"function": {{"name": ..., "arguments": ...}}}}.'
            )
        given = function.get("arguments") or {}
        try:
            arguments = json.loads(given) if isinstance(given, str) else given
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, Mapping):
            raise ConfigError(f"tool_calls[{i}].function.arguments={shown(given)}; expected a JSON object.")
        if isinstance(written.arguments, str):
            pairs = (f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in arguments.items())
            text = ", ".join(pairs) if written.arguments == PYTHON else json.dumps(arguments, ensure_ascii=False)
            text = text[1:-1] if written.arguments == QUOTED else text
        else:
            text = _parameters(written.arguments, arguments)
        texts.append(_filled(written, str(function.get("name")), text, i))
    return written.start + written.between.join(texts) + written.finish


def _parameters(p: Parameter, arguments: Mapping[str, Any]) -> str:
    return "".join(
        f"{p.before}{k}{p.between.replace('?', 'true' if isinstance(v, str) else 'false')}"
        f"{v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)}{p.after}"
        for k, v in arguments.items()
    )


def _filled(written: Written, name: str, arguments: str, i: int) -> str:
    holes = {"@": name, "#": arguments, "%": str(i)}
    return re.sub("[@#%]", lambda m: holes[m[0]], written.call)


def _with_system(messages: Messages, text: str, inside_user: bool) -> Messages:
    """The messages with `text` at the end of the system's, or before the first of the user's where there is no place for it."""
    first = messages[0] if messages and isinstance(messages[0], dict) else {}
    if first.get("role") in ("system", "developer"):
        first["content"] = "\n\n".join(filter(None, [_text(first.get("content")), text]))
    elif not inside_user:
        return [{"role": "system", "content": text}, *messages]
    elif first.get("role") == "user":
        first["content"] = f"{text}\n\n{_text(first.get('content'))}"
    return messages


def _text(content: Any) -> str:
    """The text of a message's content."""
    if isinstance(content, list):
        return "\n".join(str(p.get("text", "")) for p in content if isinstance(p, Mapping))
    return content if isinstance(content, str) else ""
