"""A Hugging Face checkpoint as targets: config.json becomes metadata, and tensors find their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qtransformers.archs import SPECS, ArchSpec, Hyperparameters, Slot
from qtransformers.checks import shown
from qtransformers.convert.methods import Mxfp4, sources_of
from qtransformers.convert.plan import (
    QUANTIZATION_VERSION,
    Asked,
    ConversionPlan,
    Target,
    file_type_of,
    size_label,
    typed,
)
from qtransformers.convert.pooling import pooling
from qtransformers.convert.pre import check_round_trip
from qtransformers.convert.recipes import recipe_of
from qtransformers.convert.sources import Changed, Lying, Picked, Source
from qtransformers.convert.vocabulary import tokenizer_metadata
from qtransformers.errors import LoadError, ModelNotFoundError, QTransformersError, UnsupportedError
from qtransformers.load.checkpoint import interleave, open_checkpoint
from qtransformers.load.config import (
    generation_from_json,
    generation_metadata,
    hparams_from_config,
    read_json,
    text_config,
)
from qtransformers.types import BY_NAME

# Tensors old checkpoints carry that follow from the config.
DERIVED = ("rotary_emb.inv_freq", "attention.masked_bias")
F32 = BY_NAME["F32"]


def plan_checkpoint(folder: Path, asked: Asked) -> ConversionPlan:
    """What converting the Hugging Face model in `folder` will write; errors as for `plan_conversion`."""
    file_type, _ = recipe_of(asked.type)
    if not folder.is_dir():
        raise ModelNotFoundError(f"{folder} is neither a folder nor a file; expected the folder of a Hugging Face model, or a GGUF file.")  # fmt: skip
    if not (folder / "config.json").is_file():
        raise ModelNotFoundError(f"{folder}: no config.json; expected the folder of a Hugging Face model.")
    whole = read_json(folder / "config.json")
    config = {**text_config(whole), **pooling(folder)}
    spec = _spec_for(config, folder)
    said, by = quantization_of(folder, whole, config)
    stored = _renamed(spec, sources_of(open_checkpoint(folder), said, str(by)))
    rows = stored.get(spec.tensors[0].hf + ".weight")
    hparams = hparams_from_config(spec, config, str(folder / "config.json"))
    of_hparams = hparam_metadata(spec, hparams)
    architecture = {"general.architecture": spec.id}
    targets = typed(tuple(_targets(spec, hparams, config, stored, folder)), architecture | of_hparams, asked, kept=F32)
    n_vocab = rows.shape[0] if rows is not None else hparams["vocab_size"]
    metadata = {
        **architecture,
        "general.type": "model",
        "general.name": asked.name or folder.resolve().name,
        "general.size_label": size_label(sum(int(np.prod(t.shape)) for t in targets)),
        "general.file_type": np.uint32(file_type_of(targets, file_type)),
        "general.quantization_version": np.uint32(QUANTIZATION_VERSION),
        **of_hparams,
        **_recommendations(folder, n_vocab),
        **tokenizer_metadata(folder, n_vocab, asked.pre),
    }
    if asked.pre is None:
        check_round_trip(folder, metadata)
    files = tuple(sorted(folder.glob("*.safetensors")))
    return ConversionPlan(folder, metadata, targets, file_type, files, asked.force)


def quantization_of(folder: Path, *configs: Mapping[str, Any]) -> tuple[Any, Path]:
    """How a checkpoint is quantised, None where it is not, and the file that says so: a config, or modelopt's own beside it."""
    said = next((c["quantization_config"] for c in configs if "quantization_config" in c), None)
    own = folder / "hf_quant_config.json"
    if said is not None or not own.is_file():
        return said, folder / "config.json"
    how = read_json(own).get("quantization")
    algorithm = how.get("quant_algo") if isinstance(how, Mapping) else how
    if algorithm is None:  # of caches alone, which is not done here
        return None, own
    if not isinstance(how, Mapping) or not isinstance(algorithm, str) or not algorithm.startswith(("FP8", "NVFP4")):
        raise UnsupportedError(f"{own}: quant_algo is {shown(algorithm)}; convert reads FP8 and NVFP4 of modelopt's. Convert the original model instead.")  # fmt: skip
    return {"quant_method": "modelopt", **how}, own


def _spec_for(config: Mapping[str, Any], folder: Path) -> ArchSpec:
    model_type = config.get("model_type")
    known = {hf: spec for spec in SPECS.values() for hf in spec.hf_model_types}
    if not isinstance(model_type, str) or model_type not in known:
        raise UnsupportedError(
            f"{folder / 'config.json'}: model_type is {model_type!r}; convert knows {', '.join(sorted(known))}.{_needed(folder)}"
        )
    return known[model_type]


