"""Text to token ids and back, from a GGUF file alone or from a Hugging Face directory."""

from __future__ import annotations

import operator
import warnings as _warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qtransformers.errors import ModelNotFoundError, TokenizerError
from qtransformers.gguf import GGUFFile
from qtransformers.load.bpe import SPACE, bpe_encoder
from qtransformers.load.decoding import StreamDecoder, piece_decoder
from qtransformers.load.hf_tokenizer import hub_tokenizer, read_file
from qtransformers.load.pretokenizers import PreTokenizer, pre_tokenizer
from qtransformers.load.specials import SpecialMatcher
from qtransformers.load.spm import spm_encoder
from qtransformers.load.vocab import PREFIX, Vocab, vocab_from_metadata

Encode = Callable[[str, bool], list[int]]  # text, encode_special -> ids


class Tokenizer:
    """Text to ids and back, exactly as the model's own tokenizer. Made by `from_gguf` or `from_pretrained`.

    `bos_id`, `eos_id` (or None), `eos_ids` (every id that ends a generation), `special_ids` (control tokens),
    `unused_ids`, `n_tokens`, `before` and `after` (ids the model expects around a text), `warnings` (what the file
    left open, and how it was filled in).
    """

    def __init__(
        self,
        vocab: Vocab,
        encode: Encode,
        piece: Callable[[int], bytes],
        *,
        before: Sequence[int] = (),
        after: Sequence[int] = (),
        strip_space: bool = False,
        warnings: Sequence[str] = (),
    ) -> None:
        self._vocab = vocab
        self._encode = encode
        self._piece = piece
        self._strip_space = strip_space
        self.before = list(before)
        self.after = list(after)
        self.warnings = tuple(warnings)
        self.n_tokens = len(vocab.tokens)
        self.bos_id = vocab.ids.get("bos")
        self.eos_id = vocab.ids.get("eos")
        self.eos_ids = vocab.eos_ids
        self.special_ids = vocab.control_ids
        self.unused_ids = vocab.unused_ids
        for message in self.warnings:
            _warnings.warn(message, stacklevel=3)

    @classmethod
    def from_gguf(cls, source: str | Path | GGUFFile, *, pre: str | None = None) -> Tokenizer:
        """The tokenizer inside a GGUF file. `pre` overrides the file's `tokenizer.ggml.pre`.

        TokenizerError for a vocabulary that is missing, damaged or of an unknown kind.
        """
        gguf = source if isinstance(source, GGUFFile) else GGUFFile(source)
        vocab = vocab_from_metadata(gguf.metadata, gguf.path.name)
        algorithm = vocab.kind.algorithm
        if pre is not None and algorithm != "bpe":
            raise TokenizerError(
                f"{vocab.file}: pre={pre!r} was given, but its vocabulary is {vocab.model!r}, which has no pre-tokenizer. Leave it out."
            )
        if algorithm == "bpe":
            return cls._from_bpe(vocab, gguf.metadata, pre)
        if algorithm == "spm":
            encode = spm_encoder(vocab)
            return cls(
                vocab,
                _around_specials(
                    vocab, lambda text: encode(text.replace(" ", SPACE)), prefix=" " if vocab.add_space_prefix else ""
                ),
                piece_decoder(vocab, byte_level=False, escaped=True),
                before=_ids(vocab, "bos" if vocab.add_bos else None),
                after=_ids(vocab, "eos" if vocab.add_eos else None),
                strip_space=vocab.add_space_prefix,
            )
        raise TokenizerError(
            f"{vocab.file}: vocabularies of kind {vocab.model!r} are not supported yet. Use model_path= with the tokenizer's directory."
        )

    @classmethod
    def _from_bpe(cls, vocab: Vocab, metadata: Mapping[str, Any], pre: str | None) -> Tokenizer:
        notes: list[str] = []
        name = pre or ("gemma4" if vocab.model == "gemma4" else metadata.get(PREFIX + "pre"))
        if not name:
            name = "default"
            notes.append(
                f"{vocab.file}: tokenizer.ggml.pre is missing; 'default' is used, which few models were trained with. "
                "Name the right one: pre=..."
            )
        row = pre_tokenizer(str(name), vocab.file)
        return cls(
            vocab,
            _around_specials(vocab, bpe_encoder(vocab, metadata.get(PREFIX + "merges"), row)),
            piece_decoder(vocab, byte_level=row.byte_level, escaped=row.escape_spaces),
            before=_ids(vocab, "bos" if _bpe_adds_bos(vocab, row, notes) else None),
            after=_ids(vocab, "eos" if vocab.add_eos else None),
            warnings=notes,
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer of a Hugging Face directory: tokenizer.json, tokenizer_config.json.

        ModelNotFoundError where there is none, or only a git-LFS pointer; TokenizerError where it cannot be built.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise ModelNotFoundError(f"{folder} is no directory; expected one with tokenizer.json.")
        data = read_file(folder, "tokenizer.json")
        if data is None:
            raise ModelNotFoundError(f"{folder}: no tokenizer.json. Copy it there from the model's repository.")
        hub = hub_tokenizer(folder, data)
        return cls(
            hub.vocab,
            hub.encode,
            piece_decoder(
                hub.vocab,
                byte_level=hub.byte_level,
                escaped=hub.escaped,
                word_prefix=hub.word_prefix,
                word_suffix=hub.word_suffix,
            ),
            before=hub.before,
            after=hub.after,
            strip_space=hub.strip_space,
        )

    def encode(self, text: str, add_bos: bool | None = None, encode_special: bool = False) -> list[int]:
        """The ids of `text`.

        add_bos: None adds what the model expects around a text; True also puts BOS in front where it does not; False
        adds nothing on either side. encode_special: the texts of control tokens become those tokens; otherwise they
        are ordinary text. Tokens around a text that it already brings along are not doubled.
        TokenizerError for what is no text: not a `str`, or with lone surrogates.
        """
        _check_text(text)
        ids = self._encode(text, encode_special)
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
        decoder = self.decoder(decode_special, continues=continues)
        return "".join([decoder.push(i) for i in ids]) + decoder.finish()

    def decoder(self, decode_special: bool = False, *, continues: bool = False) -> StreamDecoder:
        """A decoder for one stream of ids; its pieces together are `decode` of them all."""
        return StreamDecoder(self._shown if decode_special else self._hidden, self._strip_space and not continues)

    def token_text(self, i: int) -> str:
        """The token as the vocabulary spells it; TokenizerError for an id out of range."""
        return self._vocab.tokens[self._check_id(i)]

    def token_bytes(self, i: int) -> bytes:
        """The bytes the token stands for in a text; a control token's are its name."""
        return self._piece(self._check_id(i))

    def id_of(self, text: str) -> int | None:
        """The id of the token spelled `text` in the vocabulary, or None."""
        return self._vocab.index.get(text)

    def __repr__(self) -> str:
        return f"Tokenizer({self._vocab.file}: {self._vocab.model}, {self.n_tokens} tokens)"

    def _shown(self, i: int) -> bytes:
        return self._piece(self._check_id(i))

    def _hidden(self, i: int) -> bytes:
        return b"" if self._check_id(i) in self.special_ids else self._piece(i)

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


def _around_specials(vocab: Vocab, encode: Callable[[str], list[int]], prefix: str = "") -> Encode:
    """Encoding that cuts a text at its special tokens first; `prefix` goes before each piece that follows one or begins the text."""
    matchers: dict[bool, SpecialMatcher] = {}

    def encode_all(text: str, encode_special: bool) -> list[int]:
        matcher = matchers.get(encode_special)
        if matcher is None:
            ids = vocab.user_ids | vocab.control_ids if encode_special else vocab.user_ids
            matcher = matchers[encode_special] = SpecialMatcher(vocab.tokens, ids)
        out: list[int] = []
        after_special = True
        for piece in matcher.split(text):
            if isinstance(piece, int):
                out.append(piece)
            else:
                out += encode(prefix + piece if after_special else piece)
            after_special = isinstance(piece, int)
        return out

    return encode_all


def _ids(vocab: Vocab, name: str | None) -> list[int]:
    """The id of that name as a list, [] for None; TokenizerError where the file asks for a token it does not name."""
    if name is None:
        return []
    if name not in vocab.ids:
        raise TokenizerError(
            f"{vocab.file}: tokenizer.ggml.add_{name}_token is true, but {name}_token_id is missing. Add the id, or set the key to false."
        )
    return [vocab.ids[name]]


def _bpe_adds_bos(vocab: Vocab, row: PreTokenizer, notes: list[str]) -> bool:
    adds = row.add_bos if vocab.add_bos is None or row.whole_newlines else vocab.add_bos
    if adds and "bos" not in vocab.ids and not vocab.add_bos:
        notes.append(
            f"{vocab.file}: its pre-tokenizer asks for BOS, but tokenizer.ggml.bos_token_id is missing; none is added."
        )
        return False
    return adds


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise TokenizerError(f"text is {type(text).__name__}; expected str.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"text has a lone surrogate, {text[error.start]!r}, at character {error.start}; it stands for no character. Remove it."
        ) from None
