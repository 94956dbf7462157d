"""What a client is told when a request fails: status, kind, message, in OpenAI's or Anthropic's shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qtransformers.errors import (
    ConfigError,
    ContextLengthError,
    InsufficientMemoryError,
    ModelNotFoundError,
    NetworkError,
    QTransformersError,
    TemplateError,
    TokenizerError,
    UnsupportedError,
)

Json = dict[str, Any]

# Status -> the kinds by which OpenAI's and Anthropic's clients tell errors apart
KINDS = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "authentication_error"),
    403: ("permission_error", "permission_error"),
    404: ("not_found_error", "not_found_error"),
    405: ("invalid_request_error", "invalid_request_error"),
    408: ("timeout_error", "timeout_error"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("rate_limit_error", "rate_limit_error"),
    500: ("server_error", "api_error"),
    503: ("overloaded_error", "overloaded_error"),
    504: ("timeout_error", "timeout_error"),
}
# The library's errors -> status and code; the first that fits
STATUS: tuple[tuple[type[Exception], int, str], ...] = (
    (ContextLengthError, 400, "context_length_exceeded"),
    (ConfigError, 400, "invalid_value"),
    (TemplateError, 400, "template_error"),
    (TokenizerError, 400, "invalid_value"),
    (UnsupportedError, 400, "unsupported"),
    (ModelNotFoundError, 404, "model_not_found"),
    (InsufficientMemoryError, 503, "out_of_memory"),
    (NetworkError, 503, "network"),
)
MAX_MESSAGE = 1500  # characters
_FIELD = re.compile(r"([a-z_]+)(?:[\[.][^=;:, ]*)?[=:] ?")


class HTTPError(Exception):
    """A request that is refused. `retry` is in seconds: when it may be worth asking again; None: never, as it is."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        field: str | None = None,
        retry: float | None = None,
    ) -> None:
        super().__init__(message)
        message = message if len(message) <= MAX_MESSAGE else f"{message[: MAX_MESSAGE - 3]}..."
        self.status, self.message, self.code, self.field, self.retry = status, message, code, field, retry

    @property
    def headers(self) -> dict[str, str]:
        """What goes with it: clients of both APIs heed the second."""
        if self.retry is None:
            return {"x-should-retry": "false"}
        return {"retry-after": str(max(1, round(self.retry))), "x-should-retry": "true"}


def http_error(error: BaseException, fields: Mapping[str, Any] | None = None) -> HTTPError:
    """What to say of an error; of one that is a defect only that there was one. `fields` are those of the request."""
    if isinstance(error, HTTPError):
        return error
    for kind, status, code in STATUS:
        if isinstance(error, kind):
            found = _FIELD.match(str(error))
            name = found[1] if found and found[1] in (fields or ()) else None
            hint = " (The server's --ctx-size sets context_length.)" if kind is ContextLengthError else ""
            return HTTPError(status, str(error) + hint, code, field=name, retry=5 if status == 503 else None)
    if isinstance(error, QTransformersError):
        return HTTPError(500, str(error), "model_error")
    if isinstance(error, RecursionError):
        return HTTPError(400, "the body is nested too deep. Flatten it.", "too_deep")
    return HTTPError(500, "the server failed at this request; its log says how. Ask its operator.", "internal_error")


def openai_shape(error: HTTPError, request_id: str) -> Json:
    """As OpenAI's clients expect it."""
    kind = KINDS.get(error.status, KINDS[400 if error.status < 500 else 500])[0]
    return {"error": {"message": error.message, "type": kind, "param": error.field, "code": error.code}}


def anthropic_shape(error: HTTPError, request_id: str) -> Json:
    """As Anthropic's clients expect it."""
    kind = KINDS.get(error.status, KINDS[400 if error.status < 500 else 500])[1]
    return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}
