"""The plan of a load, made from headers alone: every tensor's place and kernel, every byte, every problem at once."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TypedDict

from qtransformers.archs.spec import ArchSpec, Problem, Slot
from qtransformers.cache.pages import check_codec
from qtransformers.cache.states import state_bytes
from qtransformers.errors import ConfigError
from qtransformers.kernels.table import ACCURACY, FEW_ROWS, check_accuracy, why_not
from qtransformers.load.files import memory_text
from qtransformers.load.findings import LAYER, Findings, ranges, template
from qtransformers.load.footprint import CacheShape, Product, device_temporaries, program_bytes, temporaries
from qtransformers.machine import usable_cores
from qtransformers.tensor import QTensor
from qtransformers.types import QuantType

PREFILL_CHUNK = 512  # tokens of a prompt that one forward pass takes
LOGITS_ROWS = 1
PARALLEL = 8  # requests that are computed at the same time
DECODED_ROLES = ("norm", "state")  # small tensors that models read as arrays, of whatever shape
NO_CACHE = CacheShape(0, 0, 0, 0)
_OTHER = "The file is incomplete or of another architecture: download or convert it again"
_EXPERT = re.compile(r"\.\d+\.weight$")
# Names of old files: what there is instead of what we read.
_OUTDATED = (
    (re.compile(r"blk\.\d+\.ffn_(?:gate|up|down)\.\d+\.weight"), "holds one expert: files from before April 2024 keep experts apart, and here they must lie together. Take a newer file of this model, or convert it again."),
    (re.compile(r"blk\.\d+\.ssm_in\.weight"), "holds q, k, v and z in one, as the first files of Qwen3-Next do. Take a newer file of this model, or convert it again."),
)  # fmt: skip


class PlanOptions(TypedDict, total=False):
    """What a plan depends on beside the files; `make_plan` says what holds where one is left out."""

    context_length: int | None
    cache: str
    prefill_chunk: int
    logits_rows: int
    cache_tokens: int | None
    parallel: int
    accuracy: str
    threads: int | None


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor of the file: what it is for, where it goes, which kernel reads it."""

    slot: Slot
    type: QuantType
    shape: tuple[int, ...]
    nbytes: int
    place: str  # a device, or `mmap` for what stays in the page cache
    kernel: str

    @property
    def role(self) -> str:
        """What placement knows it by."""
        return self.slot.spec.role

    @property
    def device(self) -> str:
        """The device whose memory holds it; what is mapped is in main memory."""
        return "cpu" if self.place == "mmap" else self.place


