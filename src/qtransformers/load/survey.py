"""What there is to say about a model before it is loaded, also where it cannot be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from qtransformers.archs.spec import Problem
from qtransformers.errors import UnsupportedError
from qtransformers.gguf.headers import HeaderFile
from qtransformers.load import prepare
from qtransformers.load.fit import Budget, fit, too_large
from qtransformers.load.hub import Hub, cached_gguf, find_offer, local_model, read_header, the_hub
from qtransformers.load.outline import outline
from qtransformers.load.plan import PREFILL_CHUNK, LoadPlan
from qtransformers.load.prepare import examine, vocabulary_of
from qtransformers.load.references import quants, the_reference
from qtransformers.load.source import Report, Sources, resolve
from qtransformers.machine import memory


@dataclass(frozen=True, eq=False)
class Survey:
    """A plan, whatever is wrong with the model, and other quantisations beside it (bytes by name)."""

    plan: LoadPlan
    problems: tuple[Problem, ...]
    others: dict[str, int]


def find_sources(
    model: str, model_path: str | Path | None = None, hub: Hub | None = None
) -> tuple[Sources, dict[str, int]]:
    """The files of MODEL and bytes of its other quantisations by name; of a model that is only on the Hub headers are read."""
    path = local_model(model)
    if path is not None:
        return resolve(path, model_path, hub=hub), {}
    hub, ref = hub or the_hub(), the_reference(model)
    path = cached_gguf(ref, hub)
    if path is not None:
        return resolve(path, model_path, hub=hub), {}
    offer = find_offer(ref, hub)
    header = read_header(offer, hub)
    beside = resolve(None, model_path, hub=hub) if model_path else Sources(None, None, MappingProxyType({}), Report())
    sizes = offer.listing.sizes
    others = {f"{offer.ref}:{label}": sum(sizes[n] for n in names) for (label, _), names in quants(sizes).items()}
    return replace(beside, gguf=header), others  # type: ignore[arg-type]


def survey(
    sources: Sources,
    others: dict[str, int] | None = None,
    *,
    context_length: int | None = None,
    cache: str = "f16",
    prefill_chunk: int = PREFILL_CHUNK,
) -> Survey:
    """Plan a model; what cannot be run or is broken is counted by its header, with the problems.

    Raises LoadError for a file that is no model.
    """
    problems: tuple[Problem, ...]
    try:
        found = examine(sources, context_length=context_length, cache=cache, prefill_chunk=prefill_chunk)
        problems = tuple(found.problems)
    except UnsupportedError as e:
        found, problems = None, (Problem(f"{e} Its weights are counted; it cannot be run yet.", "unsupported"),)
    grave = [p for p in problems if p.grade != "warning"]
    if found and found.prepared and not grave:
        return Survey(found.prepared.plan, (), others or {})
    gguf = sources.gguf
    assert gguf is not None  # examine has looked
    plan = outline(
        str(gguf.path), gguf.metadata, gguf.tensors,
        context_length=context_length, cache=cache, prefill_chunk=prefill_chunk, vocabulary=vocabulary_of(gguf.metadata),
    )  # fmt: skip
    return Survey(plan, tuple(grave), others or {})


def judge(header: HeaderFile) -> str:
    """Hold a model against this version and this machine by its header, before it is downloaded: a warning, or "".

    Raises LoadError and UnsupportedError as loading it would.
    """
    sources = Sources(header, None, MappingProxyType({}), Report())  # type: ignore[arg-type]
    plan = prepare(sources).plan
    found = fit(plan, Budget.of(memory()))
    return too_large(plan, found) if found.verdict == "does not fit" else ""
