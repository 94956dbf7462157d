"""A plan without a spec: bytes of a model that this version cannot run, or that is broken, from its header alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from qtransformers.archs.spec import Slot, TensorSpec
from qtransformers.cache.pages import check_codec
from qtransformers.kernels.table import ACCURACY, FEW_ROWS, why_not
from qtransformers.load.findings import LAYER
from qtransformers.load.footprint import CacheShape, program_bytes, temporaries
from qtransformers.load.plan import LOGITS_ROWS, PARALLEL, PREFILL_CHUNK, LoadPlan, PlannedTensor, products
from qtransformers.machine import usable_cores
from qtransformers.tensor import QTensor

# Roles by the names GGUF files use in all architectures, the first that matches; facts of llama.cpp's tensor names.
_ROLES = tuple(
    (re.compile(pattern), role)
    for pattern, role in (
        (r"token_embd|per_layer_token_embd|position_embd|token_types", "embed"),
        (r"norm", "norm"),
        (r"rope", "rope"),
        (r"ffn_gate_inp|exp_probs", "router"),
        (r"ffn_.*_shexp", "shared_experts"),
        (r"ffn_.*_exps?(\.|$)", "experts"),
        (r"ffn_", "dense_ffn"),
        (r"attn_|ssm_", "attn"),
        (r"^output|^cls", "output"),
    )
)
_CONTEXT = 4096  # tokens, where a file does not say


def role_of(name: str) -> str:
    """The role of a tensor by its name; `other` where that tells nothing."""
    base = LAYER.sub("", name)
    return next((role for pattern, role in _ROLES if pattern.search(base)), "other")


def outline(
    file: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, QTensor],
    *,
    context_length: int | None = None,
    cache: str = "f16",
    prefill_chunk: int = PREFILL_CHUNK,
    accuracy: str = ACCURACY,
    threads: int | None = None,
    vocabulary: tuple[int, int] | None = None,
) -> LoadPlan:
    """The bytes of a model by the keys and names that most architectures share; nothing is checked."""
    check_codec(cache)
    arch = str(metadata.get("general.architecture", "unknown architecture"))
    get = _numbers(arch, metadata)
    planned = tuple(_planned(name, t) for name, t in tensors.items())
    n_layers = get("block_count", 1 + max((int(m[1]) for name in tensors if (m := LAYER.search(name))), default=-1))
    embedding = tensors.get("token_embd.weight")
    vocab = embedding.shape[0] if embedding is not None and embedding.shape else get("vocab_size", 0)
    width = get("embedding_length", embedding.shape[-1] if embedding is not None and embedding.shape else 0)
    context = context_length or get("context_length", _CONTEXT)
    shape = _cache_shape(get, n_layers, width)
    rows = min(prefill_chunk, context)
    return LoadPlan(
        file=file,
        architecture=arch,
        tensors=planned,
        ties={},
        context_length=context,
        cache=cache,
        weights_bytes=sum(t.nbytes for t in planned),
        cache_tokens=context,
        cache_bytes=shape.bytes(context, cache),
        activations_bytes=temporaries(
            width,
            vocab,
            products(planned, get("expert_used_count", 1)),
            rows,
            max(LOGITS_ROWS, PARALLEL, FEW_ROWS[accuracy]),
            accuracy,
            threads or usable_cores(),
        ),
        program_bytes=program_bytes(*(vocabulary or (vocab,))),
        cache_shape=shape,
        runnable=False,
    )


def _planned(name: str, tensor: QTensor) -> PlannedTensor:
    found = LAYER.search(name)
    base, _, ending = name.rpartition(".")
    part: Any = "bias" if ending == "bias" else "weight"
    suffix = ".weight" if ending == "weight" else ""
    template = LAYER.sub("blk.{i}.", base if ending in ("weight", "bias") else name)
    spec = TensorSpec(
        template.rpartition(".")[2], template, tuple(map(str, tensor.shape)), role_of(name), suffix=suffix
    )
    slot = Slot(spec, int(found[1]) if found else None, part)
    reason = why_not("linear", tensor.type, "cpu")
    place = "mmap" if len(tensor.shape) > 1 else "cpu"
    return PlannedTensor(slot, tensor.type, tensor.shape, tensor.nbytes, place, "" if reason else tensor.type.name)


def _numbers(arch: str, metadata: Mapping[str, Any]) -> Any:
    """`get(key, default)`: a whole number of the architecture, the largest of an array with one a layer."""

    def get(key: str, default: int) -> int:
        value = metadata.get(f"{arch}.{key}")
        if value is not None and not isinstance(value, (str, bool)):
            numbers = [value] if isinstance(value, (int, float)) else list(value)[:1024]
            whole = [int(n) for n in numbers if not isinstance(n, str) and math.isfinite(n) and 0 <= n < 1 << 31]
            return max(whole, default=default)
        return default

    return get


def _cache_shape(get: Any, n_layers: int, width: int) -> CacheShape:
    """Keys and values of a layer."""
    heads = get("attention.head_count", 1)
    dim = get("attention.key_length", width // max(1, heads))
    return CacheShape(n_layers, get("attention.head_count_kv", heads), dim, get("attention.value_length", dim))