@dataclass(frozen=True)
class LoadPlan:
    """Everything decided before anything is allocated. Bytes throughout."""

    file: str
    architecture: str
    tensors: tuple[PlannedTensor, ...]  # in the order of the forward pass
    ties: Mapping[str, str]  # attr -> the attr whose weight it shares
    context_length: int  # tokens
    cache: str  # codec of keys and values
    weights_bytes: int
    cache_tokens: int  # of all requests together
    cache_bytes: int  # with every page in use
    activations_bytes: int  # peak of one forward pass
    device_bytes: int = 0  # the same on a GPU
    program_bytes: int = 0  # interpreter, library, tokenizer
    cache_shape: CacheShape = NO_CACHE
    states_bytes: int = 0  # of recurrent layers, with as many sequences as may be computed at once
    recurrent: frozenset[int] = frozenset()  # layers with a state instead of keys and values
    cache_places: Mapping[int, str] = field(
        default_factory=dict
    )  # the device of what each layer keeps, where not all are the CPU's
    runnable: bool = True  # False: the bytes are counted, but this version cannot run it
    warnings: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Weights, full cache, states and peak temporaries."""
        return self.weights_bytes + self.cache_bytes + self.states_bytes + self.activations_bytes

    @property
    def parameters(self) -> int:
        """Weights by number."""
        return sum(math.prod(t.shape) for t in self.tensors)

    @property
    def devices(self) -> tuple[str, ...]:
        """GPUs that hold anything, the first of them by the order of the forward pass first; none where all is the CPU's."""
        places = (*(t.device for t in self.tensors), *self.cache_places.values())
        return tuple(dict.fromkeys(place for place in places if place != "cpu"))

    @property
    def main_device(self) -> str:
        """Where the activations live between layers."""
        return min(self.devices, default="cpu")

    @property
    def cache_devices(self) -> tuple[str, ...]:
        """Where the keys and values of each layer that has them go."""
        layers = sorted({t.slot.layer for t in self.tensors if t.slot.layer is not None} - self.recurrent)
        return tuple(self.cache_places.get(layer, "cpu") for layer in layers) if self.cache_shape.n_layers else ()

    def only_on(self, device: str) -> bool:
        """Whether nothing but vectors is anywhere else."""
        return all(t.device == device for t in self.tensors if len(t.shape) > 1) and set(self.cache_devices) <= {device}

    def weights_on(self, device: str) -> int:
        """Bytes of weights in the memory of a device."""
        return sum(t.nbytes for t in self.tensors if t.device == device)

    def cache_on(self, device: str) -> int:
        """Bytes of keys and values, with every page in use, in the memory of a device."""
        return self._share(self.cache_bytes, device, recurrent=False)

    def states_on(self, device: str) -> int:
        """Bytes of recurrent states in the memory of a device."""
        return self._share(self.states_bytes, device, recurrent=True)

    def on_devices(self) -> str:
        """What is planned for each GPU, as a sentence."""
        return "Planned were " + "; ".join(
            f"{device}: {self.weights_on(device) / 2**30:.2f} GiB of weights, {(self.cache_on(device) + self.states_on(device)) / 2**30:.2f} GiB of keys and values, "
            f"{self.device_bytes / 2**30:.2f} GiB of temporaries"
            for device in self.devices
        )

    def kept(self, layer: int) -> int:
        """Bytes of a layer's keys and values, or of its state."""
        if layer in self.recurrent:
            return self.states_bytes // len(self.recurrent)
        return self.cache_bytes // max(1, self.cache_shape.n_layers)

    def _share(self, total: int, device: str, recurrent: bool) -> int:
        if not self.cache_places:
            return total if device == "cpu" else 0
        homes = [place for layer, place in self.cache_places.items() if (layer in self.recurrent) == recurrent]
        return total * homes.count(device) // max(1, len(homes))

    def rows(self) -> list[str]:
        """The tensors for people, one line a role, type and place."""
        groups: dict[tuple[str, str, str, str], list[PlannedTensor]] = {}
        for t in self.tensors:
            groups.setdefault((t.role, t.type.name, t.place, t.kernel), []).append(t)
        return [
            f"  {role:<14} {type_name:<8} {len(ts):>5} tensors {memory_text(sum(t.nbytes for t in ts)):>10}  {place:<6} {kernel}".rstrip()
            for (role, type_name, place, kernel), ts in groups.items()
        ]

    def text(self) -> str:
        """A summary for people."""
        return "\n".join(
            (
                f"{self.file} ({self.architecture})",
                *self.rows(),
                f"weights {memory_text(self.weights_bytes)} (mapped, not copied), "
                f"cache {memory_text(self.cache_bytes)} ({self.cache_tokens:,} tokens, {self.cache}), "
                + (f"states {memory_text(self.states_bytes)}, " if self.states_bytes else "")
                + f"temporaries {memory_text(self.activations_bytes)}",
                *self.warnings,
            )
        )


def make_plan(
    spec: ArchSpec,
    hparams: Mapping[str, int],
    tensors: Mapping[str, QTensor],
    file: str,
    *,
    context_length: int | None = None,
    cache: str = "f16",
    prefill_chunk: int = PREFILL_CHUNK,
    logits_rows: int = LOGITS_ROWS,
    cache_tokens: int | None = None,
    parallel: int = PARALLEL,
    accuracy: str = ACCURACY,
    threads: int | None = None,
    vocabulary: tuple[int, int] | None = None,
    notes: Iterable[str] = (),
) -> tuple[LoadPlan, list[Problem]]:
    """The plan of a file, and every missing, extra, mis-shaped or unsupported tensor of it.

    `vocabulary` counts tokens and merges of the tokenizer. With an error among the problems the plan is not fit to be carried out. ConfigError for a bad argument.
    """
    context = _context(spec, context_length, hparams["context_length"])
    tokens = context if cache_tokens is None else cache_tokens
    if tokens < context:
        raise ConfigError(
            f"cache_tokens={tokens:,} is less than one request may take, context_length={context:,}. Raise it, or lower context_length."
        )
    check_codec(cache, hparams.get("head_dim", 0), hparams.get("head_dim_v", 0))
    check_accuracy(accuracy)
    planned, ties, problems = match_tensors(spec, hparams, tensors)
    warnings = [*notes, *(p.text for p in problems if p.grade == "warning")]
    if context > hparams["context_length"]:
        warnings.append(f"context_length {context} exceeds the {hparams['context_length']} tokens the model was trained for; answers get worse beyond")  # fmt: skip
    generates = spec.kind == "language"
    rows = min(prefill_chunk, context) if generates else max(prefill_chunk, context)  # an encoder takes a text whole
    recurrent = frozenset(i for i in range(hparams["n_layers"]) if not spec.caches(hparams, i))
    own = replace(CacheShape.of(hparams), n_layers=hparams["n_layers"] - len(recurrent))
    cache_shape = own if generates else NO_CACHE
    in_batch = 0 if generates else replace(own, n_layers=1).bytes(rows, "f32")
    counted = (
        hparams["n_embd"],
        hparams["vocab_size"] if generates else 0,
        tuple(products(planned, hparams.get("n_experts_used", 1))),
        rows,
        max(logits_rows, parallel, FEW_ROWS[accuracy]) if generates else logits_rows,
        accuracy,
    )
    plan = LoadPlan(
        file=file,
        architecture=spec.id,
        tensors=planned,
        ties=ties,
        context_length=context,
        cache=cache,
        weights_bytes=sum(t.nbytes for t in planned),
        cache_tokens=tokens,
        cache_bytes=cache_shape.bytes(tokens, cache),
        activations_bytes=in_batch + temporaries(*counted, threads or usable_cores()),
        device_bytes=device_temporaries(*counted),
        program_bytes=program_bytes(*vocabulary or (hparams["vocab_size"],)),
        cache_shape=cache_shape,
        states_bytes=parallel * state_bytes(spec.states(hparams)),
        recurrent=recurrent,
        warnings=tuple(warnings),
    )
    return plan, problems


