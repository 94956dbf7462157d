"""Which type and method a model should have on a machine, by the plan's arithmetic and what types cost in quality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qtransformers.archs import spec_of
from qtransformers.archs.hparams import read_hparams
from qtransformers.convert import plan_conversion
from qtransformers.convert.recipes import types_for
from qtransformers.errors import ConfigError
from qtransformers.load.config import raise_problems
from qtransformers.load.fit import Budget, Verdict, fit
from qtransformers.load.hub import local_model
from qtransformers.load.originals import PIPELINE
from qtransformers.load.placement import placed, resolve
from qtransformers.load.plan import LoadPlan, make_plan
from qtransformers.load.source import Sources
from qtransformers.load.survey import find_sources, survey
from qtransformers.quantize.advise_diffusion import PictureAdvice, advise_picture, source_of
from qtransformers.tensor import QTensor
from qtransformers.types import QuantType

# Kullback-Leibler divergence from F16 in nats a token of Llama-3-8B, quantised with an importance matrix, best first
# (llama.cpp, tools/quantize/README.md); what folding and compensated rounding leave of it is in benchmarks/RESULTS.md.
LOSS = {
    "F16": 0.0, "Q8_0": 0.00136, "Q6_K": 0.0055, "Q5_K_M": 0.0108, "Q4_K_M": 0.0282, "Q4_K_S": 0.0320, "IQ4_XS": 0.0363,
    "Q3_K_M": 0.0844, "Q2_K": 0.332,
}  # fmt: skip
NEAR = 0.03  # nats a token: what few notice
PLENTY = 2 << 30  # bytes of weights that are read for a token without much waiting


@dataclass(frozen=True)
class Option:
    """A model in a file type on a machine."""

    file_type: str
    nbytes: int  # of weights
    per_token: int  # of weights that one token reads
    loss: float  # see LOSS
    verdict: Verdict
    on_gpu: float  # part of the weights' bytes
    method: str  # flags of convert beside the type


@dataclass(frozen=True)
class Advice:
    """The options, best quality first, and which to take; None where not even the smallest fits."""

    model: str
    context_length: int
    options: tuple[Option, ...]
    best: Option | None
    why: str
    quantised: bool = False  # whether the model given is so already

    @property
    def command(self) -> str:
        """How to make it."""
        if self.best is None:
            return ""
        return " ".join(
            filter(
                None,
                (
                    "qtransformers convert",
                    "ORIGINAL" if self.quantised else self.model,
                    "-t",
                    self.best.file_type,
                    self.best.method,
                ),
            )
        )


def advise(
    model: str, budget: Budget, *, context_length: int | None = None, cache: str = "f16"
) -> Advice | PictureAdvice:
    """What to do with MODEL (a GGUF file, also on the Hub, or the folder of a checkpoint) on a machine with `budget`.

    Of a diffusion model `context_length` are the tokens of picture and text. ConfigError where nothing says how much memory there
    is; what `survey` and `plan_conversion` raise.
    """
    if budget.ram is None:
        raise ConfigError("the system does not say how much memory there is. Say it with ram.")
    path = local_model(model)
    checkpoint = path is not None and (
        path.suffix == ".safetensors" or any((path / name).is_file() for name in ("config.json", PIPELINE))
    )
    sources = None if checkpoint else find_sources(model)[0]
    if (pictures := source_of(path, sources)) is not None:
        return advise_picture(model, pictures, budget, context_length)
    plan, metadata = _outline(model, sources, context_length, cache)
    options = tuple(_option(plan, metadata, file_type, budget) for file_type in LOSS)
    best, why = _choose(options, bool(budget.devices))
    quantised = any(t.type.is_quantized for t in plan.tensors)
    if quantised and best is not None:
        why += f". {Path(model).name} is quantised already, which no type undoes: ORIGINAL is the model it was made of"
    return Advice(model, plan.context_length, options, best, why, quantised)


def _choose(options: tuple[Option, ...], gpu: bool) -> tuple[Option | None, str]:
    fitting = [o for o in options if o.verdict == "fits"]
    if not fitting:
        tight = [o for o in options if o.verdict == "tight"]
        if tight:
            return tight[-1], "it fits only just: little is left for anything else, or for a longer context"
        return (
            None,
            "not even the smallest type fits: take a smaller model, a shorter context, a smaller cache type, or more memory",
        )
    whole = [o for o in fitting if o.on_gpu > 0.999]
    if gpu and whole and whole[0].file_type == "F16":
        return whole[
            0
        ], "all of it fits on the GPU as it is: nothing is lost, and large batches run at the speed of its tensor cores"
    if whole and whole[0].loss <= NEAR:
        return whole[0], "the best type with which all of it fits on the GPU"
    small = [o for o in fitting if o.per_token <= PLENTY]
    if small and small[0].loss <= LOSS["Q8_0"]:
        pick = next((o for o in small if o.file_type == "Q8_0"), small[0])
        return pick, "it is so small that the speed of memory hardly limits it, so quality decides"
    near = [o for o in fitting if o.loss <= NEAR]
    where = "part of the weights on the GPU, the others mapped from the file" if any(o.on_gpu > 0 for o in fitting) else "mapped from the file, one copy in the page cache"  # fmt: skip
    if near:
        return near[-1], f"{where}: each token reads {near[-1].per_token / 1e9:.1f} GB, and fewer bits would be noticed"
    return fitting[
        0
    ], f"{where}: the best type that fits, although it will be noticed; a smaller model in 4 bits may be better"


def _method(file_type: str) -> str:
    """What is worth its time: above 5 bits rounding alone loses next to nothing."""
    if LOSS[file_type] < LOSS["Q5_K_M"]:
        return ""
    return "--awq" if file_type == "Q5_K_M" else "--awq --refine"


def _option(plan: LoadPlan, metadata: Mapping[str, Any], file_type: str, budget: Budget) -> Option:
    shapes = {t.slot.name: t.shape for t in plan.tensors}
    types = types_for(file_type, shapes, metadata, importance=True)
    retyped = tuple(_retyped(t, types[t.slot.name]) for t in plan.tensors)
    other = replace(plan, tensors=retyped, weights_bytes=sum(t.nbytes for t in retyped))
    other = placed(other, resolve(other, "auto", budget))
    on_gpu = sum(other.weights_on(device) for device in budget.devices) / max(1, other.weights_bytes)
    return Option(
        file_type, other.weights_bytes, _per_token(other, metadata), LOSS[file_type], fit(other, budget).verdict, on_gpu, _method(file_type)
    )  # fmt: skip


def _retyped(tensor: Any, type: QuantType | None) -> Any:
    if type is None:
        return tensor
    return replace(tensor, type=type, nbytes=type.row_bytes(int(np.prod(tensor.shape))))


def _per_token(plan: LoadPlan, metadata: Mapping[str, Any]) -> int:
    """Bytes of weights that a token reads: all but the embedding, and of experts those it goes to."""
    arch = metadata.get("general.architecture")
    n, used = (int(metadata.get(f"{arch}.{key}") or 0) for key in ("expert_count", "expert_used_count"))
    share = {"experts": used / n if n else 1.0, "embed": 1.0 if plan.ties else 0.0, "position": 0.0}
    return int(sum(t.nbytes * share.get(t.role, 1.0) for t in plan.tensors))


def _outline(
    model: str, sources: Sources | None, context_length: int | None, cache: str
) -> tuple[LoadPlan, Mapping[str, Any]]:
    """The plan of a model and its metadata, of a GGUF file's sources or the folder of a checkpoint; only headers are read."""
    path = Path(model)
    if sources is not None:
        found = survey(sources, context_length=context_length, cache=cache)
        raise_problems(f"{found.plan.file} cannot be loaded", list(found.problems))
        assert sources.gguf is not None  # survey has looked
        return found.plan, sources.gguf.metadata
    conversion = plan_conversion(path, "F16")
    metadata = {k: v.item() if isinstance(v, np.generic) else v for k, v in conversion.metadata.items()}
    tensors = {t.name: QTensor(t.name, t.type, t.shape, np.broadcast_to(np.uint8(0), t.nbytes)) for t in conversion.tensors}  # fmt: skip
    spec = spec_of(metadata["general.architecture"], str(path))
    rows = {t.attr: tensors[name].n_rows for t in spec.tensors if (name := f"{t.name}.weight") in tensors}
    hparams, problems = read_hparams(spec, str(path), metadata, rows)
    plan, more = make_plan(spec, hparams, tensors, str(path), context_length=context_length, cache=cache)
    raise_problems(f"{path} cannot be loaded", [*problems, *more])
    return plan, metadata
