"""Diffusion transformers to GGUF: from a folder of diffusers, a safetensors file of either layout or another GGUF file, into either layout."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from qtransformers.archs.diffusion import ALL, DiffusionSpec, Layout, stripped
from qtransformers.archs.diffusion.spec import LAYOUTS
from qtransformers.archs.hparams import Hyperparameters
from qtransformers.checks import shown
from qtransformers.convert.eight import decoded
from qtransformers.convert.layouts import Dress, Piece, laid_out
from qtransformers.convert.plan import (
    QUANTIZATION_VERSION,
    Asked,
    ConversionPlan,
    Target,
    file_type_of,
    size_label,
    typed,
)  # fmt: skip
from qtransformers.convert.recipes import recipe_of
from qtransformers.convert.requantize import kept_metadata, warn_of_requantizing
from qtransformers.convert.sources import Factors, Lying
from qtransformers.errors import ConfigError, ModelNotFoundError
from qtransformers.gguf import GGUFFile
from qtransformers.gguf.values import Typed
from qtransformers.load.checkpoint import DIFFUSERS, Stored, open_checkpoint, open_file
from qtransformers.load.config import raise_problems, read_json
from qtransformers.load.diffusion import (
    BIASES_KEY,
    CONFIG_KEY,
    LAYOUT_KEY,
    ORIG_SHAPE,
    SCHEMA,
    SCHEMA_KEY,
    Part,
    biases,
    detected,
    is_diffusion,
    matches,
    plan_of,
    tensors_of,
)  # fmt: skip
from qtransformers.load.originals import PARTS, PIPELINE
from qtransformers.load.source import open_model
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME

MAX_DIMENSIONS = 4  # of a GGUF tensor
SMALL = 1024  # values up to which ComfyUI-GGUF expects plain numbers
# What holds the diffusion model in checkpoints of whole pipelines
WHOLE = ("model.diffusion_model.", "diffusion_model.")
TABLE = 1 << 20  # values from which on a kept tensor counts
F32 = BY_NAME["F32"]


@dataclass(frozen=True, eq=False)
class DiffusionSource:
    """A diffusion model at hand: its tensors by name, and what is known of its settings."""

    path: Path
    tensors: Mapping[str, QTensor]
    config: Mapping[str, Any] | None = None  # what comes with it
    config_file: str = "config"
    gguf: GGUFFile | None = None  # whose metadata it has
    files: tuple[Path, ...] = ()

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Of a GGUF file; else there is none."""
        return self.gguf.metadata if self.gguf else {}


def is_diffusion_model(path: Path) -> bool:
    """Whether what lies there is a diffusion model: a pipeline or transformer of diffusers, a safetensors file, or a GGUF file of one."""
    if path.is_file():
        return path.suffix == ".safetensors" or (path.suffix == ".gguf" and _gguf_of(path) is not None)
    if (path / PIPELINE).is_file():
        return True
    config = path / "config.json"
    if config.is_file():
        said = read_json(config)
        return "_class_name" in said and "model_type" not in said
    return any(path.glob("*.gguf")) and _gguf_of(path) is not None


def _gguf_of(path: Path) -> GGUFFile | None:
    gguf = open_model(path)
    return gguf if is_diffusion(gguf) else None


def plan_diffusion_conversion(path: Path, asked: Asked) -> ConversionPlan:
    """What converting a diffusion model will write; errors as for `plan_conversion`."""
    if asked.pre is not None:
        raise ConfigError(f"{path} is a diffusion model, which has no tokenizer; leave out pre.")
    return planned(at_hand(path, asked.config, asked.outline), asked)


def at_hand(path: Path, config: Mapping[str, Any] | str | Path | None = None, outline: bool = False) -> DiffusionSource:
    """A model on disk, with the config that a caller gives; of an `outline` see `Asked`."""
    source = opened(path, outline)
    if config is None:
        return source
    given, where = _config_of(config)
    return replace(source, config=given, config_file=where)


def planned(source: DiffusionSource, asked: Asked) -> ConversionPlan:
    """The plan of a model at hand."""
    recipe_of(asked.type)
    named_so = replace(asked, name=asked.name or named(source))
    return replace(of_model(known(source), named_so, file=str(source.path), gguf=source.gguf), files=source.files)


def known(source: DiffusionSource) -> Model:
    """What a model at hand is: its architecture, settings and tensors; errors with everything that does not fit."""
    file = str(source.path)
    found = detected(source.tensors, file, source.metadata.get("general.architecture"))
    plan = plan_of(found, file, source.metadata, source.config, source.config_file, "converted")
    for note in plan.warnings:
        warnings.warn(note, stacklevel=5)
    beside = {n: t for n, t in found.tensors.items() if matches(found.spec.beside, n)}
    return Model(plan.spec, plan.layout, plan.config, plan.extra, plan.parts, beside)


