"""From `gguf_path` and `model_path` to a plan, weights and a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from qtransformers import machine
from qtransformers.archs import SPECS, spec_of
from qtransformers.archs.hparams import Hyperparameters, read_hparams
from qtransformers.archs.spec import HARMLESS, IGNORED_KEYS, NEWER, ArchSpec, Problem
from qtransformers.cache import PagedCache
from qtransformers.errors import ConfigError, LoadError, UnsupportedError
from qtransformers.gguf import GGUFFile
from qtransformers.gguf.reader import Metadata
from qtransformers.kernels.table import ACCURACY
from qtransformers.load.chat.templates import ChatTemplates, templates_from_files, templates_from_gguf
from qtransformers.load.config import (
    GenerationDefaults,
    disagreements,
    generation_from_gguf,
    generation_from_json,
    merged,
    raise_problems,
    read_json,
    spoken,
    tensor_disagreements,
    text_config,
)
from qtransformers.load.files import other_tokenizer_files, tokenizer_file
from qtransformers.load.hub import Hub
from qtransformers.load.plan import LOGITS_ROWS, PARALLEL, PREFILL_CHUNK, LoadPlan, make_plan
from qtransformers.load.rope import override_rope
from qtransformers.load.source import Sources, resolve
from qtransformers.load.stages import Part, bytes_of, keep_part, part_of
from qtransformers.machine import memory
from qtransformers.settings import Settings

if TYPE_CHECKING:
    from qtransformers.load.fit import Budget
    from qtransformers.load.tokenizer import Tokenizer

__all__ = ["Loaded", "Prepared", "load", "load_tokenizer", "prepare", "resolve"]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A load decided and checked, with nothing allocated yet."""

    spec: ArchSpec
    hparams: Hyperparameters
    plan: LoadPlan


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
    context_length: int | None = None,
    cache: str = "f16",
    placement: str = "cpu",
    accuracy: str = ACCURACY,
    prefill_chunk: int = PREFILL_CHUNK,
    logits_rows: int = LOGITS_ROWS,
    cache_tokens: int | None = None,
    parallel: int = PARALLEL,
    rope_base: float | None = None,
    rope_scaling: str | None = None,
    threads: int | None = None,
    pre: str | None = None,
    mlock: bool = False,
    preload: bool = False,
    part: Part | None = None,
    settings: Settings | None = None,
    hub: Hub | None = None,
) -> Loaded:
    """Load a model: structure and weights from `gguf_path`, tokenizer, templates and defaults from `model_path` if given.

    `placement` says which device holds what: only the CPU unless it says more. `accuracy` is that of products with quantised weights (kernels.cpu.bind); `pre` overrides the GGUF's pre-tokenizer. Weights are read
    ahead in the background; `preload` waits until they are in memory, `mlock` keeps them there. `part` loads the layers of
    one stage of a pipeline and nothing else. Raises LoadError or UnsupportedError with everything that is wrong,
    and what `resolve` raises.
    """
    sources = resolve(gguf_path, model_path, settings, hub)
    gguf = sources.gguf
    if gguf is None:
        raise _no_weights(sources)
    prepared = prepare(
        sources,
        context_length=context_length,
        cache=cache,
        prefill_chunk=prefill_chunk,
        logits_rows=logits_rows,
        cache_tokens=cache_tokens,
        parallel=parallel,
        rope_base=rope_base,
        rope_scaling=rope_scaling,
        accuracy=accuracy,
        threads=threads,
    )
    from qtransformers.load.fit import Budget, fit, too_large
    from qtransformers.load.warm import in_background, lock
    from qtransformers.load.warm import preload as read_all

    whole_plan, layers = prepared.plan, None
    if part is not None:
        prepared, layers = part_of(prepared, part)
    budget = Budget.of(memory())
    plan, budget = on_devices(prepared, placement, budget)
    verdict = fit(plan, budget)
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

    weights = place(prepared.spec, plan, gguf.tensors, prepared.hparams.n_layers, accuracy)
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


def on_devices(prepared: Prepared, placement: str, budget: Budget) -> tuple[LoadPlan, Budget]:
    """The plan with everything where `placement` says, and what this machine has; errors as `placement.resolve` and `Devices.check`.

    InsufficientMemoryError where a GPU is to hold more than it has.
    """
    from qtransformers.load.devices import Devices
    from qtransformers.load.fit import device_too_small, fit
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
    found = placed(plan, resolve_placement(plan, placement, budget))
    for need in fit(found, budget).needs:
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


def prepare(
    sources: Sources,
    *,
    context_length: int | None = None,
    cache: str = "f16",
    prefill_chunk: int = PREFILL_CHUNK,
    logits_rows: int = LOGITS_ROWS,
    cache_tokens: int | None = None,
    parallel: int = PARALLEL,
    rope_base: float | None = None,
    rope_scaling: str | None = None,
    accuracy: str = ACCURACY,
    threads: int | None = None,
) -> Prepared:
    """Hyperparameters and plan, from headers and config.json alone; one error with every problem of either."""
    found = examine(
        sources,
        context_length=context_length,
        cache=cache,
        prefill_chunk=prefill_chunk,
        logits_rows=logits_rows,
        cache_tokens=cache_tokens,
        parallel=parallel,
        rope_base=rope_base,
        rope_scaling=rope_scaling,
        accuracy=accuracy,
        threads=threads,
    )
    raise_problems(found.headline, found.problems)
    assert found.prepared is not None  # without it there is a problem
    return found.prepared


