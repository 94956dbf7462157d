"""The tokenizer of a Hugging Face folder as `tokenizer.*` metadata of GGUF."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qtransformers.convert.pre import derive_pre
from qtransformers.errors import LoadError, ModelNotFoundError, QTransformersError, TokenizerError, UnsupportedError
from qtransformers.load.chat.templates import templates_from_files
from qtransformers.load.config import read_json
from qtransformers.load.files import auxiliary_files
from qtransformers.load.tokenizer.pretokenizers import pre_tokenizer
from qtransformers.load.tokenizer.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    read_sentencepiece,
)

# What marks a turn or a role should never be made from a user's text, whatever its `special` flag says.
_LOOKS_LIKE_CONTROL = re.compile(r"<\|.*\|>|<｜.*｜>|<(start|end)_of_turn>|<pad>", re.DOTALL)
_ROLES = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "seperator",
    "pad": "padding",
    "mask": "mask",
    "cls": "cls",
}
_SPACE = "\u2581"
_FAR = -1000.0  # the score of pieces that no merge makes

FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json")


@dataclass
class Vocabulary:
    """What every kind of tokenizer has: text and type by id; scores for SPM, merges for BPE."""

    model: str  # tokenizer.ggml.model
    tokens: dict[int, str]
    types: dict[int, int]
    scores: dict[int, float] | None = None
    merges: list[str] | None = None
    pre: str | None = None
    add_space_prefix: bool | None = None
    more: Mapping[str, Any] = field(default_factory=dict)  # metadata that only this kind has


def tokenizer_metadata(folder: Path, vocab_size: int, pre: str | None = None) -> dict[str, Any]:
    """Metadata for a model with `vocab_size` embedding rows; ids without a token become unused `[PAD<id>]`.

    `pre` overrides the derived name of the pre-tokenizer. LoadError when there are more tokens than rows, TokenizerError
    or UnsupportedError for a tokenizer that cannot be read, ModelNotFoundError where there is none.
    """
    try:
        return _metadata(folder, vocab_size, pre)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as e:
        if isinstance(e, QTransformersError):
            raise
        raise TokenizerError(
            f"{folder}: its tokenizer files are not as transformers writes them ({type(e).__name__}: {e}). Fetch them again."
        ) from e


def _metadata(folder: Path, vocab_size: int, pre: str | None) -> dict[str, Any]:
    files = {name: _json(folder / name) for name in FILES}
    vocabulary = _read(folder, files, pre)
    count = 1 + max(vocabulary.tokens)
    if count > vocab_size:
        raise LoadError(
            f"{folder}: the tokenizer has {count} tokens, the embedding {vocab_size} rows. Use the tokenizer that belongs to these weights."
        )
    ids = range(vocab_size)
    metadata: dict[str, Any] = {"tokenizer.ggml.model": vocabulary.model}
    if vocabulary.pre is not None:
        metadata["tokenizer.ggml.pre"] = vocabulary.pre
    metadata["tokenizer.ggml.tokens"] = [vocabulary.tokens.get(i, f"[PAD{i}]") for i in ids]
    if vocabulary.scores is not None:
        scores = [vocabulary.scores.get(i, _FAR) for i in ids]
        metadata["tokenizer.ggml.scores"] = np.array(scores, np.float32)
    metadata["tokenizer.ggml.token_type"] = np.array([vocabulary.types.get(i, UNUSED) for i in ids], np.int32)
    if vocabulary.merges is not None:
        metadata["tokenizer.ggml.merges"] = vocabulary.merges
    if vocabulary.add_space_prefix is not None:
        metadata["tokenizer.ggml.add_space_prefix"] = vocabulary.add_space_prefix
    return metadata | dict(vocabulary.more) | _special(vocabulary, files) | _templates(folder)


def _read(folder: Path, files: Mapping[str, Any], pre: str | None) -> Vocabulary:
    model = files["tokenizer.json"].get("model", {})
    if (folder / "tokenizer.model").exists():
        vocabulary = _from_sentencepiece(folder / "tokenizer.model")
    elif not model:
        if (folder / "tokenizer.json").exists():
            raise TokenizerError(f"{folder / 'tokenizer.json'} has no model: no tokens and no merges. Fetch it again from the model's repository.")  # fmt: skip
        raise ModelNotFoundError(f"{folder}: no tokenizer.json and no tokenizer.model; copy the tokenizer there.")
    elif model.get("type", "BPE") == "BPE" and "merges" in model:
        vocabulary = _from_bpe(folder, files["tokenizer.json"], pre)
    elif model.get("type") == "WordPiece":
        vocabulary = _from_wordpiece(files["tokenizer.json"], files["config.json"])
    else:
        raise UnsupportedError(
            f"{folder / 'tokenizer.json'}: a tokenizer of type {model.get('type')!r}; convert knows BPE, SentencePiece and WordPiece."
        )
    for id_, text, special in _added(folder, files):
        vocabulary.tokens[id_] = text
        control = special or _LOOKS_LIKE_CONTROL.fullmatch(text)
        if vocabulary.types.get(id_) not in (UNKNOWN, BYTE):
            vocabulary.types[id_] = CONTROL if control else USER_DEFINED
    return vocabulary


def _from_bpe(folder: Path, tokenizer: Mapping[str, Any], pre: str | None) -> Vocabulary:
    """A `tokenizer.json` of type BPE: over bytes spelled as characters (GPT-2), or over characters with bytes to fall back on."""
    model = tokenizer["model"]
    tokens = {int(i): text for text, i in model["vocab"].items()}
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    if not model.get("byte_fallback"):
        if pre is not None:
            pre_tokenizer(pre, str(folder))  # which refuses a name that nothing would read
        name = pre or derive_pre(folder / "tokenizer.json")
        return Vocabulary("gpt2", tokens, dict.fromkeys(tokens, NORMAL), merges=merges, pre=name)
    # SPM merges the pair with the best score, so a piece's score is the rank of the first merge that makes it.
    rank: dict[str, int] = {}
    for i, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        rank.setdefault(left + right, i)
    scores = {i: float(-rank[text]) if text in rank else _FAR for i, text in tokens.items()}
    types = {i: BYTE if re.fullmatch(r"<0x[0-9A-F]{2}>", text) else NORMAL for i, text in tokens.items()}
    if (unk := model["vocab"].get(model.get("unk_token"))) is not None:
        types[unk] = UNKNOWN
    return Vocabulary("llama", tokens, types, scores, add_space_prefix=_adds_space(tokenizer))


def _from_wordpiece(tokenizer: Mapping[str, Any], config: Mapping[str, Any]) -> Vocabulary:
    """BERT's: GGUF marks where a word begins, and not, as WordPiece does, where it goes on."""
    model = tokenizer["model"]
    prefix = model.get("continuing_subword_prefix", "##")
    tokens = {i: t.removeprefix(prefix) if t.startswith(prefix) else _SPACE + t for t, i in model["vocab"].items()}
    normalizer = next(
        (s for s in _steps(tokenizer.get("normalizer"), "normalizers") if s["type"] == "BertNormalizer"), {}
    )
    lowercase = bool(normalizer.get("lowercase"))
    accents = normalizer.get("strip_accents")
    key = "tokenizer.ggml."
    more = {
        f"{key}normalizer.lowercase": lowercase,
        f"{key}normalizer.strip_accents": lowercase if accents is None else bool(accents),
        f"{key}token_type_count": np.uint32(config.get("type_vocab_size", 1)),
    }
    return Vocabulary("bert", tokens, dict.fromkeys(tokens, NORMAL), more=more)


