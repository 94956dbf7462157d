"""What a conversion will write, resolved from headers alone: metadata, and every tensor with its source and type."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.archs import SPECS, ArchSpec, Hyperparameters, Slot
from qtransformers.convert.pooling import pooling
from qtransformers.convert.pre import check_round_trip
from qtransformers.convert.vocabulary import tokenizer_metadata
from qtransformers.convert.weights import stored_type
from qtransformers.errors import ConfigError, LoadError, ModelNotFoundError, UnsupportedError
from qtransformers.load.checkpoint import Stored, interleave, open_checkpoint
from qtransformers.load.config import (
    generation_from_json,
    generation_metadata,
    hparams_from_config,
    read_json,
    text_config,
)
from qtransformers.types import BY_NAME, QuantType

# Asked-for type -> general.file_type of llama.cpp (llama_ftype)
FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7}
QUANTIZATION_VERSION = 2  # of the block formats, unchanged since 2023
# Tensors old checkpoints carry that follow from the config.
DERIVED = ("rotary_emb.inv_freq", "attention.masked_bias")


@dataclass(frozen=True, eq=False)
class Target:
    """A tensor of the file to be: name, type and shape there, and where its values come from."""

    name: str
    type: QuantType
    shape: tuple[int, ...]
    source: (
        tuple[Stored, ...] | NDArray[np.float32]
    )  # tensors of the checkpoint one after the other, or values from its config
    order: NDArray[np.intp] | None = None  # the rows' order in the file, where it is another
    values: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = (
        None  # what becomes of the checkpoint's values
    )

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return self.type.row_bytes(self.shape[-1]) * int(np.prod(self.shape[:-1], dtype=np.int64))


@dataclass(frozen=True, eq=False)
class ConversionPlan:
    """Everything that will be written."""

    folder: Path
    metadata: dict[str, Any]
    tensors: tuple[Target, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of tensor data."""
        return sum(t.nbytes for t in self.tensors)


def plan_conversion(
    model_path: str | Path, type: str = "Q8_0", *, name: str | None = None, pre: str | None = None
) -> ConversionPlan:
    """What converting the Hugging Face model in the folder `model_path` to `type` will write.

    `name` becomes general.name (default: the folder's), `pre` overrides the derived pre-tokenizer. Raises
    ModelNotFoundError, UnsupportedError, ConfigError, or LoadError listing every tensor that is missing, unknown or mis-shaped.
    """
    folder = Path(model_path)
    wanted = BY_NAME.get(type.upper())
    if wanted is None or wanted.name not in FILE_TYPES:
        raise ConfigError(f"type is {type!r}; convert writes {', '.join(FILE_TYPES)}.")
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"{folder}: no config.json; expected the folder of a Hugging Face model.")
    config = {**text_config(read_json(folder / "config.json")), **pooling(folder)}
    spec = _spec_for(config, folder)
    stored = _renamed(spec, open_checkpoint(folder))
    rows = stored.get(spec.tensors[0].hf + ".weight")
    hparams = hparams_from_config(spec, config, str(folder / "config.json"))
    targets = tuple(_targets(spec, hparams, config, stored, wanted, folder))
    n_vocab = rows.shape[0] if rows is not None else hparams["vocab_size"]
    n_parameters = sum(int(np.prod(t.shape)) for t in targets)
    metadata = {
        "general.architecture": spec.id,
        "general.type": "model",
        "general.name": name or folder.resolve().name,
        "general.size_label": size_label(n_parameters),
        "general.file_type": np.uint32(FILE_TYPES[wanted.name]),
        "general.quantization_version": np.uint32(QUANTIZATION_VERSION),
        **_hparam_metadata(spec, hparams),
        **_recommendations(folder, n_vocab),
        **tokenizer_metadata(folder, n_vocab, pre),
    }
    if pre is None:
        check_round_trip(folder, metadata)
    return ConversionPlan(folder, metadata, targets)


def size_label(n_parameters: int) -> str:
    """A count of parameters as names of files have it: 3.7M, 8B, 1.5B."""
    value, units = float(n_parameters), ["T", "B", "M", "K", ""]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop()
    unit = units[-1]
    return f"{value:.0f}{unit}" if value >= 9.95 or not unit else f"{value:.1f}{unit}".replace(".0", "")


def _spec_for(config: Mapping[str, Any], folder: Path) -> ArchSpec:
    model_type = config.get("model_type")
    known = {hf: spec for spec in SPECS.values() for hf in spec.hf_model_types}
    if model_type not in known:
        raise UnsupportedError(
            f"{folder / 'config.json'}: model_type is {model_type!r}; convert knows {', '.join(sorted(known))}."
        )
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
        raise UnsupportedError(
            f"{folder / 'config.json'}: its weights are already quantised ({method}). Convert the original model instead."
        )
    return known[model_type]


