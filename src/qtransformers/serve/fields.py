"""Bodies of requests, as types: decoded, checked and described (/openapi.json) by them."""

from __future__ import annotations

import re
from typing import Any, Literal, TypeVar

import msgspec

from qtransformers.checks import shown
from qtransformers.sampling.settings import SamplingOptions
from qtransformers.serve.errors import HTTPError

T = TypeVar("T")
Texts = str | list[str | int | list[int]]  # a text, texts, token ids, or lists of them
SAMPLING = tuple(SamplingOptions.__annotations__)
MAX_DEPTH = 128  # of what the parser calls itself for; the checks of each field are stricter


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What a stream holds beside the answer."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # heeded where False: nothing is added to hide lengths


class Lora(msgspec.Struct, forbid_unknown_fields=True):
    """An adapter that the server knows by name, and its scale."""

    name: str
    scale: float = 1.0


class Sampled(msgspec.Struct, kw_only=True):
    """How tokens are chosen: the fields of `Sampling`, and those that stand for one of them elsewhere."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    top_n_sigma: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    penalty_range: int | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_range: int | None = None
    dry_breakers: list[str] | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    logit_bias: dict[str, float] | None = None  # token id -> what is added
    banned_tokens: list[int] | None = None
    allowed_tokens: list[int] | None = None
    seed: int | None = None

    def sampling(self) -> dict[str, Any]:
        """As `Options` have it; HTTPError for ids of tokens that are no numbers."""
        given = {name: value for name in SAMPLING if (value := getattr(self, name)) is not None}
        if self.logit_bias is not None:
            given["logit_bias"] = {_token_id(k): v for k, v in self.logit_bias.items()}
        return given


class Generates(Sampled, kw_only=True):
    """What requests for texts have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    max_repeats: int | None = None
    banned: str | list[str] | None = None
    grammar: str | None = None
    regex: str | None = None
    speculate: bool | str | None = None
    max_draft: int | None = None
    lora: list[Lora] | None = None
    cache_salt: str | None = None  # only requests of the same key and salt share what is cached of prompts
    # Said by clients for their own sake; they change nothing about an answer.
    user: str | None = None
    metadata: dict[str, Any] | None = None

    def options(self) -> dict[str, Any]:
        """As `Options` have them."""
        names = (
            "stop", "max_tokens", "min_tokens", "max_repeats", "banned", "grammar", "regex", "speculate", "max_draft"
        )  # fmt: skip
        return self.sampling() | {name: value for name in names if (value := getattr(self, name)) is not None}


class ChatRequest(Generates, kw_only=True, forbid_unknown_fields=True):
    """/v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    modalities: list[Literal["text"]] | None = None
    service_tier: str | None = None  # of USUAL, as is the next
    verbosity: str | None = None
    # Said for the provider's own sake.
    store: bool | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class CompletionRequest(Generates, kw_only=True, forbid_unknown_fields=True):
    """/v1/completions."""

    prompt: Texts
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    json_schema: dict[str, Any] | bool | None = None
    add_bos: bool | None = None
    encode_special: bool = False
    heal: bool = False


class EmbeddingsRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """/v1/embeddings."""

    input: Texts
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    pooling: str | None = None
    user: str | None = None


class TokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """/tokenize: a text, or a chat."""

    model: str | None = None
    prompt: str | None = None
    content: str | None = None  # the same, as llama.cpp calls it
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    encode_special: bool = False
    return_token_strs: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """/detokenize."""

    tokens: list[int]
    model: str | None = None
    decode_special: bool = True


class ImagesRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """/v1/images/generations."""

    prompt: str
    model: str | None = None
    n: int | None = None
    size: str | None = None  # WIDTHxHEIGHT in pixels, or auto
    response_format: str | None = None  # b64_json
    output_format: Literal["png", "jpeg", "webp"] | None = None
    stream: bool | None = None
    negative_prompt: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    user: str | None = None


# Field -> the values that ask for no more than every answer has
USUAL = {"verbosity": ("medium",), "service_tier": ("auto", "default", "standard_only")}


def check_usual(**given: Any) -> None:
    """HTTPError 400 for fields of USUAL that ask for what this server does not have."""
    for name, value in given.items():
        if value is not None and value not in USUAL[name]:
            raise HTTPError(400, f"{name}={shown(value, 100)}: this server has one; expected {' or '.join(USUAL[name])}. Leave it out.", "unsupported", field=name)  # fmt: skip


def prompts_of(given: Texts, field: str) -> list[str | tuple[int, ...]]:
    """A text, texts, token ids, or lists of them, as a list; HTTPError where they are mixed."""
    if isinstance(given, str):
        return [given]
    ids = tuple(part for part in given if isinstance(part, int))
    rest = [part if isinstance(part, str) else tuple(part) for part in given if not isinstance(part, int)]
    if ids and not rest:
        return [ids]
    if ids or not rest:
        found = "numbers and texts are mixed" if given else "there is none"
        raise HTTPError(400, f"{field}: {found}; expected a text, token ids, or a list of either.", "invalid_value", field=field)  # fmt: skip
    return rest


def decode(body: bytes, kind: type[T]) -> T:
    """A body as one of these types; HTTPError 400 names the field, what it is and what is expected."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as e:
        raise _invalid(str(e)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as e:
        raise HTTPError(400, f"the body is no JSON: {str(e)[:200]}. Send one object.", "invalid_json") from None
    except RecursionError:
        raise HTTPError(400, "the body is nested too deep. Flatten it.", "too_deep") from None


def _invalid(message: str) -> HTTPError:
    """As we say it: field, found, expected."""
    what, _, where = message.partition(" - at `$")
    place = re.sub(r"\[\.\.\.\]", "[]", where.rstrip("`")).lstrip(".")
    field = re.split(r"\W", place, maxsplit=1)[0] or None
    if found := re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL):
        name = f"{place}.{found[1]}" if place else found[1]
        return HTTPError(400, f"{name[:100]}: there is no such field. Leave it out.", "unknown_field", field=name[:100])
    if found := re.fullmatch(r"Object missing required field `(.*)`", what):
        name = f"{place}.{found[1]}" if place else found[1]
        return HTTPError(400, f"{name}: it is missing. Give it.", "missing_field", field=name)
    if found := re.fullmatch(r"Expected `(.*?)`, got `(.*?)`", what):
        what = f"found {found[2]}; expected {found[1].replace(' | null', '').replace(' | ', ' or ')}"
    return HTTPError(400, f"{place or 'the body'}: {what[:300]}.", "invalid_type", field=field)


def _token_id(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text, re.ASCII):
        raise HTTPError(400, f"logit_bias: {shown(text)}; expected ids of tokens as keys.", "invalid_value", field="logit_bias")  # fmt: skip
    return int(text)


FinishReason = Literal["stop", "length", "content_filter", "tool_calls"]
FINISH: dict[str, FinishReason] = {
    "stop": "stop", "length": "length", "loop": "length", "banned": "content_filter", "cancelled": "length"
}  # fmt: skip
