"""Directories without tokenizer.json: a SentencePiece model, or the vocab.json and merges.txt of GPT-2 and its kin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qtransformers.errors import TokenizerError
from qtransformers.load.tokenizer.bpe import bpe_encoder
from qtransformers.load.tokenizer.decoding import piece_decoder
from qtransformers.load.tokenizer.hf_config import NAMED_TOKENS, added_tokens, named_ids, parse_json, token_text
from qtransformers.load.tokenizer.parts import TokenizerParts, around_specials
from qtransformers.load.tokenizer.pretokenizers import PRE_TOKENIZERS
from qtransformers.load.tokenizer.sentencepiece import UNIGRAM, SentencePiece, parse_sentencepiece
from qtransformers.load.tokenizer.spm import SPACE, spm_encoder
from qtransformers.load.tokenizer.ugm import normaliser, unigram
from qtransformers.load.tokenizer.vocab import CONTROL, NORMAL, UNUSED, USER_DEFINED, Kind, Vocab, is_text, make_vocab

# How the classes whose vocabulary is vocab.json and merges.txt cut text into words.
PRE_OF_CLASS = {"GPT2": "gpt-2", "CodeGen": "gpt-2", "Qwen2": "qwen2"}


def sentencepiece_file(data: bytes, config: Mapping[str, Any], file: str) -> TokenizerParts:
    """The tokenizer of a SentencePiece model (its bytes) and tokenizer_config.json."""
    model = parse_sentencepiece(data, file)
    ids = {"unk": model.unk_id, "bos": model.bos_id, "eos": model.eos_id, "pad": model.pad_id}
    kind = Kind("ugm" if model.model_type == UNIGRAM else "spm")
    vocab = _vocab(file, kind, model.texts, model.types, model.scores, ids, config)
    byte_ids = (
        [i for b in range(256) if (i := vocab.index.get(f"<0x{b:02X}>")) is not None] if model.byte_fallback else []
    )
    find = unigram(vocab, byte_ids) if kind.algorithm == "ugm" else spm_encoder(vocab)
    spaced = _spaced(model, normaliser(file, np.frombuffer(model.charsmap, np.uint8)))

    def encode(text: str) -> list[int]:
        return find(spaced(text))

    def first(text: str) -> list[int]:
        text = spaced(text)
        return find(SPACE + text if text and model.add_dummy_prefix else text)

    return TokenizerParts(
        vocab,
        around_specials(vocab, encode, first=first, again=False),
        piece_decoder(vocab, byte_level=False, escaped=True),
        before=_ids(vocab, "bos", config.get("add_bos_token", kind.algorithm == "spm")),
        after=_ids(vocab, "eos", config.get("add_eos_token", kind.algorithm == "ugm")),
        strip_space=model.add_dummy_prefix,
    )


def byte_level_files(vocab_json: bytes, merges: bytes, config: Mapping[str, Any], folder: str) -> TokenizerParts:
    """The tokenizer of vocab.json and merges.txt (their bytes); TokenizerError for a class with rules of its own."""
    name = str(config.get("tokenizer_class", "")).removesuffix("Fast").removesuffix("Tokenizer")
    if name not in PRE_OF_CLASS:
        raise TokenizerError(
            f"{folder}: no tokenizer.json, and vocab.json belongs to tokenizer_class {config.get('tokenizer_class')!r}; known are "
            f"{', '.join(f'{c}Tokenizer' for c in PRE_OF_CLASS)}. Make a tokenizer.json: "
            "transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)."
        )
    file = f"{folder}/vocab.json"
    index = parse_json(vocab_json, file)
    if not is_text("".join(index)) or not all(type(i) is int and 0 <= i < 2 * len(index) for i in index.values()):
        raise TokenizerError(f"{file} is no vocabulary; expected texts with their ids. Fetch it again.")
    texts = {i: text for text, i in index.items()}
    n = max(texts, default=-1) + 1
    tokens = [texts.get(i, f"[EMPTY_{i}]") for i in range(n)]
    types = [NORMAL if i in texts else UNUSED for i in range(n)]
    vocab = _vocab(file, Kind("bpe"), tokens, types, [0.0] * n, {}, config)
    lines = [line for line in merges.decode("utf-8", "replace").split("\n") if line and not line.startswith("#version")]
    return TokenizerParts(
        vocab,
        around_specials(vocab, bpe_encoder(vocab, lines, PRE_TOKENIZERS[PRE_OF_CLASS[name]])),
        piece_decoder(vocab, byte_level=True, escaped=False),
        before=_ids(vocab, "bos", config.get("add_bos_token", False)),
        after=_ids(vocab, "eos", config.get("add_eos_token", False)),
    )


def _vocab(
    file: str,
    kind: Kind,
    tokens: Sequence[str],
    types: Sequence[int],
    scores: Sequence[float],
    ids: Mapping[str, int],
    config: Mapping[str, Any],
) -> Vocab:
    """The vocabulary with the tokens that tokenizer_config.json adds to it or names."""
    texts = dict(enumerate(tokens))
    kinds = dict(enumerate(types))
    for i, added in added_tokens(config).items():
        if i > 2 * len(tokens) + 65536:
            raise TokenizerError(
                f"{file} has {len(tokens)} tokens, but tokenizer_config.json adds one as id {i}. Fetch both again."
            )
        texts[i] = added["content"]
        kinds[i] = CONTROL if added.get("special") else USER_DEFINED
    index = {text: i for i, text in texts.items()}
    for key in NAMED_TOKENS.values():
        text = token_text(config.get(key))
        if text in index:
            kinds[index[text]] = CONTROL
    n = max(texts, default=-1) + 1
    return make_vocab(
        file,
        kind,
        file.rsplit("/", 1)[-1],
        [texts.get(i) or f"[EMPTY_{i}]" for i in range(n)],
        np.array([kinds.get(i, UNUSED) for i in range(n)], np.uint8),
        np.array([*scores, *[0.0] * (n - len(scores))], np.float32),
        {**{name: i for name, i in ids.items() if i < n}, **named_ids(config, index)},
        add_bos=None,
        add_eos=False,
        add_space_prefix=False,
    )


def _spaced(model: SentencePiece, normalise: Callable[[str], str]) -> Callable[[str], str]:
    """SentencePiece's normalisation: replacements, no extra blanks, and blanks made visible."""

    def spaced(text: str) -> str:
        text = normalise(text)
        if model.remove_extra_whitespaces:
            text = " ".join(word for word in text.split(" ") if word)
        return text.replace(" ", SPACE)

    return spaced


def _ids(vocab: Vocab, name: str, wanted: Any) -> list[int]:
    return [vocab.ids[name]] if wanted and name in vocab.ids else []
