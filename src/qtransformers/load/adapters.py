"""LoRA adapters from GGUF files and PEFT directories, checked against the model they are for.

GGUF's keys and names are llama.cpp's: general.type, adapter.type, adapter.lora.alpha, `<tensor>.lora_a` and `.lora_b`.
PEFT's are those of adapter_config.json and adapter_model.safetensors (huggingface.co/docs/peft).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.archs.spec import ArchSpec, Slot
from qtransformers.checks import shown
from qtransformers.errors import LoadError, ModelNotFoundError, UnsupportedError
from qtransformers.gguf import GGUFFile
from qtransformers.load.checkpoint import interleave, open_file
from qtransformers.load.config import read_json
from qtransformers.nn.adapted import Place, Update
from qtransformers.quants import dequantize

F32 = NDArray[np.float32]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Roles whose products are of all rows of a batch; others meet rows of experts, or are looked up and not multiplied.
ROLES = ("attn", "dense_ffn", "shared_experts", "output")
MAX_PATTERN = 200  # characters
MAX_SHOWN = 20  # problems in one message


@dataclass(frozen=True, eq=False)
class Adapter:
    """Low-rank updates by the place of their weights, with the adapter's own scale in them."""

    path: Path
    model: Any  # the hyperparameters it was checked against
    updates: Mapping[Place, Update]

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(u.a.nbytes + u.b.nbytes for u in self.updates.values())

    def __repr__(self) -> str:
        return f"<Adapter {self.path}: {len(self.updates)} tensors, {self.nbytes:,} bytes>"


@dataclass(frozen=True)
class Pair:
    """A tensor's two factors as a file has them: `a [rank, in]`, `b [out, rank]`; either may be missing."""

    a: F32 | None
    b: F32 | None
    scale: float


def load_adapter(path: str | Path, spec: ArchSpec, hparams: Mapping[str, Any]) -> Adapter:
    """The adapter in a GGUF file or a PEFT directory, for the model of `spec` and `hparams`.

    ModelNotFoundError where there is none; UnsupportedError for what is no plain LoRA, or of weights that cannot have one;
    LoadError with every tensor that does not fit.
    """
    path = Path(path).expanduser()
    slots = {slot.name: slot for slot in spec.slots(hparams) if slot.part == "weight"}
    if path.is_dir():
        pairs, problems = _from_peft(path, spec, hparams, slots)
    elif path.is_file():
        pairs, problems = _from_gguf(path, spec)
    else:
        raise ModelNotFoundError(f"{path}: no such file or directory; expected a GGUF adapter or a PEFT directory.")
    updates = {}
    for name, pair in pairs.items():
        slot = slots.get(name)
        if slot is None:
            problems.append(f"{name} is no weight of this model")
        elif slot.spec.role not in ROLES or len(slot.spec.shape) != 2:
            problems.append(f"{name}: adapters of {slot.spec.role} weights are not supported")
        elif wrong := _wrong(pair, slot.shape(hparams)):
            problems.append(f"{name}{wrong}")
        else:
            assert pair.a is not None and pair.b is not None  # _wrong has looked
            updates[slot.layer, slot.attr] = Update.of(pair.a, pair.b * np.float32(pair.scale), name)
    if problems:
        more = f"\n  and {len(problems) - MAX_SHOWN} more" if len(problems) > MAX_SHOWN else ""
        unsupported = all("not supported" in p for p in problems)
        raise (UnsupportedError if unsupported else LoadError)(
            "\n  ".join((f"{path} does not fit this {spec.id} model.", *problems[:MAX_SHOWN])) + more
        )
    if not updates:
        raise LoadError(f"{path} holds no LoRA tensors; expected pairs of factors. It is another kind of file.")
    return Adapter(path, hparams, updates)


def _wrong(pair: Pair, shape: tuple[int, ...]) -> str:
    """What is wrong with a pair for a weight of this shape, "" if nothing."""
    if pair.a is None or pair.b is None:
        return f": only one of its two factors is there, {'A' if pair.b is None else 'B'}"
    if pair.a.ndim != 2 or pair.b.ndim != 2 or pair.a.shape[0] != pair.b.shape[1] or not pair.a.shape[0]:
        return f": factors A {list(pair.a.shape)} and B {list(pair.b.shape)} cannot be multiplied; expected [rank, in] and [out, rank]"
    if (pair.b.shape[0], pair.a.shape[1]) != shape:
        return f" is {[pair.b.shape[0], pair.a.shape[1]]} in the adapter, {list(shape)} in the model: it was made for another one"
    if not np.isfinite(pair.a).all() or not np.isfinite(pair.b).all():
        return ": its factors hold values that are no numbers; the file is damaged"
    return ""