def _adds_space(tokenizer: Mapping[str, Any]) -> bool:
    steps = [
        *_steps(tokenizer.get("normalizer"), "normalizers"),
        *_steps(tokenizer.get("pre_tokenizer"), "pretokenizers"),
    ]
    return any(
        s["type"] == "Prepend" or (s["type"] == "Metaspace" and s.get("prepend_scheme", "always") != "never")
        for s in steps
    )


def _steps(step: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    if step is None:
        return []
    return [s for part in step[inner] for s in _steps(part, inner)] if step["type"] == "Sequence" else [step]


def _from_sentencepiece(path: Path) -> Vocabulary:
    model = read_sentencepiece(path)
    if model.model_type == UNIGRAM:
        raise UnsupportedError(
            f"{path}: a Unigram vocabulary; convert knows SentencePiece of type BPE (Llama, Mistral)."
        )
    return Vocabulary(
        "llama",
        dict(enumerate(model.texts)),
        dict(enumerate(model.types)),
        dict(enumerate(model.scores)),
        add_space_prefix=model.add_dummy_prefix,
    )


def _added(folder: Path, files: Mapping[str, Any]) -> Iterator[tuple[int, str, bool]]:
    """Tokens beside the vocabulary proper, as (id, text, special); the later files of Hugging Face win."""
    for text, id_ in _json(folder / "added_tokens.json").items():
        yield int(id_), text, False
    for token in files["tokenizer.json"].get("added_tokens", []):
        yield int(token["id"]), token["content"], bool(token.get("special"))
    for id_, token in files["tokenizer_config.json"].get("added_tokens_decoder", {}).items():
        yield int(id_), token["content"], bool(token.get("special"))


def _special(vocabulary: Vocabulary, files: Mapping[str, Any]) -> dict[str, Any]:
    """Ids of the tokens with a role, and whether encoding adds the first and last of them."""
    id_of = {text: i for i, text in vocabulary.tokens.items()}
    settings, config = files["tokenizer_config.json"], files["config.json"]
    ids: dict[str, int] = {}
    for role, key in _ROLES.items():
        token = settings.get(f"{role}_token")
        text = token.get("content") if isinstance(token, dict) else token
        stated = id_of.get(text) if text is not None else config.get(f"{role}_token_id")
        if isinstance(stated, int) and stated in vocabulary.tokens:
            ids[key] = stated
    ends = _ends(config, files["generation_config.json"])
    if ends:
        ids.setdefault("eos", ends[0])
    others = [i for i in ends if i != ids.get("eos")]
    for i in sorted(others, key=lambda i: "eom" not in vocabulary.tokens.get(i, "")):
        role = "eom" if "eom" in vocabulary.tokens.get(i, "") else "eot"
        ids.setdefault(role, i)
    for i in set(others) - set(ids.values()):
        text = vocabulary.tokens.get(i)
        warnings.warn(
            f"token {i} ({text!r}) ends an answer too, which GGUF has no key for; chat with --model-path to keep it",
            stacklevel=4,
        )
    if vocabulary.model == "bert" and "cls" in ids:
        ids.setdefault("bos", ids["cls"])
    metadata: dict[str, Any] = {f"tokenizer.ggml.{key}_token_id": np.uint32(i) for key, i in ids.items()}
    for role in ("bos", "eos"):
        adds = _adds(role, ids.get(role), vocabulary, files)
        if adds is not None:
            metadata[f"tokenizer.ggml.add_{role}_token"] = adds
    return metadata


def _ends(config: Mapping[str, Any], generation: Mapping[str, Any]) -> list[int]:
    """Every id that ends an answer."""
    found = generation.get("eos_token_id", config.get("eos_token_id"))
    return [found] if isinstance(found, int) else list(found or [])


def _adds(role: str, id_: int | None, vocabulary: Vocabulary, files: Mapping[str, Any]) -> bool | None:
    """Whether the tokenizer puts `role` around a text: its own flag for Llama's class, else what its template does."""
    settings = files["tokenizer_config.json"]
    stated = settings.get(f"add_{role}_token")
    if isinstance(stated, bool) and (
        "Llama" in settings.get("tokenizer_class", "") or not files["tokenizer.json"].get("post_processor")
    ):
        return stated
    if not files["tokenizer.json"]:
        return role == "bos"  # SentencePiece's own habit, as the Llama class has it
    templates = [
        s
        for s in _steps(files["tokenizer.json"].get("post_processor"), "processors")
        if s["type"] == "TemplateProcessing"
    ]
    if id_ is None:
        return False
    edge: Callable[[list[Any]], Any] = (lambda steps: steps[0]) if role == "bos" else (lambda steps: steps[-1])
    return any(edge(t["single"]).get("SpecialToken", {}).get("id") == vocabulary.tokens[id_] for t in templates)


def _templates(folder: Path) -> dict[str, str]:
    """Chat templates; named ones keep their names."""
    key, found = "tokenizer.chat_template", templates_from_files(auxiliary_files(folder))
    return {key if name == "default" else f"{key}.{name}": text for name, text in found.by_name.items()}


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, empty when there is no such file."""
    return read_json(path) if path.is_file() else {}
