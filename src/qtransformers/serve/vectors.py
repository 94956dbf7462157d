"""/v1/embeddings, /tokenize, /detokenize: what a model makes of texts without answering."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

import numpy as np

from qtransformers.generate.embed import normalized
from qtransformers.generate.requests import prompt_ids
from qtransformers.load.start import encode_prompt
from qtransformers.serve.completions import texts_of
from qtransformers.serve.errors import HTTPError
from qtransformers.serve.fields import (
    ChatRequest,
    DetokenizeRequest,
    EmbeddingsRequest,
    TokenizeRequest,
    decode,
    prompts_of,
)
from qtransformers.serve.turns import prompt_of

if TYPE_CHECKING:
    from qtransformers.serve.call import Call
    from qtransformers.serve.models import Entry
    from qtransformers.serve.server import Server

MOST_TEXTS = 2048  # in one request, as OpenAI's API has it
AT_ONCE = 64  # texts computed before it is looked whether somebody still waits


async def embeddings(server: Server, call: Call, body: bytes) -> None:
    """A vector for each text."""
    ask = decode(body, EmbeddingsRequest)
    texts = prompts_of(ask.input, "input")
    if len(texts) > MOST_TEXTS:
        raise HTTPError(400, f"input: {len(texts):,} texts; expected at most {MOST_TEXTS:,}.", "invalid_value", field="input")  # fmt: skip
    async with server.answering(call, ask.model) as entry:
        model, width = entry.loaded, entry.loaded.hparams["n_embd"]
        if ask.dimensions is not None and not 1 <= ask.dimensions <= width:
            raise HTTPError(400, f"dimensions: {ask.dimensions:,}; the vectors of {entry.spec.name} have {width:,}.", "invalid_value", field="dimensions")  # fmt: skip
        ids = await server.off_loop(call, _ids, entry, texts)
        parts = [
            await asyncio.to_thread(model.embed, ids[i : i + AT_ONCE], pooling=ask.pooling)
            for i in range(0, len(ids), AT_ONCE)
        ]
        vectors = np.concatenate(parts)
        if ask.dimensions is not None:
            vectors = normalized(vectors[:, : ask.dimensions])
        n = sum(map(len, ids))
        call.told["prompt_tokens"] = n
        data = [{"object": "embedding", "index": i, "embedding": _shown(v, ask)} for i, v in enumerate(vectors)]
        usage = {"prompt_tokens": n, "total_tokens": n}
        await call.json({"object": "list", "data": data, "model": ask.model or entry.spec.name, "usage": usage})


async def tokenize(server: Server, call: Call, body: bytes) -> None:
    """The tokens of a text or a chat."""
    ask = decode(body, TokenizeRequest)
    given = [name for name in ("prompt", "content", "messages") if getattr(ask, name) is not None]
    if len(given) != 1:
        raise HTTPError(400, f"prompt, content, messages: {len(given)} of them are there; expected one.", "invalid_value", field="prompt")  # fmt: skip
    async with server.answering(call, ask.model) as entry:
        ids = await server.off_loop(call, _tokens, call, entry, ask)
        reply: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": entry.loaded.context_length}
        if ask.return_token_strs:
            reply["token_strs"] = texts_of(entry.loaded.tokenizer, ids)
        await call.json(reply)


async def detokenize(server: Server, call: Call, body: bytes) -> None:
    """The text of tokens."""
    ask = decode(body, DetokenizeRequest)
    async with server.answering(call, ask.model) as entry:
        tokenizer = entry.loaded.tokenizer
        ids = prompt_ids(ask.tokens, tokenizer.n_tokens, "tokens")
        text = await server.off_loop(call, tokenizer.decode, ids, ask.decode_special)
        await call.json({"prompt": text, "content": text})


def _ids(entry: Entry, texts: list[str | tuple[int, ...]]) -> list[list[int] | tuple[int, ...]]:
    tokenizer = entry.loaded.tokenizer
    for text in texts:
        if isinstance(text, str):
            entry.check_length("input", text)
    return [tokenizer.encode(t) if isinstance(t, str) else t for t in texts]


def _tokens(call: Call, entry: Entry, ask: TokenizeRequest) -> list[int]:
    model = entry.loaded
    if ask.messages is not None:
        chat = ChatRequest(messages=ask.messages, tools=ask.tools, chat_template_kwargs=ask.chat_template_kwargs)
        return list(prompt_of(call, entry, chat)[0])
    text = ask.prompt if ask.prompt is not None else ask.content or ""
    entry.check_length("prompt", text)
    return encode_prompt(text, model.tokenizer, None if ask.add_special_tokens is None else ask.add_special_tokens, ask.encode_special)  # fmt: skip


def _shown(vector: Any, ask: EmbeddingsRequest) -> Any:
    if ask.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()
