"""A model in fewer bits, as good as can be: scales folded, rounding compensated, weight by weight on what the texts really bring.

`improve` takes a model in floats and the type of each tensor (from a recipe or a budget), and gives the bytes of each tensor for a
standard GGUF file.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import ConfigError
from qtransformers.quantize import awq
from qtransformers.quantize.folds import Factors, Fold, Folded, folds
from qtransformers.quantize.journal import Journal
from qtransformers.quantize.observe import Site, as_weight, sites
from qtransformers.quantize.passes import Ints
from qtransformers.quantize.refine import can_refine, coded, refine
from qtransformers.quantize.relay import Moments, relay
from qtransformers.quants import dequantize, quantize
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME, QuantType

if TYPE_CHECKING:
    from qtransformers.load import Loaded

F32 = NDArray[np.float32]
Progress = Callable[[int, int], None]
SAMPLE = 256  # rows of a weight whose error is computed


@dataclass(eq=False)
class Improved:
    """What became of a model: the blocks of its weights, in a journal, and the factors that were folded."""

    model: Loaded
    types: Mapping[str, QuantType]
    folded: Folded = field(default_factory=Folded)
    errors: dict[str, tuple[float, float]] = field(
        default_factory=dict
    )  # of each weight's product, absolute, and relative to its power
    journal: Journal = field(default_factory=Journal)
    _slots: dict[str, tuple[int | None, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._slots = {t.slot.name: (t.slot.layer, t.slot.attr) for t in self.model.plan.tensors}

    def __enter__(self) -> Improved:
        return self

    def __exit__(self, *error: object) -> None:
        self.journal.close()

    def tensor(self, name: str) -> NDArray[Any]:
        """What a file stores of the tensor called `name`: values of a plain type's own, blocks as bytes of the others."""
        source, type = self.source(name), self.types[name]
        factors = self.folded.of(*self._slots[name]) if name in self._slots else Factors()
        if ("weight", name) in self.journal:
            blocks = self.journal.data(("weight", name))
            if factors.rows is None:
                return blocks
            if can_refine(type):
                n_rows = source.n_rows
                rows = np.broadcast_to(factors.rows, source.shape[:-1]).reshape(n_rows)
                return coded(blocks, type, n_rows).blocks(rows)
        if source.type.family == "int":
            return source.data
        values = np.ascontiguousarray(factors.apply(source.dequantize()), np.float32)
        return quantize(values.reshape(-1, values.shape[-1] if values.ndim else 1), type)

    def tensors(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """All of the file, in its order."""
        assert self.model.sources.gguf is not None
        return ((name, self.tensor(name)) for name in self.model.sources.gguf.tensors)

    def source(self, name: str) -> QTensor:
        """The tensor it was made of."""
        assert self.model.sources.gguf is not None
        return self.model.sources.gguf.tensors[name]


def improve(
    model: Loaded, rows: Ints, types: Mapping[str, QuantType], *, fold: bool = True, compensate: bool = True,
    importance: Mapping[str, F32] | None = None, journal: Journal | None = None, progress: Progress | None = None,
) -> Improved:  # fmt: skip
    """Encode a model's weights as `types` says, by name, learning from the texts `rows [n, chunk]`.

    `fold` moves scales to where rounding hurts less (AWQ), `compensate` makes rounding take up its own errors (GPTQ and further); with
    neither, weights are encoded with the importance of their columns. `importance`, mean squares of inputs by weight (`[in]` or
    `[n, in]`, of an importance matrix), takes the place of what these texts say of them, which then only tell how inputs go together.
    Each weight sees inputs that passed the new ones before it.
    What `journal` tells of an earlier run is not found out again, and what is new goes in.
    ConfigError where a tensor has no type or one that does not fit its width.
    """
    out = Improved(model, types, journal=journal or Journal())
    if journal is None:
        weakref.finalize(out, out.journal.close)
    _check(out)
    open_folds = {(f.layer, r.attr): f for f in (folds(model) if fold else ()) for r in f.readers if not r.by_rows}
    by_place = {site.place: site for site in sites(model)}

    def step(site: Site, moments: Moments) -> Any:
        mine = open_folds.get(site.place)
        if mine is not None:
            _decide(mine, out, moments, by_place, importance or {})
            for reader in mine.readers:
                open_folds.pop((mine.layer, reader.attr), None)
        return _encode(site, moments, out, compensate, importance or {})

    relay(model, rows, step, progress=progress, total=len(by_place))
    return out


def _check(out: Improved) -> None:
    for name, tensor in ((name, out.source(name)) for name, _ in _named(out)):
        type = out.types.get(name)
        if type is None or (tensor.shape and tensor.shape[-1] % type.block_size):
            said = "none" if type is None else f"{type.name}, whose blocks have {type.block_size} values"
            raise ConfigError(f"{name} is {list(tensor.shape)}, and its type is {said}. Name one that fits.")


def _named(out: Improved) -> Iterator[tuple[str, QTensor]]:
    assert out.model.sources.gguf is not None
    yield from out.model.sources.gguf.tensors.items()


def _inputs(name: str, e: int, product: NDArray[np.float64], importance: Mapping[str, F32]) -> NDArray[np.float64]:
    """The mean of x x^T as texts have it, with the mean squares of a given importance where there is one."""
    if name not in importance:
        return product
    given = importance[name].reshape(-1, len(product))
    given, seen = given[min(e, len(given) - 1)].astype(np.float64), product.diagonal()
    known = (given > 0) & (seen > 0)
    louder = np.sqrt(np.divide(given, seen, out=np.ones_like(seen), where=known))
    return product * louder * louder[:, None]


def _decide(
    fold: Fold, out: Improved, moments: Moments, by_place: Mapping[tuple[int | None, str], Site], importance: Mapping[str, F32]
) -> None:  # fmt: skip
    """Search the scales of a fold on what comes to its first reader."""
    key = ("fold", f"{fold.layer}.{fold.source}")
    scales: F32 = np.ones((fold.copies, fold.n), np.float32)
    known = key in out.journal
    if known:
        scales = out.journal.data(key).view(np.float32).reshape(scales.shape)
    for e in range(0 if known else fold.copies):
        readers, name = [], ""
        for reader in fold.readers:
            site = by_place.get((fold.layer, reader.attr))
            if site is None or reader.by_rows:
                continue
            values = site.tensor.dequantize()
            if values.ndim == 3:
                values = values[e] if fold.copies > 1 else values.reshape(-1, values.shape[-1])
            readers.append(awq.Candidate(values, out.types[site.name], reader.index))
            name = name or site.name
        product, size = moments.of_all()
        if fold.copies > 1:
            product, size = moments.mean_product(e), moments.sizes[e] / max(1, moments.counts[e])
        scales[e] = awq.search(readers, fold.n, _inputs(name, e, product, importance), size)
    if not known:
        out.journal.put(key, scales)
    if (scales != 1).any():
        out.folded.add(fold, scales.reshape(fold.shape), out.model.weights)


def _encode(site: Site, moments: Moments, out: Improved, compensate: bool, importance: Mapping[str, F32]) -> Any:
    """Encode a weight with its columns' factors; what the forwards go on with."""
    tensor, type = site.tensor, out.types[site.name]
    if not type.is_quantized:
        return site.weight
    values = tensor.dequantize().reshape(site.n_matrices, *tensor.shape[-2:])
    columns = out.folded.of(*out._slots[site.name]).columns
    key, known, error, power = ("weight", site.name), None, 0.0, 0.0
    if key in out.journal:
        known, (error, power) = out.journal.data(key).reshape(len(values), -1), out.journal.facts(key)["error"]
    blocks, back = [], np.empty_like(values)
    for e, own in enumerate(values):
        c = np.ones(own.shape[1], np.float32) if columns is None else (columns[e] if columns.ndim > 1 else columns)
        h = None
        if known is not None:
            made = known[e]
        else:
            h = _inputs(site.name, e, moments.mean_product(e), importance)
            made = encoded(own, type, h, compensate, c)
        blocks.append(made)
        back[e] = dequantize(made, type).reshape(own.shape) / c
        if h is not None:
            step = -(-len(own) // SAMPLE)
            some, off = own[::step], back[e, ::step] - own[::step]
            error += _of_product(off, h) * len(own) / len(some)
            power += _of_product(some, h) * len(own) / len(some)
    if known is None:
        out.journal.put(key, np.concatenate(blocks), error=(error, power))
    out.errors[site.name] = error, error / power if power else 0.0
    return as_weight(back.reshape(tensor.shape), site.name)


def _of_product(off: F32, h: NDArray[np.float64]) -> float:
    """The mean square of `off x` over the inputs x that `h` is the mean of x x^T of."""
    return float(np.einsum("oi,oi->", off @ h.astype(np.float32), off, dtype=np.float64))


def encoded(
    w: F32, type: QuantType, h: NDArray[np.float64], compensate: bool = True, columns: F32 | None = None
) -> NDArray[np.uint8]:
    """Blocks of a weight `[out, in]`, its columns times `columns`, with the mean of x x^T over what it meets now, `h [in, in]`."""
    c = np.ones(w.shape[1], np.float32) if columns is None else columns
    scaled = np.ascontiguousarray(w * c, np.float32)
    if compensate and can_refine(type):
        return refine(scaled, type, h / np.outer(c, c)).blocks()
    return quantize(scaled, type, importance=np.ascontiguousarray(h.diagonal() / np.square(c), np.float32))


def plain_types(model: Loaded, type: str) -> dict[str, QuantType]:
    """One type for all weights that fill its blocks, and for the others what they have."""
    assert model.sources.gguf is not None
    wanted, found = BY_NAME[type], {}
    multiplied = {site.name for site in sites(model)}
    for name, tensor in model.sources.gguf.tensors.items():
        fits = name in multiplied and tensor.shape[-1] % wanted.block_size == 0
        found[name] = wanted if fits else tensor.type
    return found
