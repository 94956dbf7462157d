"""A load decided and checked from headers and config.json, with nothing allocated yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qtransformers.archs import SPECS, spec_of
from qtransformers.archs.hparams import Hyperparameters, read_hparams
from qtransformers.archs.spec import HARMLESS, IGNORED_KEYS, NEWER, ArchSpec, Problem
from qtransformers.errors import LoadError, UnsupportedError
from qtransformers.gguf import GGUFFile
from qtransformers.gguf.reader import Metadata
from qtransformers.load.config import (
    disagreements,
    raise_problems,
    read_json,
    spoken,
    tensor_disagreements,
    text_config,
)
from qtransformers.load.plan import LoadPlan, PlanOptions, make_plan
from qtransformers.load.rope import override_rope
from qtransformers.load.source import Sources

if TYPE_CHECKING:
    from typing_extensions import Unpack


class PrepareOptions(PlanOptions, total=False):
    """What a plan depends on beside the files, and what stands in for the file's own rope."""

    rope_base: float | None
    rope_scaling: str | None


@dataclass(frozen=True, eq=False)
class Prepared:
    """A load decided and checked, with nothing allocated yet."""

    spec: ArchSpec
    hparams: Hyperparameters
    plan: LoadPlan


def prepare(
    sources: Sources,
    **options: Unpack[PrepareOptions],
) -> Prepared:
    """Hyperparameters and plan, from headers and config.json alone; one error with every problem of either."""
    found = examine(
        sources,
        **options,
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
    rope_base: float | None = None,
    rope_scaling: str | None = None,
    **options: Unpack[PlanOptions],
) -> Examined:
    """As `prepare`, with the problems of a model as a list; LoadError and UnsupportedError where it is none we could judge."""
    gguf = sources.gguf
    if gguf is None:
        raise no_weights(sources)
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
        **options,
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


def _config(sources: Sources) -> tuple[str, Any]:
    path = sources.files.get("config.json")
    return (str(path), text_config(read_json(path))) if path else ("", {})


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


def no_weights(sources: Sources) -> LoadError:
    """What to say where there is no GGUF file."""
    directory = sources.model_dir
    inside = sorted(p.name for p in directory.glob("*.gguf")) if directory else []
    found = f" It holds {', '.join(inside[:4])}: pass gguf_path={str(directory)!r} as well." if inside else ""
    return LoadError(
        f"{directory} gives tokenizer and config, but weights come from a GGUF file.{found} "
        "Pass gguf_path=, or make the file: qtransformers convert"
    )
