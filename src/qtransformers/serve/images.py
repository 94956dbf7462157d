"""/v1/images/generations: pictures as base64, whole or after events that tell of each step."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from qtransformers.serve.call import event
from qtransformers.serve.errors import HTTPError
from qtransformers.serve.fields import ImagesRequest, decode
from qtransformers.serve.painters import MAX_COUNT, MAX_SIDE, MAX_STEPS, Painter

if TYPE_CHECKING:
    from qtransformers.diffusers.pipelines import Painted
    from qtransformers.serve.call import Call
    from qtransformers.serve.server import Server

Json = dict[str, Any]


async def generate_images(server: Server, call: Call, body: bytes) -> None:
    """Pictures of a prompt."""
    ask = decode(body, ImagesRequest)
    wish = wish_of(ask)
    async with server.painting(call, ask.model) as painter:
        if ask.stream:
            await call.events(_events(painter, ask, wish))
            return
        painted = await painter.paint(wish, lambda step, steps: None)
        images = await server.off_loop(call, encoded, painted, ask.output_format or "png")
        data = [{"b64_json": image} for image in images]
        await call.json({"created": int(time.time()), "data": data, "output_format": ask.output_format or "png", "seed": painted.seed})  # fmt: skip


async def _events(painter: Painter, ask: ImagesRequest, wish: Json) -> AsyncIterator[bytes]:
    steps: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
    work = asyncio.ensure_future(painter.paint(wish, lambda *step: steps.put_nowait(step)))
    try:
        while not (work.done() and steps.empty()):
            step = asyncio.ensure_future(steps.get())
            await asyncio.wait({work, step}, return_when=asyncio.FIRST_COMPLETED)
            if not step.done():
                step.cancel()
                continue
            at, of = step.result()
            yield _event("progress", step=at, steps=of)
        painted = work.result()
        for image in await asyncio.to_thread(encoded, painted, ask.output_format or "png"):
            yield _event("completed", b64_json=image, created_at=int(time.time()), output_format=ask.output_format or "png", size=ask.size or "auto", seed=painted.seed)  # fmt: skip
        yield b"data: [DONE]\n\n"
    finally:
        work.cancel()


def _event(kind: str, **more: Any) -> bytes:
    return event({"type": f"image_generation.{kind}", **more}, f"image_generation.{kind}")


def wish_of(ask: ImagesRequest) -> Json:
    """The fields of a `Picture`; HTTPError 400 for what is not within the server's bounds."""
    if not ask.prompt.strip():
        raise _wrong("prompt", "is empty", "what the picture shall show")
    if ask.response_format not in (None, "b64_json"):
        raise _wrong("response_format", f"is {ask.response_format}", "b64_json: no picture is kept on the server")
    width = height = None
    if ask.size not in (None, "auto"):
        found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", ask.size, re.ASCII)
        width, height = (int(found[1]), int(found[2])) if found else (0, 0)
        if not all(16 <= side <= MAX_SIDE for side in (width, height)):
            raise _wrong("size", f"is {ask.size[:40]!r}", f"WIDTHxHEIGHT, each from 16 to {MAX_SIDE:,} pixels")
    count = 1 if ask.n is None else ask.n
    if not 1 <= count <= MAX_COUNT:
        raise _wrong("n", f"is {count:,}", f"1 to {MAX_COUNT} pictures")
    if ask.steps is not None and not 1 <= ask.steps <= MAX_STEPS:
        raise _wrong("steps", f"is {ask.steps:,}", f"1 to {MAX_STEPS}")
    return {
        "prompt": ask.prompt, "negative": ask.negative_prompt, "steps": ask.steps, "width": width, "height": height,
        "guidance": ask.guidance_scale, "seed": ask.seed, "count": count,
    }  # fmt: skip


def _wrong(field: str, found: str, expected: str) -> HTTPError:
    return HTTPError(400, f"{field} {found}; expected {expected}.", "invalid_value", field=field)


def encoded(painted: Painted, kind: str) -> list[str]:
    """Pictures as base64; HTTPError for a model that makes films."""
    if painted.frames:
        raise HTTPError(400, "the model makes films, which this API has no place for. Use: qtransformers image.", "unsupported", field="model")  # fmt: skip
    found = []
    for image in painted.images:
        file = io.BytesIO()
        image.save(file, format=kind)
        found.append(base64.b64encode(file.getvalue()).decode())
    return found
