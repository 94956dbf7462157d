"""What one caller asks for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from qtransformers.checks import shown, text, whole
from qtransformers.constrain.matcher import Grammar
from qtransformers.errors import ConfigError, ContextLengthError
from qtransformers.sampling import Breaks, Sampling

if TYPE_CHECKING:
    from qtransformers.load.tokenizer.healing import Healing

Speculate = Literal["auto", "ngram", "draft"]
# Why an answer ended: an EOS or a stop text; max_tokens, or a full context; it went in circles (max_repeats); every token
# that could come leads to a banned text; its reader had enough.
FinishReason = Literal["stop", "length", "loop", "banned", "cancelled"]
MAX_TEXTS = 16_384
MAX_TEXT_CHARS = 1024
MAX_NEW_TOKENS = 2**31 - 1
MAX_DRAFT = 16

Hook = Callable[[NDArray[np.int32], NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Request:
    """A prompt and how to go on from it. `stop_ids` end the answer and are no part of it, nor are the `stop` texts."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    banned: tuple[str, ...] = ()  # texts that the answer must not hold
    banned_ids: frozenset[int] = frozenset()  # and tokens
    healing: Healing | None = None  # what the first tokens must spell
    min_tokens: int = 0  # of the answer, before it may end
    max_repeats: int | None = None  # it ends with the same tokens so many times in a row
    logprobs: int | None = None  # log-probabilities of the tokens, and of so many of the likeliest each time
    hooks: tuple[Hook, ...] = ()  # (tokens so far, logits) -> logits, in their order
    speculate: Speculate | None = "auto"  # where guesses of the next tokens come from, if the engine makes any
    max_draft: int = MAX_DRAFT  # tokens guessed ahead, at most
    grammar: Grammar | None = None  # that the answer follows; it ends where nothing more may come
    adapters: tuple[tuple[Any, float], ...] = ()  # with `updates` of weights (nn.adapted), each at a scale
    salt: Hashable = None  # only requests of the same salt share what they have in the cache
    breaks: Breaks | None = field(default=None, compare=False)  # what `sampling.dry_breakers` are to the tokenizer

    def __post_init__(self) -> None:
        whole("min_tokens", self.min_tokens, 0, MAX_NEW_TOKENS)
        if self.min_tokens > self.max_tokens:
            raise ConfigError(
                f"min_tokens={self.min_tokens:,}, but the answer may have {self.max_tokens:,} tokens (max_tokens, or what "
                "the context leaves). Lower the one or raise the other."
            )
        if self.max_repeats is not None:
            whole("max_repeats", self.max_repeats, 2, MAX_NEW_TOKENS)


def texts(name: str, value: Any) -> tuple[str, ...]:
    """`value` as a tuple of texts: one text is one, not its letters; ConfigError for anything else."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = (value,)
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise ConfigError(f"{name}={shown(value)}; expected a text or a list of texts.")
    if len(value) > MAX_TEXTS:
        raise ConfigError(f"{name} has {len(value):,} texts; expected at most {MAX_TEXTS:,}.")
    for i, item in enumerate(value):
        if not 0 < len(text(f"{name}[{i}]", item)) <= MAX_TEXT_CHARS:
            raise ConfigError(f"{name}[{i}] has {len(item):,} characters; expected 1 to {MAX_TEXT_CHARS:,}.")
    return tuple(dict.fromkeys(sorted(value) if isinstance(value, (set, frozenset)) else value))


def prompt_ids(prompt: Any, n_tokens: int, name: str = "prompt") -> tuple[int, ...]:
    """Token ids as a tuple of ints below `n_tokens`; ConfigError naming the first that is none."""
    try:
        ids = tuple(prompt) if not isinstance(prompt, (bytes, bytearray, dict, set, frozenset)) else None
    except TypeError:
        ids = None
    if ids is None:
        raise ConfigError(f"{name}={shown(prompt)}; expected text or a list of token ids.")
    if ids and isinstance(ids[0], Mapping):
        raise ConfigError(f"{name}={shown(prompt)}; expected text or a list of token ids. Messages are for chat().")
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
        raise ContextLengthError(
            f"the prompt has {n_prompt:,} tokens and {asked}, but the context holds {context_length:,} (context_length). "
            "Shorten the prompt, lower max_tokens, or load the model with a larger context_length."
        )
    return max_tokens or context_length - n_prompt