def _needed(folder: Path) -> str:
    """What a spec for a checkpoint would have to place, as far as its weights can be read."""
    try:
        kinds = sorted({re.sub(r"\.\d+\.", ".{i}.", name) for name in open_checkpoint(folder)})
    except QTransformersError:
        return ""
    shown = ", ".join(kinds[:6]) + (", ..." if len(kinds) > 6 else "")
    return f" It would need an ArchSpec (docs/architecture.md) with places for {len(kinds)} kinds of tensors: {shown}"


def hparam_metadata(spec: ArchSpec, hparams: Hyperparameters) -> dict[str, Any]:
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
    stored: Mapping[str, Source],
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
                yield Target(slot.name, F32, values.shape, values)
            continue
        shape = slot.shape(hparams)
        sources = [stored[name] for name in slot.hf_names(hparams) if name in stored]
        if len(sources) < len(slot.hf_names(hparams)) or not sources:
            problems += _absent(slot, config, tied, folder)
            continue
        if _adds_nothing(slot, sources, config):
            continue
        if slot.presence == "never":
            problems.append(_misplaced(sources[0], spec))
            continue
        if tied and slot.spec.on_absent.startswith("tie:"):
            continue  # a copy of the tensor it is tied to
        each = shape[1:] if "{e}" in slot.spec.hf else shape
        made = [_changed(source, slot, hparams) for source in sources]
        for source, result in zip(sources, made, strict=True):
            if result.shape != each:
                problems.append(
                    f"{source.file}: {source.name} is {list(source.shape)}; config.json makes it {list(each)}"
                )
        order = interleave(shape[0], hparams[slot.spec.permute]) if slot.spec.permute else None
        yield Target(slot.name, F32, shape, tuple(made), order)
    if problems:
        raise LoadError("\n  ".join((f"{folder}: weights and config.json do not fit together.", *problems)))


def _adds_nothing(slot: Slot, sources: Iterable[Source], config: Mapping[str, Any]) -> bool:
    """Whether it is a bias of zeros that nothing asks for: AutoGPTQ gives one to every layer."""
    if slot.part != "bias" or slot.presence == "required" or config.get(slot.spec.hf_bias) is True:
        return False
    return not any(source.rows(slice(None)).any() for source in sources)


def _predicts_ahead(name: str, hparams: Hyperparameters, config: Mapping[str, Any]) -> bool:
    """Whether a tensor is of the layers behind the last that guess tokens further ahead, which we do without."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    return bool(config.get("num_nextn_predict_layers") and layer and int(layer[1]) >= hparams["n_layers"])


def _hf_names(spec: ArchSpec, hparams: Hyperparameters) -> Iterator[str]:
    return (name for slot in spec.slots(hparams) for name in slot.hf_names(hparams))


def _changed(source: Source, slot: Slot, hparams: Hyperparameters) -> Source:
    """What the file is to hold of a tensor of the checkpoint; of the shape () where that cannot be."""
    if not slot.spec.hf_values:
        return source
    change = partial(_applied, slot.spec.hf_values, hparams)
    if isinstance(source, Mxfp4):  # transposed already: `change` is asked where it takes each row from
        n, n_rows, width = source.shape
        rows = change(np.arange(n_rows).reshape(1, 1, -1)).reshape(-1)
        return Picked(source, (np.arange(n)[:, None] * n_rows + rows).reshape(-1), (n, len(rows), width))
    try:
        shape = tuple(change(np.broadcast_to(np.float32(0), source.shape)).shape)
        if not isinstance(source, Lying) and len(source.shape) == 2:
            numbers = np.arange(source.shape[0], dtype=np.int32)[:, None]
            taken = np.asarray(change(np.broadcast_to(numbers, source.shape)))
            if (taken == taken[..., :1]).all():  # whole rows: what is quantised stays so
                return Picked(source, taken[..., 0].reshape(-1).astype(np.intp), shape)
    except ValueError:
        shape = ()
    return Changed(source, change, shape)


def _applied(change: Callable[[Any, Any], Any], hparams: Hyperparameters, values: Any) -> Any:
    return change(values, hparams)


def _renamed(spec: ArchSpec, stored: Mapping[str, Source]) -> dict[str, Source]:
    """The checkpoint's tensors by the names of the spec, without those of other parts of a model."""
    found = {}
    for name, tensor in stored.items():
        for pattern, replacement in spec.hf_names:
            name = re.sub(pattern, replacement, name)
        if name:
            found[name] = tensor
    return found


def _misplaced(tensor: Source, spec: ArchSpec) -> str:
    return f"{tensor.file}: {tensor.name} has no place in a {spec.id} model"


def _absent(slot: Slot, config: Mapping[str, Any], tied: bool, folder: Path) -> list[str]:
    """What is wrong with a checkpoint that lacks this tensor, if anything."""
    needed = slot.presence == "required"
    if slot.part == "bias":
        needed = slot.presence == "required" or (slot.presence == "optional" and config.get(slot.spec.hf_bias) is True)
    elif slot.spec.on_absent.startswith("tie:"):
        needed = not tied
    return [f"{folder}: {slot.hf} is missing"] if needed else []
