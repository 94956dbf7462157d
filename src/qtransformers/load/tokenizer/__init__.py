"""Text to token ids and back, from a GGUF file alone or from a Hugging Face directory."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterable, Set
from functools import cached_property
from pathlib import Path

from qtransformers import machine
from qtransformers.errors import TokenizerError
from qtransformers.gguf import GGUFFile
from qtransformers.load.tokenizer.decoding import StreamDecoder
from qtransformers.load.tokenizer.from_gguf import gguf_tokenizer
from qtransformers.load.tokenizer.from_hf import hub_tokenizer
from qtransformers.load.tokenizer.healing import Pieces, pieces_of
from qtransformers.load.tokenizer.parts import TokenizerParts


class Tokenizer:
    """Text to ids and back, exactly as the model's own tokenizer. Made by `from_gguf` or `from_pretrained`.

    `bos_id`, `eos_id` (or None), `eos_ids` (every id that ends a generation), `special_ids` (control tokens),
    `unused_ids`, `n_tokens`, `before` and `after` (ids the model expects around a text), `warnings` (what the files
    left open, and how it was filled in).
    """

    def __init__(self, parts: TokenizerParts) -> None:
        self._parts = parts
        self._vocab = vocab = parts.vocab
        self.n_tokens = len(vocab.tokens)
        self.bos_id = vocab.ids.get("bos")
        self.eos_id = vocab.ids.get("eos")
        self.eos_ids = vocab.eos_ids
        self.special_ids = vocab.control_ids
        self.unused_ids = vocab.unused_ids
        self.before = list(parts.before)
        self.after = list(parts.after)
        self.warnings = tuple(parts.warnings)
        for message in self.warnings:
            warnings.warn(message, stacklevel=3)

    @classmethod
    def from_gguf(cls, source: str | Path | GGUFFile, *, pre: str | None = None) -> Tokenizer:
        """The tokenizer inside a GGUF file. `pre` overrides the file's `tokenizer.ggml.pre`.

        TokenizerError for a vocabulary that is missing, damaged or of an unknown kind.
        """
        gguf = source if isinstance(source, GGUFFile) else GGUFFile(source)
        parts = gguf_tokenizer(gguf.metadata, gguf.path.name, pre)
        machine.trim()  # building takes several times what stays
        return cls(parts)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer of a Hugging Face directory: tokenizer.json, tokenizer_config.json.

        ModelNotFoundError where there is none, or only a git-LFS pointer; TokenizerError where it cannot be built.
        """
        return cls(hub_tokenizer(Path(folder)))

    def encode(self, text: str, add_bos: bool | None = None, encode_special: bool = False) -> list[int]:
        """The ids of `text`.

        add_bos: None adds what the model expects around a text; True also puts BOS in front where it does not; False
        adds nothing on either side. encode_special: the texts of control tokens become those tokens; otherwise they
        are ordinary text. Tokens around a text that it already brings along are not doubled.
        TokenizerError for what is no text: not a `str`, or with lone surrogates.
        """
        _check_text(text)
        ids = self._parts.encode(text, encode_special)
        if add_bos is False:
            return ids
        before = self.before
        if add_bos and not before:
            if self.bos_id is None:
                raise TokenizerError(
                    f"{self._vocab.file}: add_bos=True, but this vocabulary has no BOS token. Leave add_bos out."
                )
            before = [self.bos_id]
        if before and ids[: len(before)] != before:
            ids = before + ids
        if self.after and ids[-len(self.after) :] != self.after:
            ids = ids + self.after
        return ids

    def decode(self, ids: Iterable[int], decode_special: bool = False, *, continues: bool = False) -> str:
        """The text of `ids`; control tokens are left out unless `decode_special`. Broken UTF-8 becomes U+FFFD.

        continues: the ids go on after a text, so the blank that SentencePiece puts before a first word is kept.
        """
        found = [i if type(i) is int and 0 <= i < self.n_tokens else self._check_id(i) for i in ids]
        if not decode_special:
            found = [i for i in found if i not in self.special_ids]
        text = b"".join(map(self._parts.piece, found))
        if self._parts.strip_space and not continues:
            text = text.removeprefix(b" ")
        return text.decode("utf-8", "replace")

    def decoder(
        self, decode_special: bool | Iterable[str] = False, *, continues: bool = False, skip: int = 0
    ) -> StreamDecoder:
        """A decoder for one stream of ids; its pieces together are `decode` of them all, less the first `skip` bytes.

        decode_special: True shows control tokens, texts those that are spelled so.
        """
        piece: Callable[[int], bytes]
        if isinstance(decode_special, bool):
            piece = self._shown if decode_special else self._hidden
        else:
            piece = self._showing({self.id_of(t) for t in decode_special} & self.special_ids)
        return StreamDecoder(piece, self._parts.strip_space and not continues, skip)

    def _showing(self, shown: Set[int | None]) -> Callable[[int], bytes]:
        """The bytes of a token, and of a control token only where it is among these."""
        return (lambda i: self._parts.piece(i) if i in shown else self._hidden(i)) if shown else self._hidden

    def token_text(self, i: int) -> str:
        """The token as the vocabulary spells it; TokenizerError for an id out of range."""
        return self._vocab.tokens[self._check_id(i)]

    def token_bytes(self, i: int) -> bytes:
        """The bytes the token stands for in a text; a control token's are its name."""
        return self._parts.piece(self._check_id(i))

    @cached_property
    def pieces(self) -> Pieces:
        """The tokens that make text, by their bytes. The first use sorts them."""
        return pieces_of(self.n_tokens, self._parts.piece, self.special_ids | self.unused_ids)

    def id_of(self, text: str) -> int | None:
        """The id of the token spelled `text` in the vocabulary, or None."""
        return self._vocab.index.get(text)

    def __repr__(self) -> str:
        return f"Tokenizer({self._vocab.file}: {self._vocab.model}, {self.n_tokens} tokens)"

    def _shown(self, i: int) -> bytes:
        return self._parts.piece(self._check_id(i))

    def _hidden(self, i: int) -> bytes:
        return b"" if self._check_id(i) in self.special_ids else self._parts.piece(i)

    def _check_id(self, i: int) -> int:
        try:
            i = operator.index(i)
        except TypeError:
            raise TokenizerError(f"token id {i!r} is {type(i).__name__}; expected an int.") from None
        if not 0 <= i < self.n_tokens:
            raise TokenizerError(
                f"{self._vocab.file}: token id {i} is out of range; the vocabulary has {self.n_tokens} tokens."
            )
        return i


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise TokenizerError(f"text is {type(text).__name__}; expected str.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"text has a lone surrogate, {text[error.start]!r}, at character {error.start}; it stands for no character. Remove it."
        ) from None
