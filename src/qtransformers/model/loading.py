"""What a `ModelConfig` asks for, loaded: a model, the other processes that have its layers, and its draft."""

from __future__ import annotations

from qtransformers.checks import shown
from qtransformers.errors import UnsupportedError
from qtransformers.generate.link import Meeting
from qtransformers.generate.pipeline import Pipeline, lead
from qtransformers.kernels.staging import Progress
from qtransformers.load import Loaded, load
from qtransformers.load.prepare import PrepareOptions
from qtransformers.load.stages import Part
from qtransformers.options import ModelConfig
from qtransformers.settings import Settings

SHARED = ("cache", "accuracy", "prefill_chunk", "parallel", "mlock", "preload")  # what a draft is loaded with, too
OF_STAGES = ("cache", "accuracy", "prefill_chunk", "logits_rows", "parallel", "rope_base", "rope_scaling")


def load_model(config: ModelConfig, progress: Progress | None = None) -> Loaded:
    """The model of a config, or its first stage; errors as `Model.load`."""
    meeting = None if config.stages is None else Meeting.parse(config.stages)
    options = {name: getattr(config, name) for name in PrepareOptions.__annotations__}
    loaded = load(
        config.gguf_path,
        config.model_path,
        placement="cpu" if config.deterministic and config.placement == "auto" else config.placement,
        pre=config.pre,
        mlock=config.mlock,
        preload=config.preload,
        part=None if meeting is None else Part(0, meeting.n),
        progress=progress,
        **{**options, "threads": _threads(config)},
    )
    if config.deterministic and loaded.plan.devices:
        raise UnsupportedError(
            f"deterministic=True, placement={shown(config.placement)}: on a GPU the last bits of an answer depend on how many are "
            "computed with it. Use placement=cpu, or leave out deterministic."
        )
    return loaded


def load_draft(config: ModelConfig, model: Loaded) -> Loaded | None:
    """The draft of a config, beside the model that it is for; None where there is none."""
    if config.draft is None:
        return None
    return load(
        config.draft,
        context_length=model.plan.context_length,
        placement="auto" if model.plan.devices else "cpu",
        cache_tokens=model.plan.cache_tokens,
        threads=_threads(config),
        beside=model.plan,
        **{name: getattr(config, name) for name in SHARED},
    )


def pipeline_of(config: ModelConfig, loaded: Loaded) -> Pipeline | None:
    """The other stages, as soon as they are there, which load what the first did; None for a model in one process."""
    if config.stages is None:
        return None
    settings = {name: getattr(config, name) for name in OF_STAGES}
    settings |= {"context_length": loaded.plan.context_length, "cache_tokens": loaded.plan.cache_tokens}
    return lead(Meeting.parse(config.stages), loaded, settings, config.threads)


def _threads(config: ModelConfig) -> int | None:
    return config.threads or Settings.from_env().threads
