"""Which device holds what, said by roles: `auto`, `experts=cpu`, `experts[3-12]=cuda:0`, `layers[0-15]=cuda:0`.

The most specific entry wins: a role in some layers, then a role, then some layers, then all of them (`layers=`), then a bare
`auto`, `cpu` or `cuda:0` for what no entry names. Two entries as specific as each other must not meet, and nothing may be left over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from qtransformers.checks import shown
from qtransformers.errors import ConfigError
from qtransformers.load.findings import ranges
from qtransformers.load.fit import Budget
from qtransformers.load.plan import LoadPlan, PlannedTensor

LAYERS, CACHE = "layers", "kv"  # a cache is keys and values, or the state of a recurrent layer
EMBED = ("embed", None)
LARGE = ("dense_ffn", "experts")  # of a layer's roles, what may stay in main memory while the rest is on a GPU
SAVED = ".json"
_ENTRY = re.compile(r"(?P<what>[a-z_]+)(?:\[(?P<layers>[\d\s,-]*)\])?\s*=\s*(?P<device>\S+)")
_BARE = re.compile(r"auto|cpu|cuda:\d{1,3}")
_RANGE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")

Part = tuple[str, int | None]  # a role, and its layer where it is in one


@dataclass(frozen=True)
class Entry:
    """`what[layers]=device`; `what` is a role or `layers`, `layers` None stands for all."""

    what: str
    layers: frozenset[int] | None
    device: str
    text: str

    @property
    def rank(self) -> int:
        """How specific it is."""
        return 2 * (self.what != LAYERS) + (self.layers is not None)

    def covers(self, part: Part) -> bool:
        """Whether it speaks of a role in a layer."""
        role, layer = part
        if self.what == LAYERS:
            return layer is not None and (self.layers is None or layer in self.layers)
        return role == self.what and (self.layers is None or layer in self.layers)


@dataclass(frozen=True)
class Wanted:
    """A placement as it was asked for: entries, and where the rest goes (None: nothing says)."""

    entries: tuple[Entry, ...]
    rest: str | None

    @property
    def only_cpu(self) -> bool:
        """Whether it names no other device, and leaves none to choose."""
        return {*(e.device for e in self.entries), self.rest or "cpu"} == {"cpu"}


def parse(text: str) -> Wanted:
    """The entries of a placement, separated by commas, semicolons or spaces outside brackets; ConfigError for what is none."""
    entries: list[Entry] = []
    rest: str | None = None
    for word in re.findall(r"(?:[^\s,;\[]|\[[^\]]*\]?)+", text):
        if _BARE.fullmatch(word):
            if rest is not None:
                raise ConfigError(
                    f"placement={shown(text)} has both {rest} and {word} for the rest. Leave out one of them."
                )
            rest = word
            continue
        match = _ENTRY.fullmatch(word)
        if match is None or not re.fullmatch(r"cpu|cuda:\d{1,3}", match["device"]):
            raise ConfigError(
                f"placement={shown(text)}: {shown(word)} is no entry; expected auto, cpu, cuda:0, or entries such as experts=cpu and layers[0-15]=cuda:0."
            )
        layers = None if match["layers"] is None else _numbers(match["layers"], word)
        entries.append(Entry(match["what"], layers, match["device"], word))
    if not entries and rest is None:
        raise ConfigError(f"placement={shown(text)} says nothing; expected auto, cpu, or entries such as experts=cpu.")
    return Wanted(tuple(entries), rest)


def check_placement(text: str) -> str:
    """`text` if it is a placement, or names a file where one may be saved; ConfigError otherwise."""
    if not text.endswith(SAVED):
        parse(text)
    return text


def _numbers(text: str, entry: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(
                f"placement: {shown(entry)} names the layers {shown(text)}; expected such as [3], [0-15] or [0-3,8]."
            )
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(found)


def resolve(plan: LoadPlan, wanted: str, budget: Budget) -> dict[Part, str]:
    """The device of every role and layer of a plan, as `wanted` or the saved table in the file of that name says.

    ConfigError names every overlap, gap, unknown role, layer and device, and a file that is none of ours or another model's.
    """
    said = parse(load_saved(wanted, plan) if wanted.endswith(SAVED) else wanted)
    parts = parts_of(plan)
    problems = [*_unknown(said, parts, budget), *_overlaps(said, parts)]
    if problems:
        raise ConfigError(f"placement={shown(wanted)}: " + "; ".join(problems) + ".")
    table = {part: entry.device for part in parts if (entry := _winner(said.entries, part)) is not None}
    left = [part for part in parts if part not in table]
    # the cache of a layer goes with its attention where nothing is said of it
    for part in [p for p in left if p[0] == CACHE and ("attn", p[1]) in table]:
        table[part] = table["attn", part[1]]
        left.remove(part)
    if left and said.rest is None:
        first = said.entries[0].text
        raise ConfigError(
            f"placement={shown(wanted)} says nothing of {_spelled(left)}. Say where the rest goes: auto,{first} or cpu,{first}."
        )
    if said.rest == "auto":
        table |= automatic(plan, budget, table)
    elif said.rest is not None:
        table |= dict.fromkeys(left, said.rest)
    return {part: table[part] for part in parts}


def parts_of(plan: LoadPlan) -> list[Part]:
    """Every role and layer of a plan, and the cache of each layer, in the order of the forward pass."""
    parts = dict.fromkeys((t.role, t.slot.layer) for t in plan.tensors)
    layers = sorted({layer for _, layer in parts if layer is not None})
    return [*parts, *((CACHE, layer) for layer in layers if plan.cache_bytes or plan.states_bytes)]


def _winner(entries: Sequence[Entry], part: Part) -> Entry | None:
    found = [e for e in entries if e.covers(part)]
    return max(found, key=lambda e: e.rank, default=None)


def _unknown(said: Wanted, parts: Sequence[Part], budget: Budget) -> list[str]:
    """Roles, layers and devices that there are not."""
    roles = list(dict.fromkeys(role for role, _ in parts))
    n = 1 + max((layer for _, layer in parts if layer is not None), default=-1)
    problems = []
    for e in said.entries:
        own = [layer for role, layer in parts if e.what in (role, LAYERS)]
        if e.what != LAYERS and e.what not in roles:
            near = get_close_matches(e.what, roles, 1)
            hint = f", perhaps {near[0]}" if near else ""
            problems.append(f"{e.text}: this model has no {e.what}{hint}; its roles are {', '.join(roles)}, and layers")
        elif e.layers is not None and not e.layers <= set(own):
            outside = sorted(e.layers - {layer for layer in own if layer is not None})
            problems.append(
                f"{e.text}: {e.what} is not in layers {ranges(outside)[:40]} (the model has layers 0-{n - 1})"
            )
    for device in dict.fromkeys([*(e.device for e in said.entries), *([said.rest] if said.rest != "auto" else [])]):
        if device is not None and device != "cpu" and device not in budget.devices:
            there = ", ".join(("cpu", *budget.devices))
            problems.append(f"there is no {device}, only {there}: --vram SIZE plans for a GPU of that size")
    return problems


def _overlaps(said: Wanted, parts: Sequence[Part]) -> list[str]:
    problems = []
    for i, a in enumerate(said.entries):
        for b in said.entries[i + 1 :]:
            if a.rank == b.rank and (both := [p for p in parts if a.covers(p) and b.covers(p)]):
                problems.append(f"{a.text} and {b.text} both speak of {_spelled(both)}")
    return problems


def _spelled(parts: Sequence[Part]) -> str:
    """`attn[0-3], output` for parts."""
    by_role: dict[str, list[int]] = {}
    for role, layer in parts:
        by_role.setdefault(role, []).extend([] if layer is None else [layer])
    return ", ".join(f"{role}[{ranges(layers)}]" if layers else role for role, layers in by_role.items())


def automatic(plan: LoadPlan, budget: Budget, fixed: Mapping[Part, str]) -> dict[Part, str]:
    """Devices for what `fixed` leaves open: GPUs are filled with what is read most often for its bytes.

    First layer by layer keys and values, attention and shared experts; then the output matrix; then dense feed-forward layers,
    and experts, of which a token reads few. Embeddings, of which it reads a row, come last, where all else is on GPUs.
    """
    weights = _weights(plan)
    parts = parts_of(plan)
    bytes_of = {(role, i): plan.kept(i) if role == CACHE and i is not None else weights[role, i] for role, i in parts}
    room = {device: (budget.of_device(device) or 0) - plan.device_bytes for device in budget.devices}
    for part, device in fixed.items():
        if device in room:
            room[device] -= bytes_of[part]
    table = {part: "cpu" for part in bytes_of if part not in fixed}
    layers = sorted({layer for _, layer in bytes_of if layer is not None})

    def put(parts: list[Part], near: str | None = None) -> None:
        parts = [p for p in parts if p in table]
        need = sum(bytes_of[p] for p in parts)
        order = [near, *room] if near in room else list(room)
        device = next((d for d in order if d is not None and room[d] >= need), None)
        if parts and device is not None:
            room[device] -= need
            table.update(dict.fromkeys(parts, device))

    for i in layers:
        put([p for p in bytes_of if p[1] == i and p[0] not in LARGE])
    tied = "output" in plan.ties
    put([p for p in bytes_of if p[1] is None and (p[0] != "embed" or tied)])
    for role in LARGE:
        for i in layers:
            put([(role, i)] if (role, i) in bytes_of else [], {**table, **fixed}.get(("attn", i)))
    if {device for part, device in {**table, **fixed}.items() if part != EMBED} <= set(room):
        put([EMBED] if EMBED in bytes_of else [])
    return table


def _weights(plan: LoadPlan) -> dict[Part, int]:
    sums: dict[Part, int] = {}
    for t in plan.tensors:
        sums[t.role, t.slot.layer] = sums.get((t.role, t.slot.layer), 0) + t.nbytes
    return sums


def placed(plan: LoadPlan, table: Mapping[Part, str]) -> LoadPlan:
    """The plan with its tensors and caches on the devices of a table."""

    def move(t: PlannedTensor) -> PlannedTensor:
        device = table[t.role, t.slot.layer]
        return t if device == "cpu" else replace(t, place=device)

    caches = {layer: device for (role, layer), device in table.items() if role == CACHE and layer is not None}
    return replace(plan, tensors=tuple(map(move, plan.tensors)), cache_places=caches)


def entries(table: Mapping[Part, str]) -> list[str]:
    """A table as few entries: `attn[0-15]=cuda:0`, and `norm=cpu` for a role outside of layers, or on one device only."""
    by_role: dict[str, dict[str, list[int]]] = {}
    for (role, layer), device in table.items():
        by_role.setdefault(role, {}).setdefault(device, []).extend([] if layer is None else [layer])
    lines = []
    for role, devices in by_role.items():
        base = table.get((role, None), next(iter(devices)) if len(devices) == 1 else None)
        lines += [f"{role}={base}"] * (base is not None)
        lines += [f"{role}[{ranges(layers)}]={device}" for device, layers in devices.items() if device != base]
    return lines


def save(path: str | Path, plan: LoadPlan, table: Mapping[Part, str]) -> None:
    """Write a resolved placement as JSON, which `load_saved` and `--placement FILE` read."""
    said = {"architecture": plan.architecture, "layers": _n_layers(table), "placement": entries(table)}
    try:
        Path(path).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    except OSError as e:
        raise ConfigError(
            f"the placement cannot be saved in {path}: {e.strerror}. Name a file in a folder that exists."
        ) from e


def load_saved(path: str | Path, plan: LoadPlan) -> str:
    """The entries of a saved placement, made for a model of this architecture and as many layers; ConfigError otherwise."""
    try:
        said: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(said["placement"], list):
            raise TypeError("placement is no list")
        found = ",".join(said["placement"])
        made_for = (said["architecture"], said["layers"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ConfigError(
            f"placement {path} cannot be read ({type(e).__name__}: {e}). Save it again: qtransformers plan --save FILE."
        ) from e
    here = (plan.architecture, 1 + max((t.slot.layer for t in plan.tensors if t.slot.layer is not None), default=-1))
    if made_for != here:
        raise ConfigError(f"placement {path} is for {made_for[0]} with {made_for[1]} layers; the model is {here[0]} with {here[1]}. Make one for it.")  # fmt: skip
    return found


def _n_layers(table: Mapping[Part, str]) -> int:
    return 1 + max((layer for _, layer in table if layer is not None), default=-1)