@dataclass(frozen=True, eq=False)
class Model:
    """A diffusion model that is known: its architecture, its settings, and where the values of each tensor of its class lie."""

    spec: DiffusionSpec
    layout: Layout
    config: Hyperparameters
    extra: Mapping[str, Any]  # settings that the spec does not know
    parts: tuple[Part, ...]
    beside: Mapping[str, QTensor] = field(default_factory=dict)  # what only other programs ask for, in the same layout


def of_model(
    model: Model, asked: Asked, *, file: str, gguf: GGUFFile | None = None, stored: bool = False, factors: Mapping[str, Factors] | None = None,
    dress: Dress | None = None,
) -> ConversionPlan:  # fmt: skip
    """The plan of a model that is known, of which messages speak as `file`; `stored`: every tensor as it is, whatever type is asked for.

    The new file has the metadata of `gguf`, but for what is told here. `factors` by tensor of the class are multiplied in, and
    `dress` may put another source in place of each, by its tensor of the class.
    """
    spec = model.spec
    to = _layout(asked.layout, spec)
    pieces, misplaced = laid_out(spec, model.config, model.parts, to, apart=bool(factors or dress))
    raise_problems(f"{file} cannot be converted as {spec.title}", misplaced)
    quantised = stored or recipe_of(asked.type)[1].type.is_quantized
    shapes = {p.name: _stored_shape(p, spec, quantised) for p in pieces}
    bare = [Target(p.name, F32, shapes[p.name], p.sources(shapes[p.name], factors, dress)) for p in pieces]
    if stored:
        targets, id = tuple(map(as_stored, bare)), None
    else:
        targets = typed(bare, {}, asked, kept=F32, policy_of={p.name: policy(p, spec) for p in pieces})
        targets = tuple(_halved(t) if quantised and policy(p, spec) == "keep" else t for p, t in zip(pieces, targets, strict=True))  # fmt: skip
        id = np.uint32(file_type_of(targets, recipe_of(asked.type)[0]))
    if to == model.layout:
        targets += tuple(Target(n, t.type, t.shape, (Lying(t),)) for n, t in model.beside.items())
    if not (factors or dress):  # else the plan without them has said it
        warn_of_requantizing(file, targets)
        if spec.beside and to == "original" != model.layout:
            names = " and ".join(pattern.replace("\\", "") for pattern in spec.beside)
            warnings.warn(f"{file}: its layout has no {names}, which no program computes with, but which diffusers' own reader takes out of files in the original layout and fails without. For that reader, convert the original checkpoint, or write layout diffusers", stacklevel=4)  # fmt: skip
    metadata = {
        **{k: v for k, v in (kept_metadata(gguf) if gguf else {}).items() if not k.startswith(ORIG_SHAPE)},
        "general.architecture": spec.family if to == "original" and spec.family else spec.id,
        "general.type": "model",
        "general.size_label": size_label(sum(math.prod(t.shape) for t in targets)),
        "general.quantization_version": np.uint32(QUANTIZATION_VERSION),
        **({"general.name": asked.name} if asked.name else {}),
        **({"general.file_type": id} if id is not None else {}),
        SCHEMA_KEY: np.uint32(SCHEMA),
        LAYOUT_KEY: to,
        CONFIG_KEY: json.dumps({"_class_name": spec.class_name, **model.extra, **model.config}),
        BIASES_KEY: biases(model.parts) or Typed("str", []),
        **{ORIG_SHAPE + p.name: np.array(p.shape, np.int32) for p in pieces if shapes[p.name] != p.shape},
    }
    file_type = "as it is" if stored else recipe_of(asked.type)[0]
    return ConversionPlan(Path(file), metadata, targets, file_type, force=asked.force)


def _halved(target: Target) -> Target:
    """A large table that stays plain in F16 where it was published in 16 bits: of a small SD3 the places alone were a fifth of the file.

    F16 as torch computes with it, and ComfyUI-GGUF leaves such tables to torch; in the range of a table it holds what BF16 does.
    """
    large = math.prod(target.shape) > TABLE and sum(n > 1 for n in target.shape) > 1 and not target.stated
    return replace(target, type=BY_NAME["F16"]) if large and target.stored and target.stored.name in ("F16", "BF16") else target  # fmt: skip


def as_stored(target: Target) -> Target:
    """In the type that its values lie in; where that is several, in the largest of them that fits."""
    kinds = {s.type for s in target.source if s.type is not None} if not isinstance(target.source, np.ndarray) else {F32}  # fmt: skip
    fitting = [k for k in kinds if target.shape[-1] % k.block_size == 0] or [F32]
    return replace(target, type=max(fitting, key=lambda k: k.block_bytes / k.block_size))


def named(source: DiffusionSource) -> str:
    """What a new file is called where nobody says: as the GGUF file it is made of, or by where the model lies."""
    return "" if "general.name" in source.metadata else title_of(source.path)


