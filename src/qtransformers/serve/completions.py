"""/v1/completions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qtransformers.load.start import encode_prompt
from qtransformers.sampling.sampler import Logprob
from qtransformers.serve.answers import closing, complete, merged, request_options, started, usage_of
from qtransformers.serve.call import event
from qtransformers.serve.errors import HTTPError
from qtransformers.serve.fields import FINISH, CompletionRequest, decode, prompts_of

if TYPE_CHECKING:
    from qtransformers.generate.asynchronous import AsyncStream
    from qtransformers.load.tokenizer import Tokenizer
    from qtransformers.serve.call import Call
    from qtransformers.serve.models import Entry
    from qtransformers.serve.server import Server

Json = dict[str, Any]
USUAL_TOKENS = 16  # of an answer, where nothing is said, as OpenAI's API has it
MOST_TOP = 20  # likeliest tokens in each place


@dataclass(frozen=True)
class Echo:
    """A prompt as it is repeated in front of its answers."""

    text: str
    logprobs: Json | None = None

    def before(self, answer: Json | None) -> Json | None:
        """Its log-probabilities and those of an answer, as one."""
        if self.logprobs is None or answer is None:
            return answer
        return {name: self.logprobs[name] + answer[name] for name in answer}


NO_ECHO = Echo("")


async def completions(server: Server, call: Call, body: bytes) -> None:
    """Continue texts."""
    ask = decode(body, CompletionRequest)
    prompts, n = prompts_of(ask.prompt, "prompt"), 1 if ask.n is None else ask.n
    _check(ask, n)
    async with server.answering(call, ask.model, n, len(prompts)) as entry:
        ids = await server.off_loop(call, _encoded, entry, ask, prompts)
        echoes = [await _echo(entry, ask, i) for i in ids] if ask.echo else [NO_ECHO] * len(ids)
        echoes = [echo for echo in echoes for _ in range(n)]
        streams = (
            [] if ask.max_tokens == 0 else await server.off_loop(call, _prepared, call, entry, ask, prompts, ids, n)
        )
        head = {"id": f"cmpl-{call.id[4:]}", "object": "text_completion", "created": int(time.time()), "model": ask.model or entry.spec.name}  # fmt: skip
        if not streams:
            call.told |= {"prompt_tokens": sum(map(len, ids)), "finish": "length"}
        async with closing(call, entry, streams):
            if ask.stream:
                await call.events(_events(entry, ask, streams, head, echoes, ids))
            else:
                done = await complete(streams, entry.meters.between)
                choices = [
                    _choice(i, echo.text + c.text, FINISH[c.finish_reason or "cancelled"], echo.before(_logprobs(entry, ask, c.logprobs, echo)))
                    for i, (c, echo) in enumerate(zip(done, echoes, strict=True))
                ] if streams else [_choice(i, echo.text, "length", echo.logprobs) for i, echo in enumerate(echoes)]  # fmt: skip
                await call.json(
                    {**head, "choices": choices, "usage": usage_of(done, n) if streams else _prompt_usage(ids)}
                )


def _check(ask: CompletionRequest, n: int) -> None:
    """HTTPError for what cannot be honoured."""
    if ask.suffix:
        raise HTTPError(400, "suffix: answers go on at the end of a prompt only. Leave it out.", "unsupported", field="suffix")  # fmt: skip
    if ask.best_of not in (None, n):
        raise HTTPError(400, f"best_of: {ask.best_of} answers of which {n} would be kept; expected as many as n. Leave it out.", "unsupported", field="best_of")  # fmt: skip
    if not 0 <= (ask.logprobs or 0) <= MOST_TOP:
        raise HTTPError(400, f"logprobs: {ask.logprobs:,}; expected 0 to {MOST_TOP}.", "invalid_value", field="logprobs")  # fmt: skip
    if ask.max_tokens == 0 and not ask.echo:
        raise HTTPError(400, "max_tokens: 0 without echo asks for nothing. Ask for at least 1.", "invalid_value", field="max_tokens")  # fmt: skip


def _encoded(entry: Entry, ask: CompletionRequest, prompts: list[str | tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The prompts as token ids."""
    tokenizer = entry.loaded.tokenizer
    for prompt in prompts:
        if isinstance(prompt, str):
            entry.check_length("prompt", prompt)
    return [
        tuple(encode_prompt(p, tokenizer, ask.add_bos, ask.encode_special)) if isinstance(p, str) else p
        for p in prompts
    ]


