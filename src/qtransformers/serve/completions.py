"""/v1/completions."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from qtransformers.sampling.sampler import Logprob
from qtransformers.serve.answers import closing, complete, merged, request_options, started, tell, usage_of
from qtransformers.serve.call import event
from qtransformers.serve.errors import HTTPError
from qtransformers.serve.fields import FINISH, CompletionRequest, decode

if TYPE_CHECKING:
    from qtransformers.generate.asynchronous import AsyncStream
    from qtransformers.load.tokenizer import Tokenizer
    from qtransformers.serve.call import Call
    from qtransformers.serve.models import Entry
    from qtransformers.serve.server import Server

Prompt = str | tuple[int, ...]
USUAL_TOKENS = 16  # of an answer, where nothing is said, as OpenAI's API has it


async def completions(server: Server, call: Call, body: bytes) -> None:
    """Continue texts."""
    ask = decode(body, CompletionRequest)
    prompts = _prompts(ask)
    n = 1 if ask.n is None else ask.n
    async with server.answering(call, ask.model, n * len(prompts)) as entry:
        streams = await server.off_loop(_prepared, call, entry, ask, prompts, n)
        head = {"id": f"cmpl-{call.id[4:]}", "object": "text_completion", "created": int(time.time()), "model": ask.model or entry.spec.name}  # fmt: skip
        async with closing(streams):
            if ask.stream:
                await call.events(_events(entry, ask, streams, head))
            else:
                done = await complete(streams)
                choices = [
                    _choice(i, c.text, FINISH[c.finish_reason or "cancelled"], _logprobs(entry, ask, c.logprobs))
                    for i, c in enumerate(done)
                ]
                await call.json({**head, "choices": choices, "usage": usage_of(done)})
            tell(call, [s.completion for s in streams])


def _prompts(ask: CompletionRequest) -> list[Prompt]:
    """A text, texts, token ids, or lists of them, as a list."""
    given = ask.prompt
    if isinstance(given, str):
        return [given]
    if all(isinstance(part, int) for part in given):
        return [tuple(given)]  # type: ignore[arg-type]
    if any(isinstance(part, int) for part in given):
        raise HTTPError(400, "prompt: numbers and texts are mixed; expected a text, token ids, or a list of either.", "invalid_value", field="prompt")  # fmt: skip
    return [part if isinstance(part, str) else tuple(part) for part in given]  # type: ignore[arg-type]


def _prepared(call: Call, entry: Entry, ask: CompletionRequest, prompts: list[Prompt], n: int) -> list[AsyncStream]:
    options = request_options(call, entry, ask)
    options.setdefault("max_tokens", USUAL_TOKENS)
    if ask.logprobs is not None:
        options["logprobs"] = ask.logprobs
    return [
        stream
        for prompt in prompts
        for stream in started(
            entry, [prompt], n, options,
            add_bos=ask.add_bos if isinstance(prompt, str) else False,
            encode_special=ask.encode_special and isinstance(prompt, str),
        )
    ]  # fmt: skip


async def _events(
    entry: Entry, ask: CompletionRequest, streams: list[AsyncStream], head: dict[str, Any]
) -> AsyncIterator[bytes]:
    async for i, chunk in merged(streams):
        finish = FINISH[chunk.finish_reason] if chunk.finish_reason else None
        yield event({**head, "choices": [_choice(i, chunk.text, finish, _logprobs(entry, ask, chunk.logprobs))]})
    if ask.stream_options and ask.stream_options.include_usage:
        yield event({**head, "choices": [], "usage": usage_of(s.completion for s in streams)})
    yield b"data: [DONE]\n\n"


def _choice(i: int, text: str, finish: str | None, logprobs: Any) -> dict[str, Any]:
    return {"index": i, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _logprobs(entry: Entry, ask: CompletionRequest, found: tuple[Logprob, ...]) -> dict[str, Any] | None:
    return None if ask.logprobs is None else text_logprobs(entry.loaded.tokenizer, found)


def text_logprobs(tokenizer: Tokenizer, found: tuple[Logprob, ...], offset: int = 0) -> dict[str, Any]:
    """Log-probabilities in the shape of completions; offsets are in characters."""
    tokens = [tokenizer.token_bytes(lp.token).decode("utf-8", "replace") for lp in found]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [lp.logprob for lp in found],
        "top_logprobs": [{tokenizer.token_bytes(i).decode("utf-8", "replace"): p for i, p in lp.top} for lp in found],
        "text_offset": offsets,
    }
