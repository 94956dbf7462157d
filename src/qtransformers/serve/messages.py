"""/v1/messages and /v1/messages/count_tokens: Anthropic's API. Requests become chats, answers become blocks and events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from qtransformers.checks import shown
from qtransformers.errors import ConfigError
from qtransformers.serve.answers import closing
from qtransformers.serve.call import event
from qtransformers.serve.errors import HTTPError
from qtransformers.serve.fields import ChatRequest, check_usual, decode
from qtransformers.serve.tools import Arguments, CallStart, Content, Event, Reasoning
from qtransformers.serve.turns import Turn, complete_turns, prompt_of, said, turns, usage_of_turns

if TYPE_CHECKING:
    from qtransformers.generate import Completion
    from qtransformers.serve.call import Call
    from qtransformers.serve.models import Entry
    from qtransformers.serve.server import Server

Json = dict[str, Any]
PING = event({"type": "ping"}, "ping")


class CountRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """/v1/messages/count_tokens."""

    messages: list[dict[str, Any]]
    model: str | None = None
    system: str | list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    # Said for the provider's own sake; they change nothing about an answer.
    cache_control: dict[str, Any] | None = None
    context_management: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    speed: str | None = None
    user_profile_id: str | None = None
    workspace_id: str | None = None


class MessagesRequest(CountRequest, kw_only=True, forbid_unknown_fields=True):
    """/v1/messages."""

    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    inference_geo: str | None = None
    diagnostics: dict[str, Any] | None = None


async def messages(server: Server, call: Call, body: bytes) -> None:
    """Answer with blocks."""
    ask = decode(body, MessagesRequest)
    chat = chat_of(ask)
    async with server.answering(call, ask.model) as entry:
        (turn,) = await server.off_loop(call, turns, call, entry, chat)
        answer = Answer(call.id[4:], ask.model or entry.spec.name, turn.completion.prompt_tokens)
        async with closing(call, entry, [turn.stream]):
            if ask.stream:
                await call.events(_events(entry, ask, turn, answer), PING)
            else:
                await complete_turns([turn], entry.meters.between)
                for _ in answer.take(turn.events):
                    pass
                for _ in answer.finish(
                    turn.finish_reason, usage_of_turns([turn]), _stopped_by(entry, ask, turn.completion)
                ):
                    pass
                await call.json(answer.message)


async def count_tokens(server: Server, call: Call, body: bytes) -> None:
    """How many tokens the prompt of a request has."""
    ask = decode(body, CountRequest)
    chat = chat_of(ask)
    async with server.answering(call, ask.model) as entry:
        ids, _, _ = await server.off_loop(call, prompt_of, call, entry, chat)
        await call.json({"input_tokens": len(ids)})


async def _events(entry: Entry, ask: MessagesRequest, turn: Turn, answer: Answer) -> AsyncIterator[bytes]:
    yield event({"type": "message_start", "message": answer.message}, "message_start")
    async for _, _, events in said([turn], entry.meters.between):
        for value in answer.take(events):
            yield event(value, value["type"])
    for value in answer.finish(turn.finish_reason, usage_of_turns([turn]), _stopped_by(entry, ask, turn.completion)):
        yield event(value, value["type"])


def _stopped_by(entry: Entry, ask: MessagesRequest, done: Completion) -> str | None:
    """Which of the request's texts ended an answer: its tokens still hold it."""
    if done.finish_reason != "stop" or not ask.stop_sequences:
        return None
    rest = entry.loaded.tokenizer.decode(done.tokens, True, continues=True)
    ends = [(rest.rfind(stop), -len(stop), stop) for stop in ask.stop_sequences if stop in rest]
    return min(ends)[2] if ends else None