def match_tensors(
    spec: ArchSpec, hparams: Mapping[str, int], tensors: Mapping[str, QTensor]
) -> tuple[tuple[PlannedTensor, ...], dict[str, str], list[Problem]]:
    """The file's tensors in their slots, the ties, and what does not fit."""
    planned: list[PlannedTensor] = []
    ties: dict[str, str] = {}
    findings = Findings()
    slots = {slot.name: slot for slot in spec.slots(hparams)}
    strangers = [name for name in tensors if name not in slots]
    outdated = {name: text for name in strangers for pattern, text in _OUTDATED if pattern.fullmatch(name)}
    for name, text in outdated.items():
        findings.add(_EXPERT.sub(".*.weight", name), text, "unsupported")
    strangers = [name for name in strangers if name not in outdated]
    templates = {template(name) for name in strangers} - {template(name) for name in slots}
    nearest_in_file = functools.cache(lambda name: _nearest(name, templates, "the file"))
    for name, slot in slots.items():
        tensor = tensors.get(name)
        shape = slot.shape(hparams)
        kind, _, target = slot.spec.on_absent.partition(":")
        if tensor is None:
            if slot.presence == "required" and not outdated:
                nearest = nearest_in_file(template(name))
                findings.add(name, f"is missing; expected {list(shape)}.{nearest} {_OTHER}.")
            elif kind == "tie" and slot.part == "weight":
                ties[slot.attr] = target
            continue
        if slot.presence == "never":
            findings.add(name, f"is in the file, but {spec.id} has no bias there, and leaving it out would change the results. Convert the model as its own architecture.")  # fmt: skip
            continue
        if _without_ones(tensor.shape) != _without_ones(shape):
            symbols = ", ".join(slot.spec.shape[: len(shape)])
            findings.add(name, f"is {list(tensor.shape)}; expected {list(shape)} ({symbols}). Metadata and tensors are of different models: download or convert the file again.")  # fmt: skip
            continue
        kernel, refusal = kernel_of(slot, tensor.type)
        if refusal:
            findings.add(name, refusal, "unsupported")
        planned.append(PlannedTensor(slot, tensor.type, shape, tensor.nbytes, "mmap" if len(shape) > 1 else "cpu", kernel))  # fmt: skip
    _judge_partial(slots, tensors, findings)
    _judge_strangers(spec, hparams, tensors, slots, strangers, findings)
    return tuple(planned), ties, list(findings.problems())


