"""/v1/responses: OpenAI's newer API. Requests become chats, answers become items and events; nothing is kept between requests."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from qtransformers.checks import shown
from qtransformers.errors import ConfigError
from qtransformers.serve.answers import closing
from qtransformers.serve.call import event
from qtransformers.serve.errors import HTTPError
from qtransformers.serve.fields import ChatRequest, Sampled, check_usual, decode
from qtransformers.serve.tools import Arguments, CallStart, Content, Event, Reasoning
from qtransformers.serve.turns import Turn, complete_turns, said, turns, usage_of_turns

if TYPE_CHECKING:
    from qtransformers.serve.call import Call
    from qtransformers.serve.models import Entry
    from qtransformers.serve.server import Server

Json = dict[str, Any]


class ResponsesRequest(Sampled, kw_only=True, forbid_unknown_fields=True):
    """/v1/responses."""

    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_output_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    cache_salt: str | None = None
    # What needs a memory of earlier requests, or more than a model: refused where it asks for something.
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    background: bool | None = None
    prompt: dict[str, Any] | None = None
    top_logprobs: int | None = None
    truncation: str | None = None
    service_tier: str | None = None
    # Said for the provider's own sake; they change nothing about an answer.
    store: bool | None = None
    include: list[str] | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    client_metadata: dict[str, Any] | None = None


# Field -> the values that ask for nothing
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "previous_response_id": (None,), "conversation": (None,), "background": (None, False), "prompt": (None,),
    "top_logprobs": (None, 0), "truncation": (None, "disabled"),
}  # fmt: skip


async def responses(server: Server, call: Call, body: bytes) -> None:
    """Answer with items."""
    ask = decode(body, ResponsesRequest)
    chat = chat_of(ask)
    async with server.answering(call, ask.model) as entry:
        (turn,) = await server.off_loop(call, turns, call, entry, chat)
        answer = Answer(ask, call.id[4:], ask.model or entry.spec.name)
        async with closing(call, entry, [turn.stream]):
            if ask.stream:
                await call.events(_events(entry, turn, answer))
            else:
                await complete_turns([turn], entry.meters.between)
                for _ in answer.take(turn.events):
                    pass
                for _ in answer.finish(turn.finish_reason, usage_of_turns([turn])):
                    pass
                await call.json(answer.response)


async def _events(entry: Entry, turn: Turn, answer: Answer) -> AsyncIterator[bytes]:
    for value in answer.start():
        yield event(value, value["type"])
    async for _, _, events in said([turn], entry.meters.between):
        for value in answer.take(events):
            yield event(value, value["type"])
    for value in answer.finish(turn.finish_reason, usage_of_turns([turn])):
        yield event(value, value["type"])


def chat_of(ask: ResponsesRequest) -> ChatRequest:
    """The chat that a request means; HTTPError and ConfigError name what cannot be honoured."""
    for name, values in NEUTRAL.items():
        if getattr(ask, name) not in values:
            raise HTTPError(400, f"{name}={shown(getattr(ask, name))}: this server keeps nothing between requests and leaves nothing out of a prompt. Send the whole conversation in input.", "unsupported", field=name)  # fmt: skip
    messages = [{"role": "system", "content": ask.instructions}] if ask.instructions else []
    text = ask.text or {}
    check_usual(verbosity=text.get("verbosity"), service_tier=ask.service_tier)
    return ChatRequest(
        messages=messages + messages_of(ask.input),
        model=ask.model,
        max_tokens=ask.max_output_tokens,
        tools=None if ask.tools is None else [_tool(f"tools[{i}]", tool) for i, tool in enumerate(ask.tools)],
        tool_choice=_choice(ask.tool_choice),
        parallel_tool_calls=ask.parallel_tool_calls,
        response_format=_format(text.get("format")),
        reasoning_effort=(ask.reasoning or {}).get("effort"),
        chat_template_kwargs=ask.chat_template_kwargs,
        cache_salt=ask.cache_salt,
        **{name: getattr(ask, name) for name in Sampled.__struct_fields__},
    )


def messages_of(given: str | list[Json]) -> list[Json]:
    """Input items as messages of a chat: an assistant's thoughts, text and calls in a row are one."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    out: list[Json] = []
    for i, item in enumerate(given):
        kind = item.get("type", "message" if "role" in item else None)
        if kind not in ITEMS:
            raise ConfigError(f"input[{i}].type={shown(kind)}; expected one of {', '.join(ITEMS)}.")
        role, fields = ITEMS[kind](f"input[{i}]", item)
        last = out[-1] if out and out[-1]["role"] == role == "assistant" else None
        if last is None:
            out.append({"role": role, "content": None, **fields} if role == "assistant" else {"role": role, **fields})
        elif "tool_calls" in fields:
            last["tool_calls"] = last.get("tool_calls", []) + fields["tool_calls"]
        elif last.get("tool_calls") or (fields.get("content") and last["content"]):
            out.append({"role": role, "content": None, **fields})
        else:
            last |= fields
    return out


