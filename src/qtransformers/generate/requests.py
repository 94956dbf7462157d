"""What one caller asks for, and how far it has come."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from qtransformers.checks import shown, text, whole
from qtransformers.errors import ConfigError
from qtransformers.generate.stops import StopText
from qtransformers.sampling import Sampler, Sampling

FinishReason = Literal["stop", "length", "cancelled"]
MAX_STOPS = 64
MAX_STOP_CHARS = 1024
MAX_NEW_TOKENS = 2**31 - 1


class Decoder(Protocol):
    """Token ids in, whole UTF-8 characters out."""

    def push(self, token: int) -> str:
        """Text that is complete with this token."""

    def finish(self) -> str:
        """What is still held back, incomplete bytes as U+FFFD."""


@dataclass(frozen=True)
class Request:
    """A prompt and how to go on from it. `stop_ids` end the answer and are no part of it, nor are the `stop` texts."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()


@dataclass
class Sequence:
    """A request under way."""

    request: Request
    decoder: Decoder
    sampler: Sampler = field(init=False)  # of the engine that takes it
    tokens: list[int] = field(default_factory=list)  # the answer so far
    past: int = 0  # tokens whose keys and values are in the cache
    pages: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    _stops: StopText = field(init=False)

    def __post_init__(self) -> None:
        self._stops = StopText(self.request.stop)

    def pending(self, limit: int) -> list[int]:
        """The next tokens to compute, at most `limit`: of the prompt first, then the last one chosen."""
        prompt = self.request.prompt
        if self.past < len(prompt):
            return list(prompt[self.past : self.past + limit])
        return self.tokens[self.past - len(prompt) :][:limit]

    @property
    def length(self) -> int:
        """Tokens of the prompt and the answer so far."""
        return len(self.request.prompt) + len(self.tokens)

    def accept(self, token: int) -> str:
        """Take the next token; the text that may be shown because of it."""
        if token in self.request.stop_ids:
            return self.finish("stop")
        self.tokens.append(token)
        shown_text = self._stops.push(self.decoder.push(token))
        if self._stops.found:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.request.max_tokens:
            shown_text += self.finish("length")
        return shown_text

    def finish(self, reason: FinishReason) -> str:
        """End here; the text that was held back."""
        rest = self._stops.push(self.decoder.finish())
        self.finish_reason = "stop" if self._stops.found else reason
        return rest if self._stops.found else rest + self._stops.rest()


def stop_texts(stop: str | Iterable[str] | None) -> tuple[str, ...]:
    """`stop` as a tuple of texts: one text is one stop, not its letters; ConfigError for anything else."""
    if stop is None:
        return ()
    if isinstance(stop, str):
        stop = (stop,)
    if not isinstance(stop, (list, tuple, set, frozenset)):
        raise ConfigError(f"stop={shown(stop)}; expected a text or a list of texts.")
    if len(stop) > MAX_STOPS:
        raise ConfigError(f"stop has {len(stop):,} texts; expected at most {MAX_STOPS}.")
    for item in stop:
        if not 0 < len(text("stop", item)) <= MAX_STOP_CHARS:
            raise ConfigError(f"stop has a text of {len(item):,} characters; expected 1 to {MAX_STOP_CHARS}.")
    return tuple(dict.fromkeys(sorted(stop) if isinstance(stop, (set, frozenset)) else stop))


def prompt_ids(prompt: Any, n_tokens: int, name: str = "prompt") -> tuple[int, ...]:
    """Token ids as a tuple of ints below `n_tokens`; ConfigError naming the first that is none."""
    try:
        ids = tuple(prompt) if not isinstance(prompt, (bytes, bytearray, dict, set, frozenset)) else None
    except TypeError:
        ids = None
    if ids is None:
        raise ConfigError(f"{name}={shown(prompt)}; expected text or a list of token ids.")
    return tuple(whole(f"{name}[{i}]", id, 0, n_tokens - 1) for i, id in enumerate(ids))


def answer_limit(n_prompt: int, max_tokens: int | None, context_length: int) -> int:
    """How many tokens the answer may have; ConfigError with both counts when prompt and answer exceed the context."""
    if max_tokens is not None:
        max_tokens = whole("max_tokens", max_tokens, 1, MAX_NEW_TOKENS)
    if not n_prompt:
        raise ConfigError(
            "the prompt has no tokens; expected at least one. Write something, or start with the BOS token."
        )
    if n_prompt + (max_tokens or 1) > context_length:
        asked = f"{max_tokens:,} tokens are asked for (max_tokens)" if max_tokens else "the answer needs at least 1"
        raise ConfigError(
            f"the prompt has {n_prompt:,} tokens and {asked}, but the context holds {context_length:,} (context_length). "
            "Shorten the prompt, lower max_tokens, or load the model with a larger context_length."
        )
    return max_tokens or context_length - n_prompt
