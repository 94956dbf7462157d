"""The vocabulary a tokenizer is built from: read from GGUF metadata, checked, with the defaults of its kind.

Keys, defaults and the texts that end a generation are facts from llama.cpp (src/llama-vocab.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import TokenizerError

# Token types of `tokenizer.ggml.token_type`, the numbers of SentencePiece.
UNDEFINED, NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(7)

NO_TOKEN = 0xFFFFFFFF  # how files write "there is none"
PREFIX = "tokenizer.ggml."
ID_KEYS = {
    "bos": ("bos_token_id",),
    "eos": ("eos_token_id",),
    "eot": ("eot_token_id",),
    "eom": ("eom_token_id",),
    "unk": ("unknown_token_id",),
    "sep": ("seperator_token_id",),
    "pad": ("padding_token_id",),
    "mask": ("mask_token_id",),
    "fim_pre": ("fim_pre_token_id", "prefix_token_id"),
    "fim_suf": ("fim_suf_token_id", "suffix_token_id"),
    "fim_mid": ("fim_mid_token_id", "middle_token_id"),
    "fim_pad": ("fim_pad_token_id",),
    "fim_rep": ("fim_rep_token_id",),
    "fim_sep": ("fim_sep_token_id",),
}
# Tokens known by their text where the file names none; the first that exists counts.
ID_TEXTS = {
    "eot": (
        *(
            "<|eot_id|>",
            "<|im_end|>",
            "<|end|>",
            "<end_of_turn>",
            "<|endoftext|>",
            "<|end_of_text|>",
            "<EOT>",
            "_<EOT>",
        ),
        *("[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>"),
    ),
    "eom": ("<|eom_id|>",),
    "fim_pre": (
        *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>"),
        "<|prefix|>",
    ),
    "fim_suf": (
        *("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>"),
        "<|suffix|>",
    ),
    "fim_mid": (
        *("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>"),
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
END_TEXTS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
    *(
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
    ),
    *("<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["),
)
SHOWN_TEXTS = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")  # gpt-oss: structure that callers parse


@dataclass(frozen=True)
class Kind:
    """Defaults of one `tokenizer.ggml.model`."""

    algorithm: str
    ids: Mapping[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False


KINDS = {
    "llama": Kind("spm", {"bos": 1, "eos": 2, "unk": 0}, add_bos=True, add_space_prefix=True),
    "gpt2": Kind("bpe"),
    "gemma4": Kind("bpe"),
    "whitespace": Kind("bpe"),
    "bert": Kind("wpm", {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103}, add_bos=True),
    "t5": Kind("ugm", {"eos": 1, "unk": 2, "pad": 0}, add_eos=True),
    "rwkv": Kind("rwkv"),
    "plamo2": Kind("plamo2", {"bos": 1, "eos": 2, "unk": 0, "pad": 3}),
}


@dataclass(frozen=True, eq=False)
class Vocab:
    """A checked vocabulary: texts, types and scores of its tokens, the special ids, and what is added around a text."""

    file: str  # for messages
    model: str  # tokenizer.ggml.model
    kind: Kind
    tokens: Sequence[str]
    types: NDArray[np.uint8]  # [n_tokens], as the file says
    scores: NDArray[np.float32]  # [n_tokens]
    ids: Mapping[str, int]  # "bos", "eos", "eot", ...: only those there are
    eos_ids: frozenset[int]
    control_ids: frozenset[int]  # hidden from text, never made from text unless asked for
    user_ids: frozenset[int]  # matched in a text before anything else
    unused_ids: frozenset[int]
    add_bos: bool | None  # None: the file does not say
    add_eos: bool
    add_space_prefix: bool
    index: Mapping[str, int]  # text -> id


def vocab_from_metadata(metadata: Mapping[str, Any], file: str) -> Vocab:
    """The vocabulary in GGUF metadata; TokenizerError naming file, key, found, expected and remedy."""
    model = metadata.get(PREFIX + "model")
    if model is None:
        raise TokenizerError(
            f"{file}: tokenizer.ggml.model is missing, so the file carries no tokenizer. "
            "Give the directory that has one: model_path=..., or Tokenizer.from_pretrained(dir)."
        )
    if model in ("none", "no_vocab"):
        raise TokenizerError(
            f"{file}: tokenizer.ggml.model is {model!r}: the file was made without a vocabulary. "
            "Give the directory that has one: model_path=..., or Tokenizer.from_pretrained(dir)."
        )
    if model not in KINDS:
        raise TokenizerError(
            f"{file}: tokenizer.ggml.model is {model!r}; known are {', '.join(sorted(KINDS))}. "
            "Give a directory with tokenizer.json instead: model_path=..., or Tokenizer.from_pretrained(dir)."
        )
    kind = KINDS[model]
    tokens = _tokens(metadata, file)
    kinds = _numbers(metadata, file, "token_type", len(tokens), np.integer, NORMAL)
    types = np.where((kinds >= 0) & (kinds <= BYTE), kinds, UNDEFINED).astype(np.uint8)
    scores = _numbers(metadata, file, "scores", len(tokens), np.number, 0).astype(np.float32)
    ids = _special_ids(metadata, file, kind, len(tokens))
    return make_vocab(
        file,
        kind,
        model,
        tokens,
        types,
        scores,
        ids,
        add_bos=flag(metadata, file, "add_bos_token", None if kind.algorithm == "bpe" else kind.add_bos),
        add_eos=bool(flag(metadata, file, "add_eos_token", kind.add_eos)),
        add_space_prefix=bool(flag(metadata, file, "add_space_prefix", kind.add_space_prefix)),
    )


def make_vocab(
    file: str,
    kind: Kind,
    model: str,
    tokens: Sequence[str],
    types: NDArray[np.uint8],
    scores: NDArray[np.float32],
    ids: Mapping[str, int],
    *,
    add_bos: bool | None,
    add_eos: bool,
    add_space_prefix: bool,
) -> Vocab:
    """A `Vocab` of checked parts: finds the tokens known by their text, and the sets of special ids."""
    index = dict(zip(tokens, range(len(tokens)), strict=True))
    if len(index) != len(tokens):
        raise TokenizerError(
            f"{file}: {_first_duplicate(tokens)}. The file is damaged or was badly converted: make it again."
        )
    ids = {**{name: i for name, i in kind.ids.items() if i < len(tokens)}, **ids}
    ids = {name: i for name, i in ids.items() if i >= 0}
    control = set(np.flatnonzero((types == CONTROL) | (types == UNKNOWN)).tolist())
    user = set(np.flatnonzero(types == USER_DEFINED).tolist())
    for name, texts in ID_TEXTS.items():
        found = next((index[t] for t in texts if t in index), None) if name not in ids else None
        if found is not None:
            ids[name] = found
            control.add(found)
    ends = _end_ids(tokens, index, ids)
    control |= {index[t] for t in END_TEXTS if index.get(t) in ends}
    shown = {index[t] for t in SHOWN_TEXTS if t in index}
    if index.get("<|end|>") is not None and index["<|end|>"] not in ends:
        shown.add(index["<|end|>"])
    control -= shown
    user = (user | shown) - control
    unused = set(np.flatnonzero(types == UNUSED).tolist()) | {i for i in control if "unused" in tokens[i]}
    return Vocab(
        file=file,
        model=model,
        kind=kind,
        tokens=tokens,
        types=types,
        scores=scores,
        ids=ids,
        eos_ids=frozenset(ends),
        control_ids=frozenset(control),
        user_ids=frozenset(user),
        unused_ids=frozenset(unused),
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=add_space_prefix,
        index=index,
    )


def _end_ids(tokens: Sequence[str], index: Mapping[str, int], ids: Mapping[str, int]) -> set[int]:
    """Every id that ends a generation: those the file names and those known by their text."""
    ends = {index[t] for t in END_TEXTS if t in index}
    ends |= {ids[name] for name in ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep") if name in ids}
    texts = {tokens[i] for i in ends}
    if "<|end|>" in texts and (
        {"<|return|>", "<|call|>"} <= texts or (texts & {"<|call|>", "<|calls|>"} and "<|flush|>" in texts)
    ):
        ends.discard(index["<|end|>"])  # gpt-oss, solar: the end of a message, not of the answer
    if "</s>" in texts and texts & {"<|tool_response>", "<|plamo:eos|>"}:
        ends.discard(index["</s>"])
    return ends


def _tokens(metadata: Mapping[str, Any], file: str) -> list[str]:
    key = PREFIX + "tokens"
    tokens = metadata.get(key)
    if tokens is None:
        raise TokenizerError(
            f"{file}: {key} is missing; expected an array of strings. "
            "The file is incomplete: convert it again, or give the tokenizer's directory as model_path."
        )
    if not _is_strings(tokens):
        raise TokenizerError(
            f"{file}: {key} is {_describe(tokens)}; expected an array of strings. Convert the file again."
        )
    if "" in tokens:
        return [t or f"[EMPTY_{i}]" for i, t in enumerate(tokens)]
    return list(tokens)


def _numbers(metadata: Mapping[str, Any], file: str, name: str, n: int, kind: type, default: int) -> NDArray[Any]:
    key = PREFIX + name
    values = metadata.get(key)
    if values is None:
        return np.full(n, default)
    array = np.asarray(values)
    if array.ndim != 1 or not np.issubdtype(array.dtype, kind):
        want = "integers" if kind is np.integer else "numbers"
        raise TokenizerError(
            f"{file}: {key} is {_describe(values)}; expected an array of {want}. Convert the file again."
        )
    if len(array) < n:
        raise TokenizerError(
            f"{file}: {key} has {len(array)} entries, tokenizer.ggml.tokens has {n}; expected one for each token. Convert the file again."
        )
    return array[:n]


def _special_ids(metadata: Mapping[str, Any], file: str, kind: Kind, n_tokens: int) -> dict[str, int]:
    ids: dict[str, int] = {}
    keys = dict(ID_KEYS)
    if kind.algorithm == "wpm":
        keys["bos"] = ("bos_token_id", "cls_token_id")
    for name, candidates in keys.items():
        key = next((PREFIX + k for k in candidates if PREFIX + k in metadata), None)
        if key is None:
            continue
        i = metadata[key]
        if isinstance(i, bool) or not isinstance(i, (int, np.integer)):
            raise TokenizerError(f"{file}: {key} is {_describe(i)}; expected a token id. Convert the file again.")
        if i in (-1, NO_TOKEN):
            ids[name] = -1  # explicitly none: no default either
        elif 0 <= i < n_tokens:
            ids[name] = int(i)
        else:
            raise TokenizerError(
                f"{file}: {key} is {i}; the vocabulary has {n_tokens} tokens, so expected 0 to {n_tokens - 1}. "
                "Correct the key, or give the tokenizer's directory as model_path."
            )
    return ids


def flag(metadata: Mapping[str, Any], file: str, name: str, default: bool | None) -> bool | None:
    """A yes-or-no key of the tokenizer; TokenizerError where it is something else."""
    value = metadata.get(PREFIX + name, default)
    if value is not None and not isinstance(value, (bool, np.bool_)):
        raise TokenizerError(f"{file}: {PREFIX}{name} is {_describe(value)}; expected true or false. Correct the key.")
    return value if value is None else bool(value)


def is_text(text: str) -> bool:
    """Whether `text` is whole UTF-8; the reader keeps other bytes as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_strings(values: Any) -> bool:
    return (
        isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0 and isinstance(values[0], str)
    )


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {len(value)} {value.dtype}"
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return f"an array of {len(value)} {type(value[0]).__name__}" if len(value) else "an empty array"
    return f"{type(value).__name__} {value!r:.60}"


def _first_duplicate(tokens: Sequence[str]) -> str:
    seen: dict[str, int] = {}
    for i, t in enumerate(tokens):
        if t in seen:
            return f"tokens {seen[t]} and {i} are both {t!r}; expected different texts"
        seen[t] = i
    return "tokens repeat"