@dataclass(frozen=True, eq=False)
class Examined:
    """What headers and config.json tell of a model: a plan, or the problems in the way of one."""

    headline: str
    problems: list[Problem]
    prepared: Prepared | None = None


def examine(
    sources: Sources,
    *,
    context_length: int | None = None,
    cache: str = "f16",
    prefill_chunk: int = PREFILL_CHUNK,
    logits_rows: int = LOGITS_ROWS,
    cache_tokens: int | None = None,
    parallel: int = PARALLEL,
    rope_base: float | None = None,
    rope_scaling: str | None = None,
    accuracy: str = ACCURACY,
    threads: int | None = None,
) -> Examined:
    """As `prepare`, with the problems of a model as a list; LoadError and UnsupportedError where it is none we could judge."""
    gguf = sources.gguf
    if gguf is None:
        raise _no_weights(sources)
    file = str(gguf.path)
    architecture = gguf.metadata.get("general.architecture")
    if architecture not in SPECS:
        from qtransformers.load.diffusion import detect, is_diffusion  # read only where a file may be one

        if is_diffusion(gguf):
            raise UnsupportedError(f"{file} is a diffusion transformer, {detect(gguf).spec.title}: it makes pictures, not text. Use `qtransformers image`, or qtransformers.diffusers.")  # fmt: skip
    if not isinstance(architecture, str):
        raise LoadError(
            f"{file}: general.architecture is missing, so nothing says how to run it. Convert the model again."
        )
    if not len(gguf.tensors):
        raise LoadError(
            f"{file} holds a vocabulary and no weights. Pass the GGUF file of the model itself as gguf_path."
        )
    spec = spec_of(architecture, file)
    rows = {t.attr: gguf.tensors[name].n_rows for t in spec.tensors if (name := f"{t.name}.weight") in gguf.tensors}
    config_file, config = _config(sources)
    said, problems = spoken(spec, config, config_file)
    hparams, more = read_hparams(spec, file, gguf.metadata, rows, said)
    headline = f"{file} cannot be loaded" + (f" with {config_file}" if config else "")
    if any(p.grade == "unsupported" for p in more):
        return Examined(headline, more)  # its tensors and its config are another kind of model's
    problems += more
    if config:
        problems += disagreements(spec, hparams, file, architecture, said, config, config_file)
    if {p.name for p in spec.hparams} - hparams.keys():
        return Examined(headline, problems)  # without all sizes nothing can be said about tensors
    problems += _unread(spec, hparams, architecture, gguf)
    notes = [p.text for p in problems if p.grade == "warning"]
    hparams = override_rope(hparams, rope_base, rope_scaling, file)
    plan, misfits = make_plan(
        spec,
        hparams,
        gguf.tensors,
        file,
        context_length=context_length,
        cache=cache,
        prefill_chunk=prefill_chunk,
        logits_rows=logits_rows,
        cache_tokens=cache_tokens,
        parallel=parallel,
        accuracy=accuracy,
        threads=threads,
        vocabulary=vocabulary_of(gguf.metadata),
        notes=notes,
    )
    problems += (Problem(f"{file}: {p.text}", p.grade) for p in misfits)
    if config and not misfits:
        problems += tensor_disagreements(spec, hparams, gguf.tensors, file, config, config_file)
    return Examined(headline, problems, Prepared(spec, hparams.replaced(loaded_context=plan.context_length), plan))


def vocabulary_of(metadata: Metadata) -> tuple[int, int] | None:
    """Tokens and merges of a file's own vocabulary, counted without decoding them; None where it has none."""
    names = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")
    tokens, merges = ((metadata.info(name).length or 0) if name in metadata else 0 for name in names)
    return (tokens, merges) if tokens else None


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


def _config(sources: Sources) -> tuple[str, Any]:
    path = sources.files.get("config.json")
    return (str(path), text_config(read_json(path))) if path else ("", {})


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


def _unread(spec: ArchSpec, h: Hyperparameters, architecture: str, gguf: GGUFFile) -> list[Problem]:
    """Settings of the architecture that nothing here reads: unsupported where they are known to change what is computed."""
    keys = (*(key for p in spec.hparams for key in (p.key, *p.also)), *spec.ignored_keys, *IGNORED_KEYS)
    known = {f"{architecture}.{key}" for key in keys}
    prefix = f"{architecture}."
    found = []
    for key in gguf.metadata:
        if not key.startswith(prefix) or key in known:
            continue
        value = gguf.metadata[key]
        said = f"{gguf.path}: {key} = {str(value)[:60]}"
        harmless = HARMLESS.get(key.removeprefix(prefix))
        if harmless is None:
            text = f"{said} is not read by this version; results may differ from the model's"
            found.append(Problem(text, "warning"))
        elif not harmless(value, h):
            text = f"{said} changes what {spec.id} models compute, and this version cannot do it. {NEWER}."
            found.append(Problem(text, "unsupported"))
    return found


def _no_weights(sources: Sources) -> LoadError:
    directory = sources.model_dir
    inside = sorted(p.name for p in directory.glob("*.gguf")) if directory else []
    found = f" It holds {', '.join(inside[:4])}: pass gguf_path={str(directory)!r} as well." if inside else ""
    return LoadError(
        f"{directory} gives tokenizer and config, but weights come from a GGUF file.{found} "
        "Pass gguf_path=, or make the file: qtransformers convert"
    )
