"""/v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from qtransformers.sampling.sampler import Logprob
from qtransformers.serve.answers import closing
from qtransformers.serve.call import event
from qtransformers.serve.fields import ChatRequest, check_usual, decode
from qtransformers.serve.tools import CallStart, Content, Event, Reasoning, collect
from qtransformers.serve.turns import Turn, complete_turns, said, turns, usage_of_turns

if TYPE_CHECKING:
    from qtransformers.load.tokenizer import Tokenizer
    from qtransformers.serve.call import Call
    from qtransformers.serve.models import Entry
    from qtransformers.serve.server import Server


async def chat_completions(server: Server, call: Call, body: bytes) -> None:
    """Answer messages."""
    ask = decode(body, ChatRequest)
    check_usual(verbosity=ask.verbosity, service_tier=ask.service_tier)
    async with server.answering(call, ask.model, 1 if ask.n is None else ask.n) as entry:
        found = await server.off_loop(call, turns, call, entry, ask)
        head = {"id": f"chatcmpl-{call.id[4:]}", "created": int(time.time()), "model": ask.model or entry.spec.name}
        async with closing(call, entry, [turn.stream for turn in found]):
            if ask.stream:
                await call.events(_events(entry, ask, found, head))
            else:
                await complete_turns(found, entry.meters.between)
                choices = [
                    {
                        "index": i,
                        "message": message_of(turn),
                        "logprobs": _logprobs(entry, ask, turn.completion.logprobs),
                        "finish_reason": turn.finish_reason,
                    }
                    for i, turn in enumerate(found)
                ]
                usage = usage_of_turns(found)
                await call.json({**head, "object": "chat.completion", "choices": choices, "usage": usage})


def message_of(turn: Turn) -> dict[str, Any]:
    """A whole answer as a message."""
    said = collect(turn.events)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": said.content or (None if said.calls else ""),
        "refusal": None,
    }
    if said.reasoning:
        message |= {"reasoning": said.reasoning, "reasoning_content": said.reasoning}
    if said.calls:
        message["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in said.calls
        ]
    return message


async def _events(entry: Entry, ask: ChatRequest, found: list[Turn], head: dict[str, Any]) -> AsyncIterator[bytes]:
    head["object"] = "chat.completion.chunk"
    for i in range(len(found)):
        yield event({**head, "choices": [_choice(i, {"role": "assistant", "content": ""})]})
    async for i, chunk, events in said(found, entry.meters.between):
        logprobs = _logprobs(entry, ask, chunk.logprobs)
        deltas = [_delta(e) for e in events] or ([{"content": ""}] if logprobs and chunk.logprobs else [])
        for delta in deltas:
            yield event({**head, "choices": [_choice(i, delta, logprobs)]})
            logprobs = None  # once
        if chunk.finish_reason:
            yield event({**head, "choices": [_choice(i, {}, None, found[i].finish_reason)]})
    if ask.stream_options and ask.stream_options.include_usage:
        yield event({**head, "choices": [], "usage": usage_of_turns(found)})
    yield b"data: [DONE]\n\n"


def _delta(said: Event) -> dict[str, Any]:
    if isinstance(said, Content):
        return {"content": said.text}
    if isinstance(said, Reasoning):
        return {"reasoning": said.text, "reasoning_content": said.text}
    if isinstance(said, CallStart):
        function = {"name": said.name, "arguments": ""}
        return {"tool_calls": [{"index": said.index, "id": said.id, "type": "function", "function": function}]}
    return {"tool_calls": [{"index": said.index, "function": {"arguments": said.text}}]}


def _logprobs(entry: Entry, ask: ChatRequest, found: tuple[Logprob, ...]) -> dict[str, Any] | None:
    return chat_logprobs(entry.loaded.tokenizer, found) if ask.logprobs else None


def _choice(i: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
    return {"index": i, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def chat_logprobs(tokenizer: Tokenizer, found: tuple[Logprob, ...]) -> dict[str, Any]:
    """Log-probabilities in the shape of chats."""
    return {
        "content": [
            {**_token(tokenizer, lp.token, lp.logprob), "top_logprobs": [_token(tokenizer, *top) for top in lp.top]}
            for lp in found
        ],
        "refusal": None,
    }


def _token(tokenizer: Tokenizer, id: int, logprob: float) -> dict[str, Any]:
    data = tokenizer.token_bytes(id)
    return {"token": data.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(data)}
