"""A model in several parts, each of some layers in a row, for processes or machines of which none could hold it all."""

from __future__ import annotations

import zlib
from bisect import bisect_left
from dataclasses import dataclass, replace
from itertools import accumulate
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qtransformers.checks import whole
from qtransformers.errors import ConfigError, UnsupportedError
from qtransformers.gguf import GGUFFile
from qtransformers.load.plan import LoadPlan, PlannedTensor
from qtransformers.nn.stages import Elsewhere

if TYPE_CHECKING:
    from qtransformers.load.prepare import Prepared

BEFORE = ("embed", "position")  # roles of matrices that are read before the first layer


@dataclass(frozen=True)
class Part:
    """One of `n` parts: the first has the embedding, the last the output."""

    rank: int
    n: int

    @property
    def is_last(self) -> bool:
        """Whether it gives logits."""
        return self.rank == self.n - 1


def cuts(plan: LoadPlan, n_layers: int, n: int) -> list[range]:
    """Layers of each of `n` parts, about as many bytes of weights and cache in each; ConfigError where there are too few."""
    if whole("stages", n, 1, 1024) > n_layers:
        raise ConfigError(f"{plan.file} has {n_layers} layers, which cannot be cut in {n} stages. Take fewer.")
    sizes = [plan.kept(i) for i in range(n_layers)]
    for t in plan.tensors:
        sizes[t.slot.layer if t.slot.layer is not None else 0 if t.role in BEFORE else -1] += t.nbytes
        if t.slot.attr in plan.ties.values():
            sizes[-1] += t.nbytes
    sums = list(accumulate(sizes))
    ends: list[int] = []
    for k in range(1, n):
        i = bisect_left(sums, sums[-1] * k / n)
        below = sums[i - 1] if i else 0
        end = i + (sums[i] - sums[-1] * k / n < sums[-1] * k / n - below)  # the nearer of two ends
        ends.append(min(max(end, ends[-1] + 1 if ends else 1), n_layers - (n - k)))
    return [range(a, b) for a, b in zip([0, *ends], [*ends, n_layers], strict=True)]


def part_of(prepared: Prepared, part: Part) -> tuple[Prepared, range]:
    """What one part loads, and its layers; UnsupportedError for an encoder."""
    plan, h = prepared.plan, prepared.hparams
    if prepared.spec.kind != "language":
        raise UnsupportedError(f"stages: {plan.file} is an encoder, which runs in one process only. Leave stages out.")
    layers = cuts(plan, h["n_layers"], part.n)[part.rank]
    tied = set(plan.ties.values()) if part.is_last else set()
    tensors = tuple(
        t
        for t in plan.tensors
        if (t.slot.layer in layers if t.slot.layer is not None else _has(t, part) or t.slot.attr in tied)
    )
    shape = replace(plan.cache_shape, n_layers=sum(i not in plan.recurrent for i in layers))
    own = plan.recurrent.intersection(layers)
    plan = replace(
        plan,
        tensors=tensors,
        weights_bytes=sum(t.nbytes for t in tensors),
        cache_shape=shape,
        cache_bytes=shape.bytes(plan.cache_tokens, plan.cache),
        states_bytes=plan.states_bytes * len(own) // max(1, len(plan.recurrent)),
        recurrent=own,
    )
    return replace(prepared, plan=plan), layers


def keep_part(weights: SimpleNamespace, whole_plan: LoadPlan, plan: LoadPlan, layers: range, part: Part) -> None:
    """Leave in placed weights the layers of this part, with `Elsewhere` for the matrices that the others have."""
    weights.layers = weights.layers[layers.start : layers.stop]
    shapes = {t.slot.attr: t.shape for t in whole_plan.tensors if t.slot.layer is None and len(t.shape) > 1}
    for attr in set(shapes) - {t.slot.attr for t in plan.tensors}:
        setattr(weights, attr, Elsewhere(shapes[attr]))
    for attr, target in () if part.is_last else whole_plan.ties.items():
        setattr(weights, attr, Elsewhere(shapes[target]))


def bytes_of(plan: LoadPlan, gguf: GGUFFile) -> list[NDArray[np.uint8]]:
    """The mapped bytes of a plan's tensors, in file order."""
    views = [gguf.tensors[t.slot.name].data for t in plan.tensors]
    return sorted(views, key=lambda view: view.ctypes.data)


def mark(plan: LoadPlan, gguf: GGUFFile) -> str:
    """What tells a model from another without a look at its weights: metadata, and of all tensors name, type and shape."""
    found = zlib.crc32(plan.architecture.encode())
    for key in gguf.metadata:
        found = zlib.crc32(gguf.metadata.encoded(key).data, zlib.crc32(key.encode("utf-8", "surrogateescape"), found))
    for name, tensor in gguf.tensors.items():
        found = zlib.crc32(f"{name} {tensor.type.name} {tensor.shape}".encode("utf-8", "surrogateescape"), found)
    return f"{len(gguf.tensors)}-{gguf.nbytes}-{found:08x}"


def _has(t: PlannedTensor, part: Part) -> bool:
    """Whether a part has a tensor that is in no layer: vectors are everywhere."""
    if len(t.shape) < 2:
        return True
    return part.rank == 0 if t.role in BEFORE else part.is_last