async def _echo(entry: Entry, ask: CompletionRequest, ids: tuple[int, ...]) -> Echo:
    """A prompt's text, and its log-probabilities where they are asked for; a forward at a time, which others take turns with."""
    model = entry.loaded
    scores = model.score(ids, top=ask.logprobs or 0)  # checks the ids
    text = model.tokenizer.decode(ids, decode_special=True)
    if ask.logprobs is None:
        return Echo(text)
    found: list[Logprob] = []
    async with entry.scoring:  # two at a time would each hold half of the pages
        while (part := await asyncio.to_thread(next, scores, None)) is not None:
            found += part
    first, *_ = texts_of(model.tokenizer, ids[:1])
    rest = text_logprobs(model.tokenizer, found, len(first))
    begin: Json = {"tokens": [first], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [0]}
    return Echo(text, {name: begin[name] + rest[name] for name in begin})


def _prepared(
    call: Call, entry: Entry, ask: CompletionRequest, prompts: list[str | tuple[int, ...]], ids: list[tuple[int, ...]], n: int
) -> list[AsyncStream]:  # fmt: skip
    options = request_options(call, entry, ask)
    options.setdefault("max_tokens", USUAL_TOKENS)
    for name in ("logprobs", "json_schema"):
        if getattr(ask, name) is not None:
            options[name] = getattr(ask, name)
    if ask.heal:
        options["heal"] = True
    return [
        stream
        for prompt, its in zip(prompts, ids, strict=True)
        for stream in started(entry, [its], n, options, add_bos=False, continues=prompt != "")
    ]


async def _events(
    entry: Entry, ask: CompletionRequest, streams: list[AsyncStream], head: Json, echoes: list[Echo], ids: Sequence[tuple[int, ...]]
) -> AsyncIterator[bytes]:  # fmt: skip
    offsets = [len(echo.text) for echo in echoes]
    for i, echo in enumerate(echoes):
        if echo.text:
            yield event({**head, "choices": [_choice(i, echo.text, None if streams else "length", echo.logprobs)]})
    async for i, chunk in merged(streams, entry.meters.between):
        finish = FINISH[chunk.finish_reason] if chunk.finish_reason else None
        logprobs = None if ask.logprobs is None else text_logprobs(entry.loaded.tokenizer, chunk.logprobs, offsets[i])
        offsets[i] += sum(map(len, logprobs["tokens"])) if logprobs else 0
        yield event({**head, "choices": [_choice(i, chunk.text, finish, logprobs)]})
    if ask.stream_options and ask.stream_options.include_usage:
        yield event({**head, "choices": [], "usage": usage_of((s.completion for s in streams), len(streams) // len(ids)) if streams else _prompt_usage(ids)})  # fmt: skip
    yield b"data: [DONE]\n\n"


def _choice(i: int, text: str, finish: str | None, logprobs: Any) -> Json:
    return {"index": i, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _prompt_usage(ids: Sequence[tuple[int, ...]]) -> Json:
    n = sum(map(len, ids))
    return {"prompt_tokens": n, "completion_tokens": 0, "total_tokens": n}


def _logprobs(entry: Entry, ask: CompletionRequest, found: tuple[Logprob, ...], echo: Echo) -> Json | None:
    return None if ask.logprobs is None else text_logprobs(entry.loaded.tokenizer, found, len(echo.text))


def texts_of(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token by itself."""
    return [tokenizer.token_bytes(i).decode("utf-8", "replace") for i in ids]


def text_logprobs(tokenizer: Tokenizer, found: Sequence[Logprob], offset: int = 0) -> Json:
    """Log-probabilities in the shape of completions; offsets are in characters."""
    tokens, offsets = texts_of(tokenizer, [lp.token for lp in found]), []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [lp.logprob for lp in found],
        "top_logprobs": [
            {text: p for text, (_, p) in zip(texts_of(tokenizer, [i for i, _ in lp.top]), lp.top, strict=True)}
            for lp in found
        ],
        "text_offset": offsets,
    }