def _message(where: str, item: Json) -> tuple[str, Json]:
    role, content = item.get("role"), item.get("content")
    if not isinstance(role, str):
        raise ConfigError(f"{where}.role={shown(role)}; expected user, assistant, system or developer.")
    return role, {"content": content if isinstance(content, str) else _text(f"{where}.content", content)}


def _call(where: str, item: Json) -> tuple[str, Json]:
    arguments = item.get("arguments") if item["type"] == "function_call" else json.dumps({"input": item.get("input")})
    function = {"name": item.get("name"), "arguments": arguments}
    return "assistant", {"tool_calls": [{"id": item.get("call_id"), "type": "function", "function": function}]}


def _result(where: str, item: Json) -> tuple[str, Json]:
    output = item.get("output")
    text = output if isinstance(output, str) else _text(f"{where}.output", output)
    return "tool", {"tool_call_id": item.get("call_id"), "content": text}


def _thought(where: str, item: Json) -> tuple[str, Json]:
    parts = item.get("content") or item.get("summary") or []
    return "assistant", {"reasoning_content": _text(f"{where}.content", parts) if parts else ""}


ITEMS = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _result,
    "custom_tool_call": _call,
    "custom_tool_call_output": _result,
    "reasoning": _thought,
}
TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text", "refusal")


def _text(where: str, parts: Any) -> str:
    """The texts of content parts."""
    if not isinstance(parts, list):
        raise ConfigError(f"{where}={shown(parts)}; expected text or a list of parts.")
    found = []
    for i, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, Mapping) else None
        if kind not in TEXTS or not isinstance(text, str):
            raise ConfigError(
                f"{where}[{i}] is {shown(kind or part)}; expected {', '.join(TEXTS)}: this model reads text only."
            )
        found.append(text)
    return "\n".join(found)


def _tool(where: str, tool: Json) -> Json:
    """A tool as chats define it. One with an input of any form is a function of one text."""
    kind = tool.get("type")
    if kind == "custom":
        schema = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
        tool = {**tool, "parameters": schema}
    elif kind != "function":
        raise ConfigError(f"{where}.type={shown(kind)}; expected function or custom: this server runs no tools itself.")
    return {"type": "function", "function": {k: tool.get(k) for k in ("name", "description", "parameters", "strict")}}


def _choice(choice: str | Json | None) -> str | Json | None:
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "allowed_tools":
        raise ConfigError("tool_choice: allowed_tools is not supported. Give only these in tools.")
    return {"type": "function", "function": {"name": choice.get("name")}}


def _format(given: Any) -> Json | None:
    if isinstance(given, Mapping) and given.get("type") == "json_schema":
        return {"type": "json_schema", "json_schema": dict(given)}
    return given if given is None or isinstance(given, dict) else {"type": given}


