"""Answers as they are asked for, side by side, and what all APIs say of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from qtransformers.checks import whole
from qtransformers.generate import Completion
from qtransformers.generate.sequence import Chunk
from qtransformers.serve.errors import HTTPError

if TYPE_CHECKING:
    from qtransformers.generate.asynchronous import AsyncStream
    from qtransformers.serve.call import Call
    from qtransformers.serve.fields import Generates
    from qtransformers.serve.models import Entry

SEEDS = 2**64  # from 0


def request_options(call: Call, entry: Entry, ask: Generates) -> dict[str, Any]:
    """`Options` of a request; HTTPError for what this server does not allow."""
    options = ask.options()
    most = call.config.max_answer
    if most is not None and (options.get("max_tokens") or 0) > most:
        raise HTTPError(400, f"max_tokens: {options['max_tokens']:,} are asked for; this server gives at most {most:,} (--max-answer).", "invalid_value", field="max_tokens")  # fmt: skip
    named = [(call.adapter, 1.0)] if call.adapter else []
    if ask.lora is not None:
        named = [(lora.name, lora.scale) for lora in ask.lora]
    for name, _ in named:
        if name not in entry.adapters:
            known = ", ".join(entry.adapters) or "none"
            raise HTTPError(400, f"lora: {name[:100]!r} is no adapter of {entry.spec.name}; there are: {known} (--lora).", "invalid_value", field="lora")  # fmt: skip
    if named:
        options["lora"] = [(entry.adapters[name], scale) for name, scale in named]
    # Whether a prompt is in the cache shows in how long it takes: nobody may ask that of another's.
    options["salt"] = f"{len(call.key)}:{call.key}:{ask.cache_salt or ''}"
    return options


def started(
    entry: Entry, prompts: Iterable[str | tuple[int, ...]], n: int, options: dict[str, Any], **how: Any
) -> list[AsyncStream]:
    """`n` streams for each prompt, in their order; of a seed each takes its own."""
    seed = options.get("seed")
    if seed is not None:
        whole("seed", seed, 0, SEEDS - 1)
    return [
        entry.loaded.astream(prompt, **how, **(options if seed is None else options | {"seed": (seed + i) % SEEDS}))
        for prompt in prompts
        for i in range(n)
    ]


@asynccontextmanager
async def closing(call: Call, entry: Entry, streams: list[AsyncStream]) -> AsyncIterator[list[AsyncStream]]:
    """The streams, which end with the block, complete or not; then log and metrics are told."""
    try:
        yield streams
    finally:
        for stream in streams:
            await stream.aclose()
        done = [stream.completion for stream in streams]
        entry.meters.finished(done)
        if done:
            tell(call, done)


async def merged(streams: list[AsyncStream], between: Callable[[float], None]) -> AsyncIterator[tuple[int, Chunk]]:
    """Chunks of all streams as they come, each with its stream's index; one that fails ends all.

    `between` is told the seconds from each chunk of a stream to its next.
    """
    last = [0.0] * len(streams)

    def told(i: int, chunk: Chunk) -> tuple[int, Chunk]:
        now = time.perf_counter()
        if last[i]:
            between(now - last[i])
        last[i] = now
        return i, chunk

    if len(streams) == 1:
        async for chunk in streams[0]:
            yield told(0, chunk)
        return
    queue: asyncio.Queue[tuple[int, Chunk | BaseException | None]] = asyncio.Queue(len(streams))

    async def pump(i: int) -> None:
        try:
            async for chunk in streams[i]:
                await queue.put((i, chunk))
            await queue.put((i, None))
        except Exception as e:
            await queue.put((i, e))

    tasks = [asyncio.create_task(pump(i)) for i in range(len(streams))]
    try:
        left = len(tasks)
        while left:
            i, found = await queue.get()
            if isinstance(found, BaseException):
                raise found
            if found is None:
                left -= 1
            else:
                yield told(i, found)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def complete(streams: list[AsyncStream], between: Callable[[float], None]) -> list[Completion]:
    """All answers; one that fails ends all."""
    async for _ in merged(streams, between):
        pass
    return [stream.completion for stream in streams]


def usage_of(done: Iterable[Completion], n: int | None = None) -> dict[str, Any]:
    """Counts of tokens: each prompt counts once, however many answers it has: `n`, or all with the same prompt."""
    done = list(done)
    prompts = done[::n] if n else {c.prompt: c for c in done}.values()
    n_prompt, n_answer = sum(c.prompt_tokens for c in prompts), sum(len(c.tokens) for c in done)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_answer,
        "total_tokens": n_prompt + n_answer,
        "prompt_tokens_details": {"cached_tokens": sum(c.timings.cached_tokens for c in prompts)},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "accepted_prediction_tokens": sum(c.timings.accepted_tokens for c in done),
            "rejected_prediction_tokens": sum(c.timings.drafted_tokens - c.timings.accepted_tokens for c in done),
        },
    }


def tell(call: Call, done: list[Completion]) -> None:
    """What the log says of answers."""
    first = min((c.timings.queue_seconds + c.timings.prompt_seconds for c in done), default=0.0)
    usage = usage_of(done)
    call.told |= {
        "prompt_tokens": usage["prompt_tokens"],
        "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
        "tokens": usage["completion_tokens"],
        "first_token_seconds": round(first, 4),
        "finish": ",".join(c.finish_reason or "cancelled" for c in done),
    }
