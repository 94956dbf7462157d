"""Seeing what comes to every weight of a model, whatever its architecture: each is replaced by one that tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.kernels import cpu
from qtransformers.kernels.reference import ACTIVATIONS
from qtransformers.load.plan import DECODED_ROLES
from qtransformers.nn.adapted import StandIn
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME

if TYPE_CHECKING:
    from qtransformers.archs.spec import TensorSpec
    from qtransformers.load import Loaded

F32 = NDArray[np.float32]
Ints = NDArray[np.int32]
NOT_MULTIPLIED = ("embed", "position", *DECODED_ROLES)  # roles


@dataclass(frozen=True, eq=False)
class Site:
    """A weight that inputs are multiplied with: a matrix `[out, in]`, or one for each expert or head `[n, out, in]`."""

    name: str  # in the file
    attr: str
    layer: int | None
    spec: TensorSpec
    weight: Any  # bound
    place: tuple[int | None, str]  # where models read it; a tied output is read as `output`

    @property
    def tensor(self) -> QTensor:
        """As it is stored."""
        tensor: QTensor = self.weight.tensor
        return tensor

    @property
    def n_matrices(self) -> int:
        """How many matrices it holds."""
        return self.tensor.shape[0] if len(self.tensor.shape) == 3 else 1


# (site, inputs [T, in], which of its matrices each meets [T] or None for all) -> the weight to multiply with
Arrive = Callable[[Site, F32, "Ints | None"], Any]


def sites(model: Loaded) -> Iterator[Site]:
    """Every weight of a model that inputs are multiplied with, in the order of the file."""
    for planned in model.plan.tensors:
        slot = planned.slot
        if slot.part == "bias" or len(planned.shape) < 2 or slot.spec.role in NOT_MULTIPLIED:
            continue
        home = model.weights if slot.layer is None else model.weights.layers[slot.layer]
        yield Site(slot.name, slot.attr, slot.layer, slot.spec, getattr(home, slot.attr), (slot.layer, slot.attr))
    for attr, target in model.plan.ties.items():
        slot = next(t.slot for t in model.plan.tensors if t.slot.layer is None and t.slot.attr == target)
        yield Site(slot.name, slot.attr, None, slot.spec, getattr(model.weights, attr), (None, attr))


def watched(model: Loaded, arrive: Arrive) -> SimpleNamespace:
    """The model's weights, each site of which asks `arrive` whenever inputs come to it."""
    changed = SimpleNamespace(**vars(model.weights))
    changed.layers = tuple(SimpleNamespace(**vars(layer)) for layer in model.weights.layers)
    for site in sites(model):
        layer, attr = site.place
        setattr(changed if layer is None else changed.layers[layer], attr, Watched(site, arrive))
    return changed


@dataclass(frozen=True, eq=False)
class Watched(StandIn):
    """A weight that tells what comes to it."""

    site: Site
    arrive: Arrive

    @property
    def shape(self) -> tuple[int, ...]:
        """As the weight's."""
        return self.site.tensor.shape

    def product(self, x: F32, bias: F32 | None = None) -> F32:
        """As `nn.linear`."""
        return cpu.linear(x, self.arrive(self.site, x, None), bias)

    def per_head(self, x: F32) -> F32:
        """As `nn.per_head`: head h of each token meets matrix h."""
        n = x.shape[1]
        flat = x.reshape(-1, x.shape[-1])
        return cpu.per_head(x, self.arrive(self.site, flat, np.tile(np.arange(n, dtype=np.int32), len(x))))

    def moe(
        self, x: F32, ids: Ints, weights: F32, w_up: Watched, w_down: Watched, act: str, biases: Sequence[F32 | None]
    ) -> F32:
        """As `nn.moe`, in steps: all that an expert's gate and up make is seen by its down."""
        token, experts = np.repeat(np.arange(len(x)), ids.shape[1]), ids.reshape(-1)
        given = np.ascontiguousarray(x[token])
        gate, up = (
            _by_expert(given, experts, w.arrive(w.site, given, experts), bias)
            for w, bias in zip((self, w_up), biases, strict=False)
        )
        hidden = ACTIVATIONS[act](gate.astype(np.float64), up.astype(np.float64)).astype(np.float32)
        down = _by_expert(hidden, experts, w_down.arrive(w_down.site, hidden, experts), biases[2])
        summed: F32 = (down.reshape(*ids.shape, -1) * weights[..., None]).sum(1, dtype=np.float32)
        return summed


def _by_expert(x: F32, experts: Ints, w: Any, bias: F32 | None) -> F32:
    """Each row times the matrix of its expert."""
    y = np.empty((len(x), w.shape[1]), np.float32)
    for e in np.unique(experts).tolist():
        rows = experts == e
        y[rows] = cpu.linear(x[rows], matrix(w.tensor, e), None if bias is None else bias[e])
    return y


def matrix(tensor: QTensor, e: int) -> Any:
    """One of the matrices of `[n, out, in]`, bound."""
    step = tensor.nbytes // tensor.shape[0]
    return cpu.bind(QTensor(tensor.name, tensor.type, tensor.shape[1:], tensor.data[e * step : (e + 1) * step]))


def as_weight(values: F32, name: str) -> Any:
    """Floats as a weight."""
    values = np.ascontiguousarray(values, np.float32)
    return cpu.bind(QTensor(name, BY_NAME["F32"], values.shape, values.reshape(-1).view(np.uint8)))
