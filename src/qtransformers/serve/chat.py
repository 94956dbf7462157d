"""/v1/chat/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from qtransformers.generate.requests import texts
from qtransformers.sampling.sampler import Logprob
from qtransformers.serve.answers import closing, complete, merged, request_options, started, usage_of
from qtransformers.serve.call import event
from qtransformers.serve.errors import HTTPError
from qtransformers.serve.fields import FINISH, ChatRequest, decode

if TYPE_CHECKING:
    from qtransformers.generate.asynchronous import AsyncStream
    from qtransformers.load.tokenizer import Tokenizer
    from qtransformers.serve.call import Call
    from qtransformers.serve.models import Entry
    from qtransformers.serve.server import Server

MOST_TOP = 20  # as OpenAI's API has it


async def chat_completions(server: Server, call: Call, body: bytes) -> None:
    """Answer messages."""
    ask = decode(body, ChatRequest)
    async with server.answering(call, ask.model, 1 if ask.n is None else ask.n) as entry:
        streams = await server.off_loop(prepared, call, entry, ask)
        head = {"id": f"chatcmpl-{call.id[4:]}", "created": int(time.time()), "model": ask.model or entry.spec.name}
        async with closing(call, entry, streams):
            if ask.stream:
                await call.events(_events(call, entry, ask, streams, head))
            else:
                done = await complete(streams, entry.meters.between)
                choices = [
                    {
                        "index": i,
                        "message": {"role": "assistant", "content": c.text, "refusal": None},
                        "logprobs": chat_logprobs(entry.loaded.tokenizer, c.logprobs) if ask.logprobs else None,
                        "finish_reason": FINISH[c.finish_reason or "cancelled"],
                    }
                    for i, c in enumerate(done)
                ]
                await call.json({**head, "object": "chat.completion", "choices": choices, "usage": usage_of(done)})


def prepared(call: Call, entry: Entry, ask: ChatRequest) -> list[AsyncStream]:
    """The answers to a chat, ready to begin."""
    options = request_options(call, entry, ask)
    if ask.max_completion_tokens is not None:
        options["max_tokens"] = ask.max_completion_tokens
    if ask.logprobs:
        options["logprobs"] = ask.top_logprobs or 0
    elif ask.top_logprobs:
        raise HTTPError(400, f"top_logprobs: {ask.top_logprobs} without logprobs. Say logprobs=true.", "invalid_value", field="top_logprobs")  # fmt: skip
    if not 0 <= (ask.top_logprobs or 0) <= MOST_TOP:
        raise HTTPError(400, f"top_logprobs: {ask.top_logprobs:,}; expected 0 to {MOST_TOP}.", "invalid_value", field="top_logprobs")  # fmt: skip
    model = entry.loaded
    ids = model.chat_ids(
        ask.messages, tools=ask.tools, documents=ask.documents, template_variables=ask.chat_template_kwargs
    )
    options["stop"] = (*model.chat_template.format.stop, *texts("stop", ask.stop))
    return started(entry, [ids], ask.n or 1, options, add_bos=False, continues=False)


async def _events(
    call: Call, entry: Entry, ask: ChatRequest, streams: list[AsyncStream], head: dict[str, Any]
) -> AsyncIterator[bytes]:
    head["object"] = "chat.completion.chunk"
    for i in range(len(streams)):
        yield event({**head, "choices": [_choice(i, {"role": "assistant", "content": ""})]})
    async for i, chunk in merged(streams, entry.meters.between):
        logprobs = chat_logprobs(entry.loaded.tokenizer, chunk.logprobs) if ask.logprobs else None
        if chunk.text or logprobs:
            yield event({**head, "choices": [_choice(i, {"content": chunk.text}, logprobs)]})
        if chunk.finish_reason:
            yield event({**head, "choices": [_choice(i, {}, None, FINISH[chunk.finish_reason])]})
    if ask.stream_options and ask.stream_options.include_usage:
        yield event({**head, "choices": [], "usage": usage_of(s.completion for s in streams)})
    yield b"data: [DONE]\n\n"


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
