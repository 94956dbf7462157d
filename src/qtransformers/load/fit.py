"""Whether a plan fits a machine, and the settings with which it would."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

from qtransformers.cache import CODECS, PAGE_TOKENS
from qtransformers.checks import size
from qtransformers.errors import InsufficientMemoryError
from qtransformers.kernels.kv import why_not
from qtransformers.kernels.staging import staging
from qtransformers.load.footprint import page_tables
from qtransformers.load.plan import LoadPlan
from qtransformers.machine import Memory
from qtransformers.types import TYPES

Verdict = Literal["fits", "tight", "does not fit", "unknown"]

SPARE_SHARE, SPARE_LEAST, SPARE_MOST = 50, 256 << 20, 8 << 30  # what stays free for others: a 50th of main memory
CONTEXT_BYTES = 768 << 20  # of a GPU, for its driver's context and libraries
FEWEST_TOKENS = 512  # a context below this is no remedy
NOTHING: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class Budget:
    """Bytes there are: of main memory (None: unknown) and of each GPU."""

    ram: int | None
    total: int | None = None  # of main memory in all, by which the spare part is reckoned
    devices: Mapping[str, int] = field(default_factory=dict)
    said: bool = False  # by the user: nothing else has taken its part yet

    @classmethod
    def of(cls, memory: Memory | None, ram: int | str | None = None, vram: Sequence[int | str] | None = None) -> Budget:
        """What the machine has, or what `ram` and `vram` (one a GPU) say instead; ConfigError for no amount."""
        gpus = {f"cuda:{i}": size("vram", part) for i, part in enumerate(vram or ())}
        if ram is not None:
            n = size("ram", ram)
            return cls(n, n, gpus, said=True)
        return cls(memory.usable, memory.limit or memory.total, gpus) if memory else cls(None, None, gpus)

    @property
    def spare(self) -> int:
        """Main memory that should stay free for the system and other programs."""
        return min(SPARE_MOST, max(SPARE_LEAST, (self.total or self.ram or 0) // SPARE_SHARE))

    def of_device(self, device: str) -> int | None:
        """Bytes of a device that a model may take."""
        return self.ram if device == "cpu" else self.devices[device] - CONTEXT_BYTES

    def less(self, beside: Mapping[str, int]) -> Budget:
        """What is left of it beside so many bytes on each device."""
        ram = None if self.ram is None else self.ram - beside.get("cpu", 0)
        return replace(self, ram=ram, devices={name: n - beside.get(name, 0) for name, n in self.devices.items()})


@dataclass(frozen=True)
class Need:
    """Bytes on one device."""

    device: str
    weights: int
    cache: int
    states: int  # of recurrent layers
    activations: int
    program: int  # of main memory only: interpreter, library, tokenizer
    system: int  # of main memory only: page tables, and what stays free; of a GPU: its context
    have: int | None
    staging: int = 0  # of pinned main memory, only while weights are copied to this GPU
    beside: int = 0  # what another model takes: a draft, or the model that it is for

    @property
    def model(self) -> int:
        """What the model itself takes, and what is beside it."""
        return self.weights + self.cache + self.states + self.activations + self.program + self.beside

    @property
    def verdict(self) -> Verdict:
        """Tight: it fits with little left for anything else."""
        if self.have is None:
            return "unknown"
        if self.model + self.system <= self.have:
            return "fits"
        return "tight" if self.model <= self.have and self.device == "cpu" else "does not fit"


@dataclass(frozen=True)
class Remedy:
    """Settings with which it fits, or what else would help."""

    text: str
    flags: str = ""  # as one writes them on the command line
    needs: int = 0  # bytes of main memory with them


@dataclass(frozen=True)
class Fit:
    """The answer: needs by device, and remedies where something does not fit."""

    needs: tuple[Need, ...]
    remedies: tuple[Remedy, ...] = ()
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """The worst of all devices."""
        order: tuple[Verdict, ...] = ("does not fit", "unknown", "tight", "fits")
        return min((need.verdict for need in self.needs), key=order.index)

    def as_json(self) -> dict[str, Any]:
        """For other programs."""
        return {
            "verdict": self.verdict,
            "note": self.note,
            "devices": [{**vars(n), "needed": n.model + n.system, "verdict": n.verdict} for n in self.needs],
            "remedies": [vars(r) for r in self.remedies],
        }


def fit(
    plan: LoadPlan,
    budget: Budget,
    other_files: Mapping[str, int] | None = None,
    beside: Mapping[str, int] = NOTHING,
) -> Fit:
    """Hold a plan against what there is; `other_files` are bytes by name of other quantisations at hand.

    `beside` are bytes by device of a model that is to be there at the same time.
    """
    needs = tuple(replace(_need(plan, budget, d), beside=beside.get(d, 0)) for d in ("cpu", *budget.devices))
    short = [need for need in needs if need.verdict == "does not fit"]
    note = ""
    host = needs[0]
    if host.verdict == "does not fit" and host.have is not None:
        if host.model - host.weights <= host.have:
            left = (host.have - (host.model - host.weights)) / max(1, host.weights)
            note = f"It would run with {left:.0%} of the weights in memory, and read the rest from disk again for every token"
        else:
            note = "Keys, values and temporaries alone are more than there is"
    remedies = (
        tuple(_remedies(plan, budget, host, other_files or {})) if host.verdict in ("does not fit", "tight") else ()
    )
    gpus = [need for need in short if need.device != "cpu"]
    remedies += tuple(
        Remedy(f"{n.device} is asked to hold more than it has: leave the choice to the plan", "--placement auto")
        for n in gpus
    )
    return Fit(needs, remedies, note)


def taken(plan: LoadPlan | None, budget: Budget, loaded: bool = False) -> dict[str, int]:
    """Bytes of each device that a model takes, if there is one, but the program; of one that is `loaded`, those that its GPUs do not miss yet."""
    if plan is None:
        return {}
    needs = [_need(plan, budget, device) for device in ("cpu", *budget.devices)]
    return {n.device: n.model - n.program - (n.weights if loaded and n.device != "cpu" else 0) for n in needs}


def too_large(plan: LoadPlan, found: Fit) -> str:
    """A warning for a model that is loaded although it does not fit."""
    (host, *_) = found.needs
    beside = f" beside the model's {_gib(host.beside)}" if host.beside else ""
    return (
        f"{plan.file} needs {_gib(host.model - host.beside)} of memory{beside}, and {_gib(host.have or 0)} are free. {found.note}. "
        "What would fit: qtransformers plan."
    )


def device_too_small(plan: LoadPlan, need: Need) -> InsufficientMemoryError:
    """What to say where a GPU is asked to hold more than it has free."""
    beside = f"{_gib(need.beside)} are another model's, " if need.beside else ""
    return InsufficientMemoryError(
        f"{plan.file}: {need.device} would hold {_gib(need.weights)} of weights, {_gib(need.cache + need.states)} of cache and "
        f"{_gib(need.activations + need.system)} of temporaries and driver, {beside}{_gib(need.model + need.system)} in all, and has {_gib(need.have or 0)} "
        "free. Leave the choice to the plan (placement=auto), lower context_length, or take a smaller cache type."
    )


def _need(plan: LoadPlan, budget: Budget, device: str) -> Need:
    weights, cache, states = plan.weights_on(device), plan.cache_on(device), plan.states_on(device)
    if device == "cpu":
        system = page_tables(weights) + budget.spare
        return Need(device, weights, cache, states, plan.activations_bytes, plan.program_bytes, system, budget.ram)
    used = weights or cache or states
    return Need(
        device, weights, cache, states, plan.device_bytes if used else 0, 0, CONTEXT_BYTES if used else 0,
        budget.devices[device], staging().pinned if weights else 0,
    )  # fmt: skip


def _remedies(plan: LoadPlan, budget: Budget, host: Need, others: Mapping[str, int]) -> list[Remedy]:
    """Smaller caches, a shorter context, both, a smaller quantisation: whichever of them is enough, by computation."""
    have = host.have or 0
    fixed = host.model - host.cache + host.system
    codecs = _codecs(plan)
    smaller = codecs[codecs.index(plan.cache) + 1 :]

    def needs(context: int, codec: str) -> int:
        return fixed + (plan.cache_shape.bytes(context, codec) if host.cache else 0)

    def enough(codec: str, context: int) -> bool:
        return needs(context, codec) <= have

    found = []
    whole = [c for c in smaller if enough(c, plan.context_length)]
    if whole:
        found.append(_with(plan, plan.context_length, whole[0], needs))
    for codec in dict.fromkeys((plan.cache, codecs[-1])):
        context = _longest(plan, partial(enough, codec))
        if context and not (codec in whole and codec != plan.cache):
            found.append(_with(plan, context, codec, needs))
    if not found:
        found += _smaller_weights(plan, host, have, others)
    least = _enough(fixed - budget.spare + host.cache) if budget.said else fixed + host.cache
    found.append(Remedy(f"a machine with {_gib(least)} of {'memory' if budget.said else 'free memory'}", "", least))
    return found


def _enough(model: int) -> int:
    """Memory of a machine on which so many bytes leave its spare part free."""
    return min(model + SPARE_MOST, max(model + SPARE_LEAST, -(-model * SPARE_SHARE // (SPARE_SHARE - 1)) + 1))


def _codecs(plan: LoadPlan) -> list[str]:
    """Cache types that can hold heads of this size, the largest first."""
    shape = plan.cache_shape
    usable = [c for c in CODECS if c == plan.cache or not why_not(c, shape.head_dim_k, shape.head_dim_v)]
    return sorted(usable, key=lambda c: -shape.bytes(PAGE_TOKENS, c))


def _with(plan: LoadPlan, context: int, codec: str, needs: Callable[[int, str], int]) -> Remedy:
    flags = [f"--cache {codec}"] * (codec != plan.cache) + [f"--ctx-size {context}"] * (context != plan.context_length)
    n = needs(context, codec)
    return Remedy(f"a context of {context:,} tokens with its cache in {codec}: {_gib(n)}", " ".join(flags), n)


def _longest(plan: LoadPlan, fits: Callable[[int], bool]) -> int:
    """The longest context in whole pages, up to the one asked for, that fits; 0 where none is worth it."""
    low, high = 0, plan.context_length // PAGE_TOKENS
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle * PAGE_TOKENS) else (low, middle - 1)
    tokens = low * PAGE_TOKENS
    return tokens if tokens >= min(FEWEST_TOKENS, plan.context_length) else 0


def _smaller_weights(plan: LoadPlan, host: Need, have: int, others: Mapping[str, int]) -> list[Remedy]:
    """What size of weights would fit beside a short context in the smallest cache."""
    smallest = _codecs(plan)[-1]
    rest = host.model - host.weights - host.cache + host.system + plan.cache_shape.bytes(FEWEST_TOKENS, smallest)
    room = have - rest
    enough = {name: n for name, n in others.items() if n <= room}
    if enough:
        best = max(enough, key=lambda name: enough[name])
        return [Remedy(f"another quantisation, {best}, of {_gib(enough[best])}", "", rest + enough[best])]
    if room <= 0 or not plan.parameters:
        return []
    bits = 8 * room / plan.parameters
    names = [t.name for t in TYPES.values() if t.is_quantized and not t.activation and 8 * t.block_bytes / t.block_size <= bits]  # fmt: skip
    if not names:
        return [Remedy(f"no quantisation is small enough: {bits:.2f} bits a weight are left. Take a smaller model")]
    best = max(names, key=_bits)
    return [Remedy(f"a file of at most {_gib(room)}, {bits:.2f} bits a weight: {best} ({_bits(best):.3g} bits) or smaller", "", have)]  # fmt: skip


def _bits(name: str) -> float:
    t = next(t for t in TYPES.values() if t.name == name)
    return 8 * t.block_bytes / t.block_size


def _gib(n: int) -> str:
    from qtransformers.load.files import memory_text

    return memory_text(n)
