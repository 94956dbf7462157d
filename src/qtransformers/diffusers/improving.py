"""Diffusion models in fewer bits, as good as can be: scales folded (AWQ) and columns weighed by what really comes to each layer.

The original runs in floats, from noise through the steps of its scheduler or on what a caller gives; its layers' inputs say which columns
count. Folds are those that a spec declares (archs/diffusion/folds.py), where all their places are in the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qtransformers.archs.diffusion.folds import Fold, resolved
from qtransformers.convert import ConversionPlan
from qtransformers.convert.diffusion import Model, at_hand, known, named, of_model
from qtransformers.convert.sources import Factors, Lying
from qtransformers.diffusers.loading import build, fill, values
from qtransformers.diffusers.noise import noise_calls
from qtransformers.load.checkpoint import open_file
from qtransformers.load.diffusion import DiffusionPlan, Part, source_name
from qtransformers.quantize import awq
from qtransformers.types import QuantType

F32 = NDArray[np.float32]
ROWS = 512  # of inputs that are kept of each layer that a fold reads
Call = Mapping[str, Any]  # keyword arguments of a forward


@dataclass(eq=False)
class Seen:
    """What has come to a layer: the mean of squares of each column, and some rows."""

    squares: NDArray[np.float64]
    n: int = 0
    rows: list[F32] = field(default_factory=list)

    def sample(self) -> F32:
        """At most ROWS rows `[n, in]`, of all calls alike."""
        rows = np.concatenate(self.rows)
        return rows[:: max(1, -(-len(rows) // ROWS))]


def plan_improved(
    path: str | Path, type: str, *, calls: Iterable[Call] | None = None, layout: str | None = None, name: str | None = None,
    config: Any = None, overrides: Iterable[tuple[str, str]] = (), keep: Iterable[str] = (), force: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ConversionPlan:  # fmt: skip
    """The plan of a file whose scales are folded and whose columns are weighed; `convert.write` writes it.

    `calls` are keyword arguments of the model's forward, as many as one likes; None has noise go through the scheduler's steps.
    Other arguments and errors as for `convert.plan_conversion`.
    """
    path = Path(path)
    source = at_hand(path, config)
    model = known(source)
    how: dict[str, Any] = {
        "file": str(path),
        "layout": layout,
        "name": name or named(source),
        "gguf": source.gguf,
        "overrides": list(overrides),
        "keep": list(keep),
        "force": force,
    }
    plain = of_model(model, type, **how)
    types = _types(model, plain)
    folds = possible_folds(model)
    seen = observe(model, calls, {r.name for f in folds for r in f.readers}, progress)
    factors = improved(model, folds, types, seen)
    importance = _importance(model, plain, factors, seen)
    return of_model(
        model, type, factors=factors, importance=importance or None, **how
    )  # has no files: a run never goes on with it


def read_call(path: Path) -> dict[str, torch.Tensor]:
    """Keyword arguments of a forward from a safetensors file, its tensors called as they are; LoadError for what holds no numbers."""
    return {name: torch.tensor(t.view()) if t.dtype[0] == "I" else torch.tensor(Lying(t).rows(slice(None)).reshape(t.shape)) for name, t in open_file(path).items()}  # fmt: skip


def possible_folds(model: Model) -> list[Fold]:
    """The folds that change nothing: all their layers are there, and what one is added to has a bias that takes it up."""
    there = {part.name for part in model.parts}
    sizes = {**model.config, **model.spec.sizes(model.config)}
    return [
        fold for fold in resolved(model.spec.folds, sizes)
        if all(f"{p.name}.weight" in there for p in (*fold.sources, *fold.readers))
        and all(f"{p.name}.bias" in there for p in fold.sources if p.plus_one)
    ]  # fmt: skip


def observe(model: Model, calls: Iterable[Call] | None, sampled: set[str], progress: Callable[[int, int], None]) -> dict[str, Seen]:  # fmt: skip
    """What comes to each layer of the original, by its name; of those `sampled` some rows too."""
    plan = DiffusionPlan("the original", model.spec, model.layout, model.config, model.extra, model.parts)  # type: ignore[arg-type]
    live = build(plan)
    fill(live, plan, torch.float32, "exact")
    live.requires_grad_(False)
    live.eval()
    calls = list(calls) if calls is not None else None
    seen: dict[str, Seen] = {}
    with _listening(live, seen, sampled), torch.no_grad():
        if calls is None:
            noise_calls(live, model.spec, progress)
        else:
            for i, call in enumerate(calls):
                live(**call, return_dict=False)
                progress(i + 1, len(calls))
    return seen


@contextmanager
def _listening(live: Any, seen: dict[str, Seen], sampled: set[str]) -> Iterator[None]:
    def heard(name: str) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Any, ...]) -> None:
            if not args or args[0].shape[-1] != module.in_features:
                return
            x = args[0].detach().reshape(-1, module.in_features).float().numpy()
            one = seen.setdefault(name, Seen(np.zeros(x.shape[1])))
            one.squares += np.square(x, dtype=np.float64).sum(0)
            one.n += len(x)
            if name in sampled:
                one.rows.append(x[:: max(1, -(-len(x) // 128))].copy())

        return hook

    handles = [m.register_forward_pre_hook(heard(n)) for n, m in live.named_modules() if hasattr(m, "in_features")]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def improved(model: Model, folds: Iterable[Fold], types: Mapping[str, QuantType], seen: Mapping[str, Seen]) -> dict[str, Factors]:  # fmt: skip
    """The factors of every tensor of the class that a fold changes."""
    parts = {part.name: part for part in model.parts}
    factors: dict[str, Factors] = {}
    for fold in folds:
        readers, sample = [], []
        for reader in fold.readers:
            type = types[f"{reader.name}.weight"]
            if reader.name not in seen or (reader.stop - reader.start) % type.block_size:
                continue
            columns = slice(reader.start, reader.stop)
            weight = values(parts[f"{reader.name}.weight"], torch.float32).numpy()
            readers.append(awq.Candidate(np.ascontiguousarray(weight[:, columns]), type))
            sample.append(seen[reader.name].sample()[:, columns])
        if not readers:
            continue
        x = np.concatenate(sample).astype(np.float64)
        s = awq.search(readers, fold.n, x.T @ x / len(x), np.abs(x).mean(0))
        if (s != 1).any():
            for name, factor in of_fold(fold, s, parts):
                factors[name] = factors[name] * factor if name in factors else factor
    return factors


def of_fold(fold: Fold, s: F32, parts: Mapping[str, Part]) -> Iterator[tuple[str, Factors]]:
    """What scales `s [n]` of a fold do to each tensor: readers by their columns, sources by rows and biases."""
    for reader in fold.readers:
        wide = np.ones(parts[f"{reader.name}.weight"].declared.shape[1], np.float32)
        wide[reader.start : reader.stop] = s
        yield f"{reader.name}.weight", Factors(columns=wide)
    for source in fold.sources:
        height = parts[f"{source.name}.weight"].declared.shape[0]
        rows, add = np.ones(height, np.float32), np.zeros(height, np.float32)
        rows[source.start : source.stop] = 1 / s
        yield f"{source.name}.weight", Factors(rows=rows)
        if f"{source.name}.bias" in parts:
            if source.plus_one:
                add[source.start : source.stop] = 1 / s - 1
            yield f"{source.name}.bias", Factors(rows=rows, add=add)


def _types(model: Model, plan: ConversionPlan) -> dict[str, QuantType]:
    """The type that each tensor of the class gets, whatever the layout it lies in."""
    types = {t.name: t.type for t in plan.tensors}
    to = plan.metadata["qtransformers.layout"]
    return {p.name: types[source_name(p.declared, to)] for p in model.parts}


def _importance(model: Model, plan: ConversionPlan, factors: Mapping[str, Factors], seen: Mapping[str, Seen]) -> dict[str, F32]:  # fmt: skip
    """How much each column counts, by tensors of the file: mean squares of inputs, of what share a tensor those of the first."""
    to = plan.metadata["qtransformers.layout"]
    types = {t.name: t.type for t in plan.tensors}
    found: dict[str, F32] = {}
    for part in model.parts:
        one = seen.get(part.name.removesuffix(".weight"))
        name = source_name(part.declared, to)
        if one is None or part.declared.part == "bias" or name in found or not types[name].is_quantized:
            continue
        columns = factors[part.name].columns if part.name in factors else None
        mean = one.squares / one.n
        found[name] = (mean if columns is None else mean / np.square(columns, dtype=np.float64)).astype(np.float32)
    return found