def _judge_partial(slots: Mapping[str, Slot], tensors: Mapping[str, QTensor], findings: Findings) -> None:
    """What may be absent is absent from all layers that could have it, and so is what belongs to it."""
    rows: dict[str, dict[int | None, bool]] = {}
    for name, slot in slots.items():
        if slot.presence == "optional":
            rows.setdefault(slot.attr, {})[slot.layer] = name in tensors
    for name, slot in slots.items():
        there = rows.get(slot.attr, {})
        if there.get(slot.layer) is False and any(there.values()):
            elsewhere = ranges([i for i, found in there.items() if found and i is not None])
            findings.add(name, f"is missing, but in the file for blk.{elsewhere}. {_OTHER}.")
        elif there.get(slot.layer) and rows.get(slot.spec.beside, {}).get(slot.layer, True) is False:
            findings.add(name, f"is in the file without {slot.spec.beside}, which goes with it. {_OTHER}.")


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape as GGUF knows it: first dimensions of 1 may be said or not."""
    return shape[next((i for i, n in enumerate(shape) if n != 1), len(shape)) :]


def kernel_of(slot: Slot, type: QuantType) -> tuple[str, str]:
    """The kernel that reads a tensor on the CPU, and why there is none ("" when there is one)."""
    vector = slot.part == "bias" or len(slot.spec.shape) == 1 or slot.spec.role in DECODED_ROLES
    operation = "embedding" if slot.spec.role in ("embed", "position") else "linear"
    refusal = why_not(operation, type, "cpu")
    if refusal:
        return "", f"cannot be used: {refusal}. Use a file of another quantisation."
    if vector:
        return "read as F32" if type.name == "F32" else "decoded to F32", ""
    return f"{operation} {type.name}", ""


def products(planned: Iterable[PlannedTensor], used_experts: int) -> Iterator[Product]:
    """What each token of a batch is multiplied with in the layers."""
    for t in planned:
        if t.slot.layer is None or t.slot.part == "bias" or len(t.shape) not in (2, 3) or t.role in DECODED_ROLES:
            continue
        *stack, out, columns = t.shape
        if t.role == "experts":
            yield Product(t.role, t.slot.layer, t.type, out, columns, used_experts)
        else:
            yield Product(t.role, t.slot.layer, t.type, out, columns, heads=stack[0] if stack else 0)


def _context(spec: ArchSpec, wanted: int | None, trained: int) -> int:
    if wanted is None:
        return trained
    if type(wanted) is not int or wanted < 1:
        raise ConfigError(f"context_length={wanted!r}; expected a whole number of tokens, at least 1.")
    if wanted > trained and any("context_length" in t.shape for t in spec.tensors):
        raise ConfigError(
            f"context_length={wanted:,}; the model learned its {trained:,} positions one by one and has no more."
        )
    return wanted


def _judge_strangers(
    spec: ArchSpec,
    hparams: Mapping[str, int],
    tensors: Mapping[str, QTensor],
    slots: Mapping[str, Slot],
    names: list[str],
    findings: Findings,
) -> None:
    """Tensors of the file that the architecture does not have."""
    unused = [re.compile(re.escape(u).replace(r"\{i\}", r"\d+") + r"(\.weight)?") for u in spec.unused]
    absent = {template(n) for n, s in slots.items() if n not in tensors and s.presence != "never"}
    nearest_slot = functools.cache(lambda name: _nearest(name, absent, f"what {spec.id} has"))
    ahead: list[int] = []
    for name in names:
        base, _, suffix = name.rpartition(".")
        layer = LAYER.search(name)
        if any(u.fullmatch(name) for u in unused):
            findings.add(name, "is not used: old converters wrote it, nothing reads it.", "warning")
        elif suffix == "input_scale" and f"{base}.weight" in slots:
            findings.add(name, "is not used: activations are scaled by their own values here.", "warning")
        elif suffix == "scale" and f"{base}.weight" in slots:
            if tensors[name].n_values != 1 or float(tensors[name].dequantize().ravel()[0]) != 1:
                findings.add(name, "scales a whole tensor, which the kernels cannot do yet. Use another quantisation of this model.", "unsupported")  # fmt: skip
        elif layer and 0 <= int(layer[1]) - hparams["n_layers"] < hparams.get("n_ahead", 0):
            ahead.append(int(layer[1]))
        elif layer and int(layer[1]) >= hparams["n_layers"]:
            findings.add(name, f"is of layer {layer[1]}, but block_count is {hparams['n_layers']}. {_OTHER}.")
        else:
            nearest = nearest_slot(template(name))
            findings.add(name, f"is in the file, but {spec.id} has no such tensor, and leaving it out would change the results.{nearest} Convert the model as its own architecture.")  # fmt: skip
    if ahead:
        findings.add(f"blk.{ranges(ahead)}", "is not used: it guesses further tokens (nextn_predict_layers), and answers are the same without it.", "warning")  # fmt: skip


def _nearest(name: str, candidates: Iterable[str], where: str) -> str:
    close = get_close_matches(name, set(candidates), n=2, cutoff=0.75)
    return f" Nearest in {where}: {', '.join(sorted(close)).replace('{i}', '*')}." if close else ""
