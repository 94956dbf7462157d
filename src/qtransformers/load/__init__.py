"""From `gguf_path` and `model_path` to a plan, weights and a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from qtransformers import machine
from qtransformers.archs.hparams import Hyperparameters
from qtransformers.archs.spec import ArchSpec
from qtransformers.cache import PagedCache
from qtransformers.errors import ConfigError, UnsupportedError
from qtransformers.kernels.staging import Progress
from qtransformers.kernels.table import ACCURACY
from qtransformers.load.chat.templates import ChatTemplates, templates_from_files, templates_from_gguf
from qtransformers.load.config import (
    GenerationDefaults,
    generation_from_gguf,
    generation_from_json,
    merged,
    raise_problems,
    read_json,
)
from qtransformers.load.files import other_tokenizer_files, tokenizer_file
from qtransformers.load.hub import Hub
from qtransformers.load.plan import LoadPlan
from qtransformers.load.prepare import Prepared, PrepareOptions, no_weights, prepare
from qtransformers.load.source import Sources, resolve
from qtransformers.load.stages import Part, bytes_of, keep_part, part_of
from qtransformers.machine import memory
from qtransformers.settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from qtransformers.load.fit import Budget
    from qtransformers.load.tokenizer import Tokenizer


__all__ = ["Loaded", "load", "load_tokenizer", "prepare", "resolve"]


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model ready to run: `spec.forward(weights, hparams, batch, cache)`."""

    spec: ArchSpec
    hparams: Hyperparameters
    plan: LoadPlan
    weights: SimpleNamespace
    tokenizer: Tokenizer
    chat_templates: ChatTemplates
    generation: GenerationDefaults
    sources: Sources
    settle: Callable[[], None]  # ends what still reads the weights in the background
    layers: range | None = None  # those of a stage of a pipeline; None: all

    def new_cache(self, n_tokens: int | None = None) -> PagedCache:
        """Room for `n_tokens` tokens (None: as planned) of keys, values and recurrent states."""
        h, shape = self.hparams, self.plan.cache_shape
        tokens = self.plan.cache_tokens if n_tokens is None else n_tokens
        if self.layers is not None and not shape.n_layers:  # pages are counted all the same
            shape = replace(shape, n_layers=1, n_kv_heads=0)
        cache = PagedCache.allocate(
            shape.n_layers, shape.n_kv_heads, shape.head_dim_k, shape.head_dim_v, tokens if shape.n_layers else 0,
            self.plan.cache, self.spec.states(h), self.plan.cache_devices, self.plan.main_device,
        )  # fmt: skip
        if self.layers is None:
            return cache
        return replace(cache, first_layer=sum(self.spec.caches(h, i) for i in range(self.layers.start)))

    @property
    def notes(self) -> str:
        """What the user should see: files moved and spared, warnings."""
        lines = (self.sources.report.text(), *self.plan.warnings, _unread_tokenizer(self.sources))
        return "\n".join(line for line in lines if line)


def load(
    gguf_path: str | Path | None = None,
    model_path: str | Path | None = None,
    *,
    placement: str = "cpu",
    pre: str | None = None,
    mlock: bool = False,
    preload: bool = False,
    part: Part | None = None,
    progress: Progress | None = None,
    beside: LoadPlan | None = None,
    settings: Settings | None = None,
    hub: Hub | None = None,
    **options: Unpack[PrepareOptions],
) -> Loaded:
    """Load a model: structure and weights from `gguf_path`, tokenizer, templates and defaults from `model_path` if given.

    `placement` says which device holds what: only the CPU unless it says more. `accuracy` is that of products with
    quantised weights (kernels.cpu.bind); `pre` overrides the GGUF's pre-tokenizer. Weights are read ahead in the
    background; `preload` waits until they are in memory, `mlock` keeps them there. `part` loads the layers of one stage
    of a pipeline and nothing else; `progress` hears of weights on their way to GPUs; `beside` is the plan of a model that is
    loaded already. Raises LoadError or UnsupportedError with everything that is wrong, and what `resolve` raises.
    """
    sources = resolve(gguf_path, model_path, settings, hub)
    gguf = sources.gguf
    if gguf is None:
        raise no_weights(sources)
    prepared = prepare(sources, **options)
    from qtransformers.load.fit import Budget, fit, taken, too_large
    from qtransformers.load.warm import in_background, lock
    from qtransformers.load.warm import preload as read_all

    whole_plan, layers = prepared.plan, None
    if part is not None:
        prepared, layers = part_of(prepared, part)
    budget = Budget.of(memory())
    plan, budget = on_devices(prepared, placement, budget, beside)
    verdict = fit(plan, budget, beside=taken(beside, budget, loaded=True))
    if verdict.needs[0].verdict == "does not fit":
        plan = replace(plan, warnings=(*plan.warnings, too_large(plan, verdict)))
    views = None if part is None else bytes_of(plan, gguf)
    if mlock:
        lock(gguf, views)
    if preload:
        read_all(gguf, views=views)
    background = not (mlock or preload) and verdict.needs[0].verdict != "does not fit"
    settle = in_background(gguf, views) if background else _nothing
    tokenizer = load_tokenizer(sources, pre=pre, rows=prepared.hparams.vocab_size)
    from qtransformers.load.place import place  # here the extension is needed, planning does without

    weights = place(
        prepared.spec, plan, gguf.tensors, prepared.hparams.n_layers, options.get("accuracy", ACCURACY), progress
    )
    if part is not None and layers is not None:
        keep_part(weights, whole_plan, plan, layers, part)
    return Loaded(
        prepared.spec,
        prepared.hparams,
        plan,
        weights,
        tokenizer,
        _templates(sources),
        _generation(sources, prepared.hparams.vocab_size),
        sources,
        settle,
        layers,
    )