def policy(piece: Piece, spec: DiffusionSpec) -> str:
    """The row of the mixtures that a tensor follows: of what several layers share, that of the most sensitive one."""
    shape = piece.shape
    many = len(shape) > 2 and shape[1] > 1  # channels of a filter: one alone is no row of blocks
    packed = spec.packs_convs and many and any(d.row.role == "conv" for d in piece.sharers)
    if piece.sharers[0].part == "bias" or math.prod(shape) <= SMALL or not (len(shape) == 2 or packed):
        return "keep"
    found = [d.row.policy for d in piece.sharers]
    return next((row for row in SENSITIVE if row in found), found[0])


SENSITIVE = ("keep", "embed_in", "output", "attn_v", "ffn_down", "modulation")  # the most so first


def _stored_shape(piece: Piece, spec: DiffusionSpec, quantised: bool) -> tuple[int, ...]:
    """The shape in the file: GGUF has no more than four dimensions, and blocks lie along rows."""
    rows = policy(piece, spec) == "conv" and quantised
    return (
        piece.shape if len(piece.shape) <= MAX_DIMENSIONS and not rows else (piece.shape[0], math.prod(piece.shape[1:]))
    )


def _layout(layout: str | None, spec: DiffusionSpec) -> Layout:
    if layout is None:
        return "original" if "original" in spec.marks else "diffusers"
    if layout not in LAYOUTS:
        raise ConfigError(f"layout is {layout!r}; expected {' or '.join(LAYOUTS)}.")
    found = next((known for known in spec.marks if known == layout), None)
    if found is None:
        raise ConfigError(f"layout is {layout!r}, which {spec.title} does not have; expected {' or '.join(spec.marks)}.")  # fmt: skip
    return found


def opened(path: Path, outline: bool = False) -> DiffusionSource:
    """A model on disk; only headers are read, and floats of 8 bits unless it is an `outline`."""
    if path.is_file() and path.suffix == ".safetensors":
        config = path.with_name("config.json")
        said = read_json(config) if config.is_file() else {}
        ours = said if said.get("_class_name") in {spec.class_name for spec in ALL} else None
        return DiffusionSource(path, _of_checkpoint(open_file(path), outline), ours, str(config), files=(path,))
    if path.is_dir() and not any((path / n).is_file() for n in (PIPELINE, "config.json")):
        path = path if not (inner := _inner(path)) else inner
    if path.is_file() or (not (path / "config.json").is_file() and not (path / PIPELINE).is_file()):
        gguf = open_model(path)
        return DiffusionSource(Path(gguf.path), tensors_of(gguf), gguf=gguf, files=gguf.paths)
    folder = path
    if (path / PIPELINE).is_file():
        inner = _inner(path)
        if inner is None:
            raise ModelNotFoundError(f"{path}: a pipeline of diffusers without {' or '.join(PARTS)}; expected a folder of that name with the diffusion model.")  # fmt: skip
        folder = inner
    config = folder / "config.json"
    stem = next((s for s in (DIFFUSERS, "model") if any(folder.glob(f"{s}*.safetensors*"))), DIFFUSERS)
    tensors = _of_checkpoint(open_checkpoint(folder, stem), outline)
    return DiffusionSource(path, tensors, read_json(config), str(config), files=tuple(sorted(folder.glob("*.safetensors"))))  # fmt: skip


def _inner(path: Path) -> Path | None:
    return next((path / name for name in PARTS if (path / name / "config.json").is_file()), None)


def _of_checkpoint(stored: Mapping[str, Stored], outline: bool) -> dict[str, QTensor]:
    """The diffusion model's tensors of a checkpoint, which may hold a text encoder and a VAE too, without a common prefix."""
    stored = decoded(stored, outline)
    prefix = next((p for p in WHOLE if any(name.startswith(p) for name in stored)), None) or stripped(stored)
    return {
        name.removeprefix(prefix): QTensor(name, tensor.type, tensor.shape, tensor.data, tensor.file)
        for name, tensor in stored.items() if name.startswith(prefix)
    }  # fmt: skip


def _config_of(config: Mapping[str, Any] | str | Path) -> tuple[Mapping[str, Any], str]:
    if isinstance(config, Mapping):
        return config, "config="
    if not isinstance(config, (str, Path)):
        raise ConfigError(f"config is {shown(config)}; expected settings, a config.json, or its folder.")
    path = Path(config)
    for file in (path, path / "config.json", *(path / folder / "config.json" for folder in PARTS)):
        if file.is_file():
            return read_json(file), str(file)
    raise ConfigError(f"config is {str(config)!r}, where no config.json is. Pass the folder of the model's transformer.")  # fmt: skip


def title_of(path: Path) -> str:
    """What a model is called by where it lies."""
    path = path.resolve()
    named = path.parent if path.name in PARTS or path.stem.startswith(DIFFUSERS) else path
    named = named.parent if named.name in PARTS else named
    return named.name.removesuffix(".gguf").removesuffix(".safetensors")