def chat_of(ask: CountRequest) -> ChatRequest:
    """The chat that a request means; HTTPError and ConfigError name what cannot be honoured."""
    out: list[Json] = []
    if ask.system:
        out.append(
            {"role": "system", "content": ask.system if isinstance(ask.system, str) else _joined("system", ask.system)}
        )
    for i, message in enumerate(ask.messages):
        out += messages_of(f"messages[{i}]", message)
    if out and out[-1]["role"] == "assistant":
        raise HTTPError(400, "messages: the last is the assistant's, and this server begins answers anew. End with the user's.", "unsupported", field="messages")  # fmt: skip
    choice, several = _choice(ask.tool_choice)
    chat = ChatRequest(
        messages=out,
        model=ask.model,
        tools=None if ask.tools is None else [_tool(f"tools[{i}]", tool) for i, tool in enumerate(ask.tools)],
        tool_choice=choice,
        parallel_tool_calls=several,
        chat_template_kwargs=_thinking(ask.thinking),
    )
    if isinstance(ask, MessagesRequest):
        check_usual(service_tier=ask.service_tier)
        chat.max_tokens, chat.stop = ask.max_tokens, ask.stop_sequences
        chat.temperature, chat.top_k, chat.top_p = ask.temperature, ask.top_k, ask.top_p
        chat.response_format = _format(ask.output_config)
    return chat


def messages_of(where: str, message: Json) -> list[Json]:
    """A message as messages of a chat: results of tools are messages of their own."""
    role, content = message.get("role"), message.get("content")
    if role not in ("user", "assistant", "system"):
        raise ConfigError(f"{where}.role={shown(role)}; expected user or assistant.")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    if not isinstance(content, list):
        raise ConfigError(f"{where}.content={shown(content)}; expected text or a list of blocks.")
    out: list[Json] = []
    texts: list[str] = []
    calls: list[Json] = []
    thoughts: list[str] = []
    for i, block in enumerate(content):
        place, kind = f"{where}.content[{i}]", block.get("type") if isinstance(block, Mapping) else None
        if kind == "tool_result":
            if texts:
                out.append({"role": role, "content": "\n".join(texts)})
                texts = []
            given = block.get("content")
            text = given if isinstance(given, str) else _joined(f"{place}.content", given or [])
            out.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text})
        elif kind == "tool_use":
            function = {"name": block.get("name"), "arguments": block.get("input") or {}}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "thinking":
            thoughts.append(str(block.get("thinking", "")))
        elif kind != "redacted_thinking":
            texts.append(_text(place, block))
    if role == "assistant":
        more: Json = {"tool_calls": calls} if calls else {}
        more |= {"reasoning_content": "\n".join(thoughts)} if thoughts else {}
        return [{"role": role, "content": "\n".join(texts) if texts or not calls else None, **more}]
    if texts or not out:
        out.append({"role": role, "content": "\n".join(texts)})
    return out


def _joined(where: str, blocks: list[Any]) -> str:
    """The texts of blocks."""
    return "\n".join(_text(f"{where}[{i}]", block) for i, block in enumerate(blocks))


def _text(where: str, block: Any) -> str:
    kind = block.get("type") if isinstance(block, Mapping) else None
    text = block.get("text") if kind == "text" else None
    if kind == "document" and isinstance(block.get("source"), Mapping) and block["source"].get("type") == "text":
        text = block["source"].get("data")
    if not isinstance(text, str):
        raise ConfigError(f"{where} is {shown(kind or block)}; expected text: this model reads nothing else.")
    return text


def _tool(where: str, tool: Json) -> Json:
    if tool.get("type") not in (None, "custom"):
        raise ConfigError(f"{where}.type={shown(tool['type'])}; expected custom: this server runs no tools itself.")
    names = (("name", "name"), ("description", "description"), ("parameters", "input_schema"), ("strict", "strict"))
    return {"type": "function", "function": {ours: tool.get(theirs) for ours, theirs in names}}