class Answer:
    """A response as it grows. `start`, `take` and `finish` give its events; `response` is what it has come to."""

    def __init__(self, ask: ResponsesRequest, id: str, model: str) -> None:
        self._custom = {t.get("name") for t in ask.tools or () if t.get("type") == "custom"}
        self._number = 0
        self._item: Json | None = None  # under way
        self._text: list[str] = []  # of it
        self.response: Json = {
            "id": f"resp_{id}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "model": model,
            "output": [],
            "error": None,
            "incomplete_details": None,
            "instructions": ask.instructions,
            "max_output_tokens": ask.max_output_tokens,
            "metadata": ask.metadata or {},
            "parallel_tool_calls": ask.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": ask.reasoning or {"effort": None, "summary": None},
            "store": False,
            "temperature": ask.temperature,
            "text": ask.text or {"format": {"type": "text"}},
            "tool_choice": ask.tool_choice or "auto",
            "tools": ask.tools or [],
            "top_p": ask.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": ask.user,
        }

    def start(self) -> Iterator[Json]:
        """The events before the answer."""
        for kind in ("created", "in_progress"):
            yield self._event(f"response.{kind}", response=dict(self.response))

    def take(self, events: list[Event]) -> Iterator[Json]:
        """The events of what was said."""
        for e in events:
            if isinstance(e, CallStart):
                yield from self._end("completed")
                yield from self._begin_call(e)
            elif isinstance(e, Arguments):
                self._text.append(e.text)
                if self._at("function_call"):
                    yield self._event("response.function_call_arguments.delta", delta=e.text, **self._place())
            else:
                yield from self._said(e)

    def finish(self, finish_reason: str, usage: Json) -> Iterator[Json]:
        """The events at its end; `finish_reason` and usage are those of chats."""
        complete = finish_reason in ("stop", "tool_calls")
        yield from self._end("completed" if complete else "incomplete")
        self.response["status"] = "completed" if complete else "incomplete"
        if not complete:
            reason = "content_filter" if finish_reason == "content_filter" else "max_output_tokens"
            self.response["incomplete_details"] = {"reason": reason}
        self.response["usage"] = {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {**usage["prompt_tokens_details"], "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": usage["completion_tokens_details"]["reasoning_tokens"]},
            "total_tokens": usage["total_tokens"],
        }
        yield self._event(f"response.{self.response['status']}", response=self.response)

    def _said(self, e: Content | Reasoning) -> Iterator[Json]:
        kind, part = ("message", "output_text") if isinstance(e, Content) else ("reasoning", "reasoning_text")
        if not self._at(kind):
            yield from self._end("completed")
            item: Json = {
                "id": _id("msg" if kind == "message" else "rs"),
                "type": kind,
                "status": "in_progress",
                "content": [],
            }
            more: Json = {"role": "assistant"} if kind == "message" else {"summary": []}
            yield from self._begin(item | more)
            yield self._event("response.content_part.added", part=_part(part, ""), **self._place(0))
        self._text.append(e.text)
        more = {"logprobs": []} if kind == "message" else {}
        yield self._event(f"response.{part}.delta", delta=e.text, **more, **self._place(0))

    def _begin_call(self, e: CallStart) -> Iterator[Json]:
        custom = e.name in self._custom
        kind, field = ("custom_tool_call", "input") if custom else ("function_call", "arguments")
        item = {
            "id": _id("ctc" if custom else "fc"),
            "type": kind,
            "status": "in_progress",
            "call_id": e.id,
            "name": e.name,
        }
        yield from self._begin(item | {field: ""})

    def _begin(self, item: Json) -> Iterator[Json]:
        self._item, self._text = item, []
        yield self._event("response.output_item.added", output_index=len(self.response["output"]), item=dict(item))

    def _end(self, status: str) -> Iterator[Json]:
        """End the item under way."""
        item, text = self._item, "".join(self._text)
        if item is None:
            return
        if item["type"] == "function_call":
            item["arguments"] = text
            yield self._event(
                "response.function_call_arguments.done", arguments=text, name=item["name"], **self._place()
            )
        elif item["type"] == "custom_tool_call":
            item["input"] = _input(text)
            yield self._event("response.custom_tool_call_input.delta", delta=item["input"], **self._place())
            yield self._event("response.custom_tool_call_input.done", input=item["input"], **self._place())
        else:
            name = "output_text" if item["type"] == "message" else "reasoning_text"
            more: Json = {"logprobs": []} if item["type"] == "message" else {}
            item["content"] = [_part(name, text)]
            yield self._event(f"response.{name}.done", text=text, **more, **self._place(0))
            yield self._event("response.content_part.done", part=_part(name, text), **self._place(0))
        item["status"] = status
        yield self._event("response.output_item.done", output_index=len(self.response["output"]), item=dict(item))
        self.response["output"].append(item)
        self._item = None

    def _at(self, kind: str) -> bool:
        return self._item is not None and self._item["type"] == kind

    def _place(self, content: int | None = None) -> Json:
        assert self._item is not None
        place = {"item_id": self._item["id"], "output_index": len(self.response["output"])}
        return place if content is None else place | {"content_index": content}

    def _event(self, kind: str, **fields: Any) -> Json:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}


def _part(kind: str, text: str) -> Json:
    return {"type": kind, "text": text} | ({"annotations": [], "logprobs": []} if kind == "output_text" else {})


def _id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(16)}"


def _input(arguments: str) -> str:
    """The text in the arguments of a function of one text; the arguments as they are where they were cut off."""
    try:
        found = json.loads(arguments)["input"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return arguments
    return found if isinstance(found, str) else arguments
