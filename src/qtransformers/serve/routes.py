"""The table of routes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from qtransformers.serve import fields
from qtransformers.serve.about import health, list_models, show_model
from qtransformers.serve.call import Call
from qtransformers.serve.chat import chat_completions
from qtransformers.serve.completions import completions
from qtransformers.serve.images import generate_images
from qtransformers.serve.messages import CountRequest, MessagesRequest, count_tokens, messages
from qtransformers.serve.metrics import metrics
from qtransformers.serve.responses import ResponsesRequest, responses
from qtransformers.serve.server import Server
from qtransformers.serve.static import page
from qtransformers.serve.vectors import detokenize, embeddings, tokenize

Handler = Callable[[Server, Call, bytes], Awaitable[None]]


@dataclass(frozen=True)
class Row:
    """A route: its handler, the type of its body, and which API's shape its errors have."""

    method: str
    path: str
    handler: Handler
    body: type | None = None
    anthropic: bool = False
    public: bool = False  # needs no key
    described: bool = True  # in /openapi.json


ROWS = (
    Row("GET", "/health", health, public=True),
    Row("GET", "/metrics", metrics),
    Row("GET", "/v1/models", list_models),
    Row("GET", "/v1/models/{name:path}", show_model),
    Row("POST", "/v1/chat/completions", chat_completions, fields.ChatRequest),
    Row("POST", "/v1/completions", completions, fields.CompletionRequest),
    Row("POST", "/v1/responses", responses, ResponsesRequest),
    Row("POST", "/v1/messages", messages, MessagesRequest, anthropic=True),
    Row("POST", "/v1/messages/count_tokens", count_tokens, CountRequest, anthropic=True),
    Row("POST", "/v1/embeddings", embeddings, fields.EmbeddingsRequest),
    Row("POST", "/v1/images/generations", generate_images, fields.ImagesRequest),
    Row("POST", "/tokenize", tokenize, fields.TokenizeRequest),
    Row("POST", "/detokenize", detokenize, fields.DetokenizeRequest),
)


def pages() -> tuple[Row, ...]:
    """The rows of the page's files, which hold nothing secret: who opens it gives it a key."""
    return tuple(Row("GET", path, file, public=True, described=False) for path, file in page().items())
