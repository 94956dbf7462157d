"""How a prompt begins: with BOS where the model expects it, once; and what looks as if it did not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from qtransformers.errors import ConfigError


class Vocabulary(Protocol):
    """What the start of a prompt depends on."""

    before: list[int]  # ids the model expects in front of a text
    bos_id: int | None

    def token_text(self, i: int, /) -> str:
        """How the vocabulary spells a token."""

    def encode(self, text: str, add_bos: bool | None = None, encode_special: bool = False) -> list[int]:
        """The ids of a text."""


class HasStart(Protocol):
    """The ids a model expects in front of a text."""

    before: list[int]


def with_start(ids: list[int], tokenizer: HasStart) -> list[int]:
    """`ids` with what the model expects in front of a text, unless they begin so already."""
    before = list(tokenizer.before)
    return ids if ids[: len(before)] == before else before + ids


def encode_prompt(text: str, tokenizer: Vocabulary, add_bos: bool | None, encode_special: bool) -> list[int]:
    """The ids of a text as a prompt, with nothing behind it.

    `add_bos` None puts BOS in front where the model expects it, True always, False never. ConfigError where there is no BOS.
    """
    ids = tokenizer.encode(text, add_bos=False, encode_special=encode_special)
    if add_bos and not tokenizer.before:
        bos = tokenizer.bos_id
        if bos is None:
            raise ConfigError("add_bos=True, but the vocabulary has no BOS token. Leave it out.")
        return ids if ids[:1] == [bos] else [bos, *ids]
    return ids if add_bos is False else with_start(ids, tokenizer)


def doubts(
    ids: Sequence[int], tokenizer: Vocabulary, text: str | None = None, encode_special: bool = False
) -> list[str]:
    """What a user should know about the start of a prompt: `ids`, made of `text` or given as they are (None)."""
    bos = tokenizer.bos_id
    if bos is None:
        return []
    name, found = tokenizer.token_text(bos), []
    if list(ids[:2]) == [bos, bos]:
        found.append(
            f"the prompt begins with BOS ({name}) twice, which models are not trained on. Leave out the one in the text, "
            "the ids or the chat template."
        )
    plain = not encode_special and tokenizer.encode(name, add_bos=False) != [bos]
    if text and len(name) > 1 and text.startswith(name) and plain:
        found.append(
            f"the prompt begins with {name!r}, which is read as plain text and not as BOS. Leave it out: BOS is put in front "
            "where the model expects it (add_bos); or say encode_special=True."
        )
    before = tokenizer.before
    if text is None and before and list(ids[: len(before)]) != before:
        found.append(
            f"the ids of the prompt begin with {list(ids[: len(before)])}, but this model expects {before} "
            f"({' '.join(map(tokenizer.token_text, before))}) in front. Put it there, or say add_bos=False if this is meant."
        )
    return found