def on_devices(
    prepared: Prepared, placement: str, budget: Budget, beside: LoadPlan | None = None
) -> tuple[LoadPlan, Budget]:
    """The plan with everything where `placement` says, and what this machine has; errors as `placement.resolve` and `Devices.check`.

    `beside` is loaded already. InsufficientMemoryError where a GPU is to hold more than it has.
    """
    from qtransformers.load.devices import Devices
    from qtransformers.load.fit import device_too_small, fit, taken
    from qtransformers.load.placement import parse, placed
    from qtransformers.load.placement import resolve as resolve_placement

    plan = prepared.plan
    if not placement.endswith(".json") and parse(placement).only_cpu:
        return plan, budget
    devices = Devices.of(machine.gpus())
    devices.check(placement)
    if prepared.spec.kind != "language":
        if placement != "auto":
            raise UnsupportedError(f"placement={placement!r}: {plan.file} is an encoder, which runs on the CPU only. Leave placement out.")  # fmt: skip
        return plan, budget
    budget = replace(budget, devices=devices.free)
    others = taken(beside, budget, loaded=True)
    found = placed(plan, resolve_placement(plan, placement, budget.less(others)))
    for need in fit(found, budget, beside=others).needs:
        if need.device != "cpu" and need.verdict == "does not fit":
            raise device_too_small(found, need)
    if not found.devices:
        return replace(plan, warnings=(*plan.warnings, *devices.reasons.values())), budget
    from qtransformers.kernels.triton.device import unseen

    if reason := unseen(found.devices):
        if placement != "auto":
            raise UnsupportedError(f"placement={placement!r}: {reason}. Or use the CPU.")
        return replace(plan, warnings=(*plan.warnings, f"{reason}. All runs on the CPU.")), replace(budget, devices={})
    return found, budget


def _nothing() -> None:
    pass


def load_tokenizer(sources: Sources, *, pre: str | None = None, rows: int | None = None) -> Tokenizer:
    """The tokenizer of model_path, else of the GGUF file; LoadError when both have one and they differ.

    `rows` of the embedding, when known, must be at least as many as tokens.
    """
    from qtransformers.load.tokenizer import Tokenizer
    from qtransformers.load.vocabulary import too_many_tokens, vocabulary_differences

    gguf, directory = sources.gguf, sources.model_dir
    if directory is not None and (tokenizer_file(sources.files) or gguf is None):
        if pre is not None:
            raise ConfigError(f"pre={pre!r} is for the GGUF's vocabulary, but the tokenizer comes from {directory}. Leave out pre, or model_path.")  # fmt: skip
        tokenizer, file = Tokenizer.from_pretrained(directory), str(directory)
    else:
        assert gguf is not None  # resolve gives one or the other
        tokenizer, file, directory = Tokenizer.from_gguf(gguf, pre=pre), str(gguf.path), None
    if gguf is not None:
        problems = list(too_many_tokens(tokenizer.n_tokens, rows, file, str(gguf.path))) if rows is not None else []
        if directory is not None:
            problems += vocabulary_differences(tokenizer, file, gguf)
        raise_problems(f"the vocabulary of {file} does not fit {gguf.path}", problems)
    return tokenizer


def _unread_tokenizer(sources: Sources) -> str:
    others = other_tokenizer_files(sources.files)
    if not others or tokenizer_file(sources.files):
        return ""
    return f"{sources.model_dir}: {', '.join(others)} cannot be read as a tokenizer; the GGUF's vocabulary is used"


def _templates(sources: Sources) -> ChatTemplates:
    found = templates_from_files(sources.files)
    if found.by_name or sources.gguf is None:
        return found
    return templates_from_gguf(sources.gguf.metadata, str(sources.gguf.path))


def _generation(sources: Sources, n_vocab: int) -> GenerationDefaults:
    own = generation_from_gguf(sources.gguf.metadata, n_vocab, str(sources.gguf.path)) if sources.gguf else None
    for name in ("generation_config.json", "config.json"):
        if name in sources.files:
            theirs = generation_from_json(read_json(sources.files[name]), n_vocab, str(sources.files[name]))
            return merged(theirs, own) if own else theirs
    return own or GenerationDefaults()
