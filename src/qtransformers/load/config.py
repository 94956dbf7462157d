"""config.json and generation_config.json: what they say about a model, and whether a GGUF file agrees."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qtransformers.archs.hparams import BadValue, Hyperparameters, Spoken, checked, read_hparams
from qtransformers.archs.spec import ArchSpec, HParam, Problem
from qtransformers.checks import shown
from qtransformers.errors import LoadError, ModelNotFoundError, UnsupportedError
from qtransformers.load.files import lfs_remedy, pointer_size
from qtransformers.load.findings import Findings

JSON_LIMIT = 256 << 20  # bytes; the largest tokenizer.json in use have about 35 MB
REFETCH = "Fetch the file again from the model's repository"
OTHER_MODEL = "They belong to different models: pass the config of this one"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; LoadError naming the file when it holds none, ModelNotFoundError for a git-LFS pointer."""
    return read_json_value(path, dict)


def read_json_value(path: Path, kind: type) -> Any:
    """The list or object in a JSON file, errors as `read_json`."""
    if pointer_size(path) is not None:
        raise ModelNotFoundError(
            f"{path} is a git-LFS pointer, not the file itself. {lfs_remedy([path.name], path.parent)}"
        )
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise LoadError(f"{path} has {path.stat().st_size} bytes; expected JSON of at most {JSON_LIMIT}.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise LoadError(f"{path} is no valid JSON ({e}). Fetch it again from the model's repository.") from e
    if not isinstance(value, kind):
        what = "object" if kind is dict else "list"
        raise LoadError(f"{path} holds a {type(value).__name__}; expected a JSON {what}. Fetch it again.")
    return value


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of config.json that describes the language model, which multimodal models keep in `text_config`."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, Mapping) else config


def spoken(spec: ArchSpec, config: Mapping[str, Any], file: str) -> tuple[dict[str, Spoken], list[Problem]]:
    """The hyperparameters config.json gives, by our names and in GGUF's words, and what is wrong with them."""
    said: dict[str, Spoken] = {}
    problems = []
    for p in spec.hparams if config else ():
        for source in p.hf:
            key = source if isinstance(source, str) else source.__name__
            try:
                found, value = _look_up(config, source) if isinstance(source, str) else (True, source(config))
                if isinstance(value, str) or value is None:
                    value = p.hf_values.get(value, value)
                if not found or value is None:
                    continue
                said[p.name] = Spoken(checked(p, value), key)
            except BadValue as e:
                said[p.name] = Spoken(None, key)
                problems.append(e.problem(f"{file}: {key}", REFETCH))
            except (ArithmeticError, KeyError, TypeError, ValueError) as e:
                text = f"cannot be read: what it is computed from is missing or garbled ({type(e).__name__}: {e}). {REFETCH}"
                said[p.name] = Spoken(None, key)
                problems.append(Problem(f"{file}: {key} {text}."))
            break
    return said, problems


def hparams_from_config(spec: ArchSpec, config: Mapping[str, Any], file: str) -> Hyperparameters:
    """The hyperparameters of a model that exists as a checkpoint only; LoadError or UnsupportedError listing what is wrong."""
    config = text_config(config)
    said, problems = spoken(spec, config, file)
    hparams, more = read_hparams(spec, file, {}, config=said)
    raise_problems(f"{file} does not describe a model we can run", [*problems, *more, *_fixed(spec, config, file)])
    return hparams


def disagreements(
    spec: ArchSpec,
    hparams: Mapping[str, Any],
    gguf_file: str,
    architecture: str,
    said: Mapping[str, Spoken],
    config: Mapping[str, Any],
    config_file: str,
) -> Iterator[Problem]:
    """Everything a GGUF file and config.json say differently that changes the maths."""
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type not in spec.hf_model_types:
        yield Problem(
            f"{gguf_file}: general.architecture is {architecture}; {config_file}: model_type is {shown(model_type)}, "
            f"expected {' or '.join(spec.hf_model_types)}. {OTHER_MODEL}."
        )
    yield from _fixed(spec, config, config_file)
    for p in spec.hparams:
        if p.name not in said or p.name not in hparams or not _applies(p, hparams):
            continue
        ours, theirs = hparams[p.name], said[p.name]
        if theirs.value is None:
            continue
        if not _agree(p, ours, theirs.value):
            yield Problem(_difference(p, gguf_file, architecture, ours, config_file, theirs))


def tensor_disagreements(
    spec: ArchSpec,
    hparams: Mapping[str, Any],
    tensors: Mapping[str, Any],
    gguf_file: str,
    config: Mapping[str, Any],
    config_file: str,
) -> Iterator[Problem]:
    """Tensors whose presence or values config.json decides: biases, a tied output, computed rope factors."""
    findings = Findings()
    for slot in spec.slots(hparams):
        t, present = slot.spec, slot.name in tensors
        if slot.part == "bias":
            wanted = config.get(t.hf_bias)
            if t.bias == "optional" and isinstance(wanted, bool) and wanted != present:
                state, says = ("is there" if present else "is absent"), str(wanted).lower()
                findings.add(slot.name, f"{state}; {config_file}: {t.hf_bias} is {says}. {OTHER_MODEL}.")
        elif t.on_absent.startswith("tie:") and not present and config.get("tie_word_embeddings") is False:
            findings.add(slot.name, f"is absent; {config_file}: tie_word_embeddings is false. {OTHER_MODEL}.")
        elif t.from_config is not None:
            text = _computed_differs(t.from_config, config, hparams, tensors.get(slot.name), config_file)
            if text:
                findings.add(slot.name, f"{text}. {OTHER_MODEL}.")
    for p in findings.problems():
        yield Problem(f"{gguf_file}: {p.text}", p.grade)


def raise_problems(headline: str, problems: Iterable[Problem]) -> None:
    """One error with every problem that is more than a warning; UnsupportedError when that is all it takes."""
    grave = [p for p in problems if p.grade != "warning"]
    if grave:
        kind = UnsupportedError if all(p.grade == "unsupported" for p in grave) else LoadError
        lines = list(dict.fromkeys(p.text for p in grave))
        raise kind(lines[0] if len(lines) == 1 else "\n  ".join((f"{headline}, {len(lines)} problems:", *lines)))


def _look_up(config: Mapping[str, Any], key: str) -> tuple[bool, Any]:
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False, None
        value = value[part]
    return True, value


def _applies(p: HParam, hparams: Mapping[str, Any]) -> bool:
    try:
        return p.applies is None or bool(p.applies(hparams))
    except KeyError:
        return False  # what decides it is missing or wrong, and reported already


def _agree(p: HParam, ours: Any, theirs: Any) -> bool:
    if p.agree == "free":
        return True
    if p.agree == "at_most":
        return bool(theirs <= ours)
    if p.kind is float:
        return math.isclose(ours, theirs, rel_tol=1e-6)  # the file keeps 32 bits
    return bool(ours == theirs)


def _difference(p: HParam, gguf_file: str, architecture: str, ours: Any, config_file: str, theirs: Spoken) -> str:
    if p.rows_of:
        return (
            f"{gguf_file}: {p.rows_of} has {ours} rows; {config_file}: {theirs.key} is {theirs.value}, "
            f"more than there are embeddings. {OTHER_MODEL}."
        )
    return (
        f"{gguf_file}: {architecture}.{p.key} is {_number(ours)}; "
        f"{config_file}: {theirs.key} is {_number(theirs.value)}. {OTHER_MODEL}."
    )


def _number(value: Any) -> str:
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _fixed(spec: ArchSpec, config: Mapping[str, Any], file: str) -> Iterator[Problem]:
    for key, allowed in spec.hf_fixed.items():
        if config.get(key) is not None and config[key] not in allowed:
            yield Problem(
                f"{file}: {key} is {shown(config[key])}; {spec.id} models here have {' or '.join(map(repr, allowed))}",
                "unsupported",
            )


def _computed_differs(
    compute: Callable[[Mapping[str, Any], Mapping[str, Any]], Any],
    config: Mapping[str, Any],
    hparams: Mapping[str, Any],
    tensor: Any,
    config_file: str,
) -> str:
    """How a tensor differs from the one config.json implies; "" when it does not. Absent means all ones."""
    try:
        with np.errstate(all="ignore"):  # what comes of odd numbers is compared like any
            wanted = compute(config, hparams)
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as e:
        return f"cannot be compared: {config_file} lacks or garbles what it is computed from ({type(e).__name__}: {e})"
    found = None if tensor is None else tensor.dequantize().ravel()
    if wanted is None and found is None:
        return ""
    want = np.ones_like(found) if wanted is None else np.asarray(wanted)
    have = np.ones_like(want) if found is None else found
    if want.shape == have.shape and np.allclose(want, have, rtol=1e-3):
        return ""
    state = "is absent" if found is None else f"has {_ends(have)}"
    return f"{state}; {config_file} asks for {'none' if wanted is None else _ends(want)}"


def _ends(values: Any) -> str:
    return f"{len(values)} factors from {float(values[0]):.4g} to {float(values[-1]):.4g}" if len(values) else "none"


@dataclass(frozen=True)
class GenerationDefaults:
    """What a model's authors recommend; None where they say nothing."""

    eos: tuple[int, ...] = ()  # every id that ends an answer
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    do_sample: bool | None = None
    origin: str = ""  # the file it was read from


# Our name -> key in generation_config.json, key in GGUF metadata, kind, least and greatest value
_RECOMMENDED: dict[str, tuple[str, str, type, float, float]] = {
    "temperature": ("temperature", "general.sampling.temp", float, 0, 100),
    "top_k": ("top_k", "general.sampling.top_k", int, -1, 2**31 - 1),
    "top_p": ("top_p", "general.sampling.top_p", float, 0, 1),
    "min_p": ("min_p", "general.sampling.min_p", float, 0, 1),
    "typical_p": ("typical_p", "", float, 0, 1),
    "repetition_penalty": ("repetition_penalty", "general.sampling.penalty_repeat", float, 1e-3, 100),
    "do_sample": ("do_sample", "", bool, 0, 1),
}
NO_TOKEN = (-1, 0xFFFFFFFF)  # what converters write for a token that a model does not have
EOS_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")


def generation_from_json(config: Mapping[str, Any], n_vocab: int, file: str) -> GenerationDefaults:
    """The defaults of generation_config.json (or the same keys of config.json); LoadError naming a bad value."""
    values = {name: config[row[0]] for name, row in _RECOMMENDED.items() if config.get(row[0]) is not None}
    eos = config.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return _defaults(values, ids, "eos_token_id", n_vocab, file)


def generation_from_gguf(metadata: Mapping[str, Any], n_vocab: int, file: str) -> GenerationDefaults:
    """The defaults a GGUF file carries; LoadError naming a bad value."""
    values = {name: metadata[row[1]] for name, row in _RECOMMENDED.items() if row[1] in metadata}
    ids = [metadata[key] for key in EOS_KEYS if metadata.get(key) not in (None, *NO_TOKEN)]
    return _defaults(values, ids, "eos, eot or eom token id", n_vocab, file)


def merged(first: GenerationDefaults, other: GenerationDefaults) -> GenerationDefaults:
    """The first one's recommendations; ids that end an answer from both."""
    return replace(first, eos=tuple(dict.fromkeys(first.eos + other.eos)))


def generation_metadata(defaults: GenerationDefaults) -> dict[str, Any]:
    """The recommendations as GGUF metadata; those that GGUF has no key for are left out."""
    values = {row[1]: getattr(defaults, name) for name, row in _RECOMMENDED.items() if row[1]}
    if defaults.do_sample is False:
        values["general.sampling.temp"] = 0.0
    return {key: value for key, value in values.items() if value is not None}


def _defaults(values: Mapping[str, Any], ids: list[Any], eos_key: str, n_vocab: int, file: str) -> GenerationDefaults:
    for i in ids:
        if type(i) is not int or not 0 <= i < n_vocab:
            raise LoadError(
                f"{file}: {eos_key} is {shown(i)}; expected ids from 0 to {n_vocab - 1}. Correct it, or pass the file of this model."
            )
    good = {}
    for name, value in values.items():
        row = _RECOMMENDED[name]
        try:
            good[name] = checked(HParam(name, row[0], row[2], minimum=row[3], maximum=row[4]), value)
        except BadValue as e:
            raise LoadError(e.problem(f"{file}: {row[0]}", "Correct it, or pass the file of this model").text) from e
    if "top_k" in good:
        good["top_k"] = max(0, good["top_k"])  # some write -1 for all
    return GenerationDefaults(tuple(dict.fromkeys(ids)), **good, origin=file)