def _choice(choice: Json | None) -> tuple[str | Json | None, bool]:
    if choice is None:
        return None, True
    kinds: Json = {
        "auto": "auto",
        "any": "required",
        "none": "none",
        "tool": {"function": {"name": choice.get("name")}},
    }
    kind = choice.get("type")
    if kind not in kinds:
        raise ConfigError(f"tool_choice.type={shown(kind)}; expected {', '.join(kinds)}.")
    return kinds[kind], not choice.get("disable_parallel_tool_use", False)


def _thinking(thinking: Json | None) -> Json | None:
    if thinking is None:
        return None
    kind = thinking.get("type")
    if kind not in ("enabled", "adaptive", "disabled"):
        raise ConfigError(f"thinking.type={shown(kind)}; expected enabled, adaptive or disabled.")
    return {"enable_thinking": kind != "disabled"}


def _format(config: Json | None) -> Json | None:
    given = (config or {}).get("format")
    if not isinstance(given, Mapping):
        return None
    return {"type": given.get("type"), "json_schema": {"name": "answer", "schema": given.get("schema")}}


STOPS = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens", "content_filter": "refusal"}


class Answer:
    """A message as it grows. `take` and `finish` give its events; `message` is what it has come to."""

    def __init__(self, id: str, model: str, prompt_tokens: int) -> None:
        self.message: Json = {
            "id": f"msg_{id}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": prompt_tokens, "output_tokens": 0, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0},
        }  # fmt: skip
        self._kind: type[Event] | None = None  # of the block under way
        self._parts: list[str] = []

    def take(self, events: list[Event]) -> Iterator[Json]:
        """The events of what was said."""
        for e in events:
            if isinstance(e, CallStart):
                block: Json = {"type": "tool_use", "id": e.id, "name": e.name, "input": {}}
                yield from self._begin(Arguments, block)
                continue
            if type(e) is not self._kind and isinstance(e, (Content, Reasoning)):
                text, thought = {"type": "text", "text": ""}, {"type": "thinking", "thinking": "", "signature": ""}
                yield from self._begin(type(e), text if isinstance(e, Content) else thought)
            self._parts.append(e.text)
            kind, field = DELTAS[type(e)]
            delta = {"type": kind, field: e.text}
            yield {"type": "content_block_delta", "index": len(self.message["content"]) - 1, "delta": delta}

    def finish(self, finish_reason: str, usage: Json, stop_sequence: str | None) -> Iterator[Json]:
        """The events at its end; `finish_reason` and usage are those of chats."""
        yield from self._end()
        reason = "stop_sequence" if stop_sequence is not None and finish_reason == "stop" else STOPS[finish_reason]
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        self.message |= {"stop_reason": reason, "stop_sequence": stop_sequence}
        self.message["usage"] = {
            "input_tokens": usage["prompt_tokens"] - cached,
            "output_tokens": usage["completion_tokens"],
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
        }
        delta = {"stop_reason": reason, "stop_sequence": stop_sequence}
        yield {"type": "message_delta", "delta": delta, "usage": self.message["usage"]}
        yield {"type": "message_stop"}

    def _begin(self, kind: type[Event], block: Json) -> Iterator[Json]:
        yield from self._end()
        self._kind, self._parts = kind, []
        self.message["content"].append(dict(block))
        yield {"type": "content_block_start", "index": len(self.message["content"]) - 1, "content_block": block}

    def _end(self) -> Iterator[Json]:
        if self._kind is None:
            return
        block, text = self.message["content"][-1], "".join(self._parts)
        if self._kind is Arguments:
            block["input"] = _input(text)
        else:
            block["text" if self._kind is Content else "thinking"] = text
        self._kind = None
        yield {"type": "content_block_stop", "index": len(self.message["content"]) - 1}


DELTAS: dict[type[Event], tuple[str, str]] = {
    Content: ("text_delta", "text"), Reasoning: ("thinking_delta", "thinking"), Arguments: ("input_json_delta", "partial_json")
}  # fmt: skip


def _input(arguments: str) -> Json:
    """Arguments as an object; text that is none, such as one that was cut off, as it is."""
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"arguments": arguments}