def _from_gguf(path: Path, spec: ArchSpec) -> tuple[dict[str, Pair], list[str]]:
    with GGUFFile(path) as gguf:
        meta = gguf.metadata
        for key, wanted in (("general.type", "adapter"), ("adapter.type", "lora")):
            if meta.get(key) != wanted:
                raise LoadError(f"{path}: {key} is {shown(meta.get(key))}; expected {wanted!r}. It is no LoRA adapter: load a model with gguf_path.")  # fmt: skip
        if "adapter.alora.invocation_tokens" in meta:
            raise UnsupportedError(f"{path}: adapters that begin at certain tokens (aLoRA) are not supported.")
        architecture = meta.get("general.architecture")
        if architecture not in (spec.id, *spec.aliases):
            raise LoadError(f"{path}: general.architecture is {shown(architecture)}; the model is {spec.id!r}. It was made for another one.")  # fmt: skip
        alpha = meta.get("adapter.lora.alpha")
        if not isinstance(alpha, float) or not math.isfinite(alpha):
            raise LoadError(
                f"{path}: adapter.lora.alpha is {shown(alpha)}; expected a number. Convert the adapter again."
            )
        factors: dict[str, dict[str, F32]] = {}
        problems = []
        for name, tensor in gguf.tensors.items():
            weight, _, kind = name.rpartition(".lora_")
            if not weight or kind not in ("a", "b"):
                problems.append(f"{name} is not supported; expected <tensor>.lora_a and .lora_b")
            else:
                factors.setdefault(weight, {})[kind] = tensor.dequantize()
    ranks = {name: len(f["a"]) for name, f in factors.items() if "a" in f and f["a"].ndim == 2}
    scales = {name: alpha / rank if alpha and rank else 1.0 for name, rank in ranks.items()}
    return {name: Pair(f.get("a"), f.get("b"), scales.get(name, 1.0)) for name, f in factors.items()}, problems


def _from_peft(
    folder: Path, spec: ArchSpec, hparams: Mapping[str, Any], slots: Mapping[str, Slot]
) -> tuple[dict[str, Pair], list[str]]:
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else None
    if config is None or not (folder / WEIGHTS).is_file():
        raise ModelNotFoundError(f"{folder}: expected {CONFIG} and {WEIGHTS}, an adapter as PEFT saves it.")
    problems = [f"{CONFIG}: {text}" for text in unsupported(config)]
    weights = {name: slot for slot in slots.values() for name in slot.hf_names(hparams) if len(slot.hf_names(hparams)) == 1}  # fmt: skip
    factors: dict[str, dict[str, F32]] = {}
    for name, tensor in open_file(folder / WEIGHTS).items():
        module, kind = _module(name)
        if not kind:
            problems.append(f"{name} is not supported; expected lora_A and lora_B of linear layers")
            continue
        values = dequantize(np.ascontiguousarray(tensor.data), tensor.type).reshape(tensor.shape)
        factors.setdefault(module, {})[kind] = values.astype(np.float32, copy=False)
    pairs = {}
    for module, found in factors.items():
        renamed = module + ".weight"
        for pattern, replacement in spec.hf_names:
            renamed = re.sub(pattern, replacement, renamed)
        slot = weights.get(renamed)
        if slot is None:
            problems.append(f"{module} is no weight of this model that an adapter may change")
            continue
        if slot.spec.hf_values:
            problems.append(f"{module}: adapters of weights that conversion rearranges are not supported")
            continue
        b = found.get("B")
        if b is not None and b.ndim == 2 and slot.spec.permute and b.shape[0] == slot.shape(hparams)[0]:
            b = b[interleave(b.shape[0], hparams[slot.spec.permute])]
        pairs[slot.name] = Pair(found.get("A"), b, lora_scale(config, module, str(folder / CONFIG)))
    return pairs, problems


def _module(name: str) -> tuple[str, str]:
    """The name of a linear layer in the base model, and A or B; "" for a tensor of another kind."""
    match = re.fullmatch(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.\w+)?\.weight", name)
    return (match[1], match[2]) if match else (name, "")


def unsupported(config: Mapping[str, Any]) -> Iterator[str]:
    """What an adapter_config.json asks for that is no plain LoRA."""
    kind = config.get("peft_type")
    if kind != "LORA":
        yield f"peft_type {shown(kind)} is not supported; expected LORA"
    for key in ("use_dora", "use_qalora", "lora_bias", "layer_replication", "trainable_token_indices", "modules_to_save", "alora_invocation_tokens", "target_parameters"):  # fmt: skip
        if config.get(key):
            yield f"{key} ({shown(config[key])}) is not supported; train without it, or merge the adapter"
    if config.get("bias", "none") != "none":
        yield f"bias {shown(config['bias'])} is not supported; expected 'none'"


def lora_scale(config: Mapping[str, Any], module: str, file: str, rows: int | None = None) -> float:
    """alpha / rank of a layer, by patterns of names where there are some; alpha / sqrt(rank) with rslora (arXiv:2312.03732).

    `config` is that of PEFT, from `file`; LoadError where it is damaged, or its rank is not `rows`, that of the factors.
    """
    rank, alpha = (
        _by_pattern(config, patterns, module, config.get(key), file)
        for patterns, key in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
    )
    for key, value in (("r", rank), ("lora_alpha", alpha)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or (key == "r" and value <= 0):  # fmt: skip
            raise LoadError(f"{file}: {key} is {shown(value)}; expected a number. The file is damaged.")
    if rows not in (None, rank):
        raise LoadError(f"{file}: {module} has rank {shown(rank)}, but its factors {rows}. They belong to different adapters: fetch it again.")  # fmt: skip
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _by_pattern(config: Mapping[str, Any], patterns: str, module: str, default: Any, file: str) -> Any:
    """The value of the first pattern that matches the end of a layer's name, as PEFT has it."""
    given = config.get(patterns) or {}
    if not isinstance(given, Mapping):
        raise LoadError(f"{file}: {patterns} is {shown(given)}; expected an object. The file is damaged.")
    for pattern, value in given.items():
        name = pattern.replace("\\.", ".").removesuffix("$")
        if len(name) > MAX_PATTERN or not re.fullmatch(
            r"\^?[\w.]+", name
        ):  # what PEFT writes; others could take for ever
            raise LoadError(f"{file}: {patterns} has {shown(pattern)}; expected the name of a layer, or its end.")
        if f"^{module}".endswith((name, f".{name}") if name.startswith("^") else (f".{name}", f"^{name}")):
            return value
    return default
