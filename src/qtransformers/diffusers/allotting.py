"""Which type each weight of a diffusion model should have, so that all take so many bytes and its output suffers least.

As for language models (quantize/budget.py): the error of each weight's products over what comes to it, in every type, times how far
the output moves per error. That is measured with single weights rounded coarsely, in some layers of each kind; others lie between.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qtransformers.convert import ConversionPlan
from qtransformers.convert.diffusion import Model
from qtransformers.convert.plan import Target
from qtransformers.diffusers.loading import values
from qtransformers.diffusers.observing import Observed, Seen
from qtransformers.load.diffusion import LAYOUT_KEY, Part, source_name
from qtransformers.quantize.budget import PROBE, SAMPLE, Choice, allot, types_of_width
from qtransformers.quantize.make import How
from qtransformers.quants import dequantize, quantize
from qtransformers.types import BY_NAME, QuantType

F32 = NDArray[np.float32]
LAYERS = 4  # of each kind that are tried out
FEW = 512  # rows that errors are computed on
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def allotted(model: Model, plan: ConversionPlan, run: Observed, how: How, progress: Callable[[int, int], None]) -> dict[str, QuantType]:  # fmt: skip
    """The types of all tensors of a file, by name, such that they take what `how` allows; what has its type stated keeps it.

    ConfigError where even the smallest types take more.
    """
    parts = _parts(model, plan, run.seen)
    sizes = {t.name: {type.name: _bytes(type, t.shape) for type in types_of_width(t.shape[-1])} for t in plan.tensors if t.name in parts}  # fmt: skip
    left = how.left(plan, sizes)
    alike = {name: tuple(Choice(BY_NAME[t], n, 0.0) for t, n in of.items()) for name, of in sizes.items()}
    allot(alike, left)  # which says before anything is measured that there is no room
    errors = {name: {t.name: sum(_error(p, run.seen, t) for p in of) for t in types_of_width(of[0].declared.shape[1])} for name, of in parts.items()}  # fmt: skip
    probed = list(_probed(list(parts)))
    moved: dict[str, float] = {}
    calls = [run.calls[0], run.calls[len(run.calls) // 2]][: len(run.calls)]
    with torch.no_grad():
        wanted = [_output(run.live, call) for call in calls]
        for i, name in enumerate(probed):
            type = next(t for t in PROBE if t in errors[name])
            with _rounded(run.live, parts[name], BY_NAME[type], run.seen):
                off = [float((_output(run.live, call) - y).square().mean() / y.square().mean()) for call, y in zip(calls, wanted, strict=True)]  # fmt: skip
            moved[name] = sum(off) / max(errors[name][type], 1e-30)
            progress(i + 1, len(probed))
    choices = {
        name: tuple(Choice(BY_NAME[t], sizes[name][t], _between(name, moved) * e) for t, e in of.items())
        for name, of in errors.items()
    }
    return {t.name: t.type for t in plan.tensors} | allot(choices, left)


def _bytes(type: QuantType, shape: tuple[int, ...]) -> int:
    return int(type.row_bytes(shape[-1]) * np.prod(shape[:-1], dtype=int))


def _parts(model: Model, plan: ConversionPlan, seen: Mapping[str, Seen]) -> dict[str, list[Part]]:
    """The weights of the class that make up each tensor of the file whose type may be chosen."""
    free: dict[str, Target] = {t.name: t for t in plan.tensors if t.type.is_quantized and not t.stated}
    found: dict[str, list[Part]] = {}
    for part in model.parts:
        name = source_name(part.declared, plan.metadata[LAYOUT_KEY])
        if name in free and len(part.declared.shape) == 2:
            found.setdefault(name, []).append(part)
    return {n: ps for n, ps in found.items() if all(_layer(p) in seen for p in ps) and types_of_width(ps[0].declared.shape[1])}  # fmt: skip


def _layer(part: Part) -> str:
    return part.name.removesuffix(".weight")


def _rows(w: F32, type: QuantType, seen: Seen) -> F32:
    """What rounding adds to rows of a weight."""
    back = dequantize(quantize(w, type, importance=seen.mean().astype(np.float32)), type)
    return back.reshape(w.shape) - w


def _error(part: Part, seen: Mapping[str, Seen], type: QuantType) -> float:
    """The error of a weight's products in a type, from some of its rows."""
    w = values(part, torch.float32).numpy()
    some, one = np.ascontiguousarray(w[:: -(-len(w) // SAMPLE)]), seen[_layer(part)]
    off = one.sample(FEW) @ _rows(some, type, one).T
    return float(np.square(off, dtype=np.float64).mean(0).sum()) * len(w) / len(some)


def _probed(names: list[str]) -> Iterator[str]:
    """Of each kind of tensor some, evenly."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(_NUMBER.sub("#", name), []).append(name)
    for of in kinds.values():
        yield from (
            of[i] for i in sorted({round(i) for i in np.linspace(0, len(of) - 1, min(LAYERS, len(of))).tolist()})
        )


def _between(name: str, moved: Mapping[str, float]) -> float:
    """How far the output moves for an error of this tensor: as measured, or between those of its kind."""
    kind = _NUMBER.sub("#", name)
    known = sorted(([int(n) for n in _NUMBER.findall(other)], v) for other, v in moved.items() if _NUMBER.sub("#", other) == kind)  # fmt: skip
    if name in moved or len(known[0][0]) != 1:
        return moved.get(name, float(np.mean([v for _, v in known])))
    return float(np.interp(int(_NUMBER.findall(name)[0]), [n[0] for n, _ in known], [v for _, v in known]))


@contextmanager
def _rounded(live: Any, parts: list[Part], type: QuantType, seen: Mapping[str, Seen]) -> Iterator[None]:
    """The model with these weights in a type: what rounding adds to their products is added to them."""

    def adding(off: torch.Tensor) -> Callable[..., torch.Tensor]:
        return lambda module, args, out: out + torch.nn.functional.linear(args[0], off)

    handles = []
    try:
        for part in parts:
            off = torch.from_numpy(_rows(values(part, torch.float32).numpy(), type, seen[_layer(part)]))
            handles.append(live.get_submodule(_layer(part)).register_forward_hook(adding(off)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _output(live: Any, call: Mapping[str, Any]) -> torch.Tensor:
    out = live(**call, return_dict=False)[0]
    found: torch.Tensor = (out[0] if isinstance(out, list) else out).float()
    return found
