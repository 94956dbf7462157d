"""Which type each weight should have, so that all together take so many bytes and the model suffers least.

For every weight and type the error of its product over real inputs is computed, and for every weight (of some layers; others lie
between) how far the model's predictions move per error: each is encoded alone, coarsely, and the Kullback-Leibler divergence
measured. Their product is what a type costs. Bytes then go where they buy most, along the convex hull of each weight's choices.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import ConfigError
from qtransformers.kernels.cpu import Pool
from qtransformers.machine import usable_cores
from qtransformers.quantize.observe import Site, as_weight, sites, watched
from qtransformers.quantize.passes import Ints, logits, one_layer_cache, side_by_side, slices
from qtransformers.quantize.relay import Moments, relay
from qtransformers.quants import dequantize, quantize
from qtransformers.settings import Settings
from qtransformers.types import BY_NAME, QuantType

if TYPE_CHECKING:
    from qtransformers.load import Loaded

F32 = NDArray[np.float32]
CHOICES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")  # types to allot
NARROW = ("Q4_0", "Q5_0", "Q8_0")  # of rows that fill no block of 256
PROBE = "Q3_K", "Q4_0"  # what a weight is encoded in to see how the model suffers
SAMPLE = 256  # rows of a weight whose error is computed
LAYERS = 8  # in which sensitivities are measured
TEXTS = 4  # of calibration, on which they are


@dataclass(frozen=True)
class Choice:
    """A type for a weight: its bytes, and what the model is expected to lose, in nats a token."""

    type: QuantType
    nbytes: int
    cost: float


@dataclass(frozen=True)
class Survey:
    """What was measured of a model: choices by the names of its weights."""

    choices: Mapping[str, tuple[Choice, ...]]
    sensitivity: Mapping[str, float]  # divergence per error of each product


def survey(model: Loaded, rows: Ints, *, progress: Callable[[int, int], None] | None = None) -> Survey:
    """Measure every weight of a model on the texts `rows [n, chunk]`."""
    errors: dict[str, dict[str, float]] = {}
    every = {site.name: site for site in sites(model)}

    def step(site: Site, moments: Moments) -> Any:
        errors[site.name] = {type.name: _error(site, moments, type) for type in types_of_width(site.tensor.shape[-1])}
        return site.weight

    relay(model, rows, step)
    probed = list(_probed(list(every.values())))
    moved: dict[str, float] = {}
    for i, site in enumerate(probed):
        type = BY_NAME[next(name for name in PROBE if name in errors[site.name])]
        values = site.tensor.dequantize()
        back = dequantize(quantize(values.reshape(-1, values.shape[-1]), type), type).reshape(values.shape)
        loss = divergence_with(model, site, as_weight(back, site.name), rows[:TEXTS])
        moved[site.name] = loss / max(errors[site.name][type.name], 1e-30)
        if progress:
            progress(i + 1, len(probed))
    sensitivity = {name: _between(name, moved) for name in every}
    choices = {
        name: tuple(
            Choice(BY_NAME[t], BY_NAME[t].row_bytes(site.tensor.n_values), sensitivity[name] * e)
            for t, e in errors[name].items()
        )
        for name, site in every.items()
    }
    return Survey(choices, sensitivity)


def allot(choices: Mapping[str, Sequence[Choice]], nbytes: int) -> dict[str, QuantType]:
    """The type of each weight such that all take at most `nbytes`, with about the least total cost.

    ConfigError where even the smallest types take more.
    """
    hulls = {name: _hull(options) for name, options in choices.items()}
    at = dict.fromkeys(hulls, 0)
    used = sum(hull[0].nbytes for hull in hulls.values())
    if used > nbytes:
        raise ConfigError(f"the smallest types take {used:,} bytes for these weights; {nbytes:,} were allowed. Allow more, or take a smaller model.")  # fmt: skip
    steps = sorted(
        (
            ((a.cost - b.cost) / (b.nbytes - a.nbytes), name, i + 1)
            for name, hull in hulls.items()
            for i, (a, b) in enumerate(pairwise(hull))
        ),
        key=lambda step: (-step[0], step[1], step[2]),
    )
    for _, name, i in steps:  # along each hull gains fall, so a weight's steps come in order
        more = hulls[name][i].nbytes - hulls[name][at[name]].nbytes
        if i == at[name] + 1 and used + more <= nbytes:
            at[name], used = i, used + more
    return {name: hulls[name][i].type for name, i in at.items()}


def budget_bytes(sizes: Mapping[str, tuple[int, int]], allotted: Sequence[str], bits_per_weight: float) -> int:
    """Bytes for the weights `allotted`, where all tensors, (values, bytes) by name, may take `bits_per_weight` on average."""
    total = sum(n for n, _ in sizes.values()) * bits_per_weight / 8
    return int(total - sum(nbytes for name, (_, nbytes) in sizes.items() if name not in set(allotted)))


def types_of_width(width: int) -> list[QuantType]:
    """The types to choose from for rows so wide."""
    names = CHOICES if width % 256 == 0 else NARROW
    return [BY_NAME[name] for name in names if width % BY_NAME[name].block_size == 0]


def _error(site: Site, moments: Moments, type: QuantType) -> float:
    """The error of a weight's product in a type, from some of its rows."""
    values = site.tensor.dequantize().reshape(site.n_matrices, *site.tensor.shape[-2:])
    total = 0.0
    for e, own in enumerate(values):
        h = moments.mean_product(e).astype(np.float32)
        some = np.ascontiguousarray(own[:: -(-len(own) // SAMPLE)])
        back = dequantize(quantize(some, type, importance=np.ascontiguousarray(h.diagonal())), type)
        off = back.reshape(some.shape) - some
        total += float(np.einsum("oi,oi->", off @ h, off, dtype=np.float64)) * len(own) / len(some)
    return total


def _probed(every: Sequence[Site]) -> Iterator[Site]:
    """The weights whose sensitivities are measured: of some layers, evenly, all."""
    layers = sorted({site.layer for site in every if site.layer is not None})
    chosen = {layers[i] for i in np.linspace(0, len(layers) - 1, min(LAYERS, len(layers))).round().astype(int)}
    return (site for site in every if site.layer is None or site.layer in chosen)


def _between(name: str, moved: Mapping[str, float]) -> float:
    """A weight's sensitivity, or between those of its kind in the nearest layers."""
    if name in moved:
        return moved[name]
    number = re.compile(r"(?<=blk\.)\d+")
    known = {int(number.findall(n)[0]): v for n, v in moved.items() if number.sub("#", n) == number.sub("#", name)}
    if not known:  # of a kind that only some layers have
        return float(np.median(list(moved.values())))
    layers = sorted(known)
    return float(np.interp(int(number.findall(name)[0]), layers, [known[i] for i in layers]))


def divergence_with(model: Loaded, site: Site, other: Any, rows: Ints) -> float:
    """Mean divergence of the model with another weight at one site from the model as it is, over all tokens of `rows [n, chunk]`."""
    changed = watched(model, lambda s, x, which: other if s.place == site.place else s.weight)
    cache = one_layer_cache(model, 1, rows.shape[1])
    pool = Pool(Settings.from_env().threads or usable_cores(), Settings.from_env().isa or "")
    total = 0.0
    with pool:
        for part in slices(len(rows), 1):
            batch = side_by_side(rows[part])
            p, q = (_log_softmax(logits(model, batch, cache, w)) for w in (model.weights, changed))
            total += float(np.einsum("tv,tv->", np.exp(p), p - q, dtype=np.float64))
    return max(total / rows.size, 0.0)


def _log_softmax(x: F32) -> F32:
    x = x - x.max(1, keepdims=True)
    found: F32 = x - np.log(np.exp(x).sum(1, keepdims=True, dtype=np.float64)).astype(np.float32)
    return found


def _hull(options: Sequence[Choice]) -> list[Choice]:
    """Those worth having: growing bytes, falling cost, at falling gain a byte."""
    found: list[Choice] = []
    for c in sorted(options, key=lambda c: (c.nbytes, c.cost)):
        if found and c.cost >= found[-1].cost:
            continue
        while len(found) > 1 and _gain(found[-2], found[-1]) <= _gain(found[-2], c):
            found.pop()
        found.append(c)
    return found


def _gain(a: Choice, b: Choice) -> float:
    return (a.cost - b.cost) / (b.nbytes - a.nbytes)