def _hparam_metadata(spec: ArchSpec, hparams: Hyperparameters) -> dict[str, Any]:
    """The hyperparameters as metadata; those that do not apply, and those that are off by default, are left out."""
    kinds = {int: np.uint32, float: np.float32, str: str, bool: bool}
    found = {}
    for p in spec.hparams:
        value = hparams.get(p.name)
        off = not p.required and value == p.default and (p.kind is bool or p.default in (0, "none"))
        if value is None or off or (p.applies and not p.applies(hparams)):
            continue
        found[f"{spec.id}.{p.key}"] = kinds[p.kind](value)
    return found


def _recommendations(folder: Path, n_vocab: int) -> dict[str, Any]:
    """How the model's authors sample, as metadata."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    found = generation_metadata(generation_from_json(read_json(path), n_vocab, str(path)))
    return {key: np.uint32(v) if isinstance(v, int) else np.float32(v) for key, v in found.items()}


def _targets(
    spec: ArchSpec,
    hparams: Hyperparameters,
    config: Mapping[str, Any],
    stored: Mapping[str, Stored],
    wanted: QuantType,
    folder: Path,
) -> Iterator[Target]:
    tied = config.get("tie_word_embeddings", spec.hf_tied) is True
    problems = []
    known = set(_hf_names(spec, hparams))
    for name in stored:
        if name not in known and not name.endswith(DERIVED) and not _predicts_ahead(name, hparams, config):
            problems.append(_misplaced(stored[name], spec))
    for slot in spec.slots(hparams):
        if slot.part == "weight" and slot.spec.from_config is not None:
            if (values := slot.spec.from_config(config, hparams)) is not None:
                yield Target(slot.name, BY_NAME["F32"], values.shape, values)
            continue
        shape = slot.shape(hparams)
        sources = [stored[name] for name in slot.hf_names(hparams) if name in stored]
        if len(sources) < len(slot.hf_names(hparams)) or not sources:
            problems += _absent(slot, config, tied, folder)
            continue
        if slot.presence == "never":
            problems.append(_misplaced(sources[0], spec))
            continue
        if tied and slot.spec.on_absent.startswith("tie:"):
            continue  # a copy of the tensor it is tied to
        each = shape[1:] if "{e}" in slot.spec.hf else shape
        change = partial(_changed, slot.spec.hf_values, hparams) if slot.spec.hf_values else None
        for source in sources:
            found = source.shape if change is None else _shape_after(change, source.shape)
            if found != each:
                problems.append(
                    f"{source.file}: {source.name} is {list(source.shape)}; config.json makes it {list(each)}"
                )
        order = interleave(shape[0], hparams[slot.spec.permute]) if slot.spec.permute else None
        yield Target(slot.name, stored_type(wanted, slot.spec.role, shape), shape, tuple(sources), order, change)
    if problems:
        raise LoadError("\n  ".join((f"{folder}: weights and config.json do not fit together.", *problems)))


def _predicts_ahead(name: str, hparams: Hyperparameters, config: Mapping[str, Any]) -> bool:
    """Whether a tensor is of the layers behind the last that guess tokens further ahead, which we do without."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    return bool(config.get("num_nextn_predict_layers") and layer and int(layer[1]) >= hparams["n_layers"])


def _hf_names(spec: ArchSpec, hparams: Hyperparameters) -> Iterator[str]:
    return (name for slot in spec.slots(hparams) for name in slot.hf_names(hparams))


def _changed(change: Callable[[Any, Any], Any], hparams: Hyperparameters, values: Any) -> Any:
    return change(values, hparams)


def _shape_after(change: Callable[[Any], Any], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that `change` makes of `shape`; () where it cannot."""
    try:
        return tuple(change(np.broadcast_to(np.float32(0), shape)).shape)
    except ValueError:
        return ()


def _renamed(spec: ArchSpec, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """The checkpoint's tensors by the names of the spec, without those of other parts of a model."""
    found = {}
    for name, tensor in stored.items():
        for pattern, replacement in spec.hf_names:
            name = re.sub(pattern, replacement, name)
        if name:
            found[name] = tensor
    return found


def _misplaced(tensor: Stored, spec: ArchSpec) -> str:
    return f"{tensor.file}: {tensor.name} has no place in a {spec.id} model"


def _absent(slot: Slot, config: Mapping[str, Any], tied: bool, folder: Path) -> list[str]:
    """What is wrong with a checkpoint that lacks this tensor, if anything."""
    needed = slot.presence == "required"
    if slot.part == "bias":
        needed = slot.presence == "required" or (slot.presence == "optional" and config.get(slot.spec.hf_bias) is True)
    elif slot.spec.on_absent.startswith("tie:"):
        needed = not tied
    return [f"{folder}: {slot.hf} is missing"] if needed else []
