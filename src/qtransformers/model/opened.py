"""A model that is loaded: its engine, what is known of it, and its end."""

from __future__ import annotations

import warnings
from dataclasses import fields
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

from qtransformers.errors import ConfigError, UnsupportedError
from qtransformers.generate import Engine, Usage
from qtransformers.generate.device import forward_of, pool_of
from qtransformers.generate.drafting import draft_of
from qtransformers.generate.prepare import Preparer
from qtransformers.generate.speculative import Speculation
from qtransformers.kernels.table import FEW_ROWS
from qtransformers.load import Loaded
from qtransformers.load.chat.formats import PromptFormat
from qtransformers.machine import usable_cores
from qtransformers.model.loading import pipeline_of
from qtransformers.options import ModelConfig
from qtransformers.sampling import Sampling
from qtransformers.settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Self

    from qtransformers.archs.hparams import Hyperparameters
    from qtransformers.generate.asynchronous import Driver
    from qtransformers.load.chat import ChatTemplate
    from qtransformers.load.plan import LoadPlan
    from qtransformers.load.tokenizer import Tokenizer


class OpenModel:
    """What a `Model` is made of, and how it ends; what it can be asked is `Model`'s."""

    def __init__(
        self, loaded: Loaded, config: ModelConfig, format: PromptFormat | None = None, small: Loaded | None = None
    ) -> None:
        h, plan = loaded.hparams, loaded.plan
        self._pipeline = pipeline_of(config, loaded)
        cache = self._pipeline.cache if self._pipeline else loaded.new_cache()
        draft = draft_of(small, loaded, config.prefill_chunk) if small else None
        speculation = Speculation(FEW_ROWS[config.accuracy], draft, may_draw=not config.deterministic)
        self._small = small
        self.config = config
        self.plan: LoadPlan = plan
        self.hparams: Hyperparameters = h
        self.tokenizer: Tokenizer = loaded.tokenizer
        self.sampling = Sampling.from_generation_config(vars(loaded.generation))
        self._recommended_by = loaded.generation.origin
        self.eos_ids = frozenset(loaded.tokenizer.eos_ids) | frozenset(loaded.generation.eos)
        self.notes = loaded.notes
        self._format = format
        self._templates = loaded.chat_templates
        self._gguf = loaded.sources.gguf
        self._settle = loaded.settle
        self._kind = loaded.spec.kind
        self._spec = loaded.spec
        self._engine = Engine(
            self._pipeline or forward_of(loaded),
            cache,
            n_tokens=min(loaded.tokenizer.n_tokens, h.vocab_size),
            context_length=plan.context_length,
            prefill_chunk=config.prefill_chunk,
            logits_rows=config.logits_rows,
            parallel=config.parallel,
            few_rows=FEW_ROWS[config.accuracy],
            deterministic=config.deterministic,
            unused_ids=loaded.tokenizer.unused_ids,
            speculation=None if cache.states.nbytes else speculation,
            pool=pool_of(config.threads),
        )
        self._prepare = Preparer(loaded, self._engine, self.sampling, self.eos_ids, small is not None)
        for message in (*plan.warnings, *(f"the draft: {text}" for text in (small.plan.warnings if small else ()))):
            warnings.warn(message, stacklevel=3)

    @property
    def context_length(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self.plan.context_length

    @property
    def provenance(self) -> dict[str, tuple[Any, str]]:
        """Each setting as it took effect, and where it came from: given, a file, the environment, the machine, or the default."""
        found: dict[str, tuple[Any, str]] = {}
        for field in fields(self.config):
            value = getattr(self.config, field.name)
            found[field.name] = value, "default" if value == field.default else "given"
        if self.config.context_length is None:
            found["context_length"] = self.context_length, self.plan.file
        if self.config.cache_tokens is None:
            found["cache_tokens"] = self.plan.cache_tokens, "context_length"
        if self.config.threads is None:
            settings = Settings.from_env()
            found["threads"] = (settings.threads, "environment") if settings.threads else (usable_cores(), "machine")
        return found | {"sampling": (self.sampling, self._recommended_by or "default")}

    @property
    def usage(self) -> Usage:
        """Requests that run and wait, and pages of the cache."""
        return self._engine.usage

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """How chats become prompts: `prompt_format`, else the model's template; ConfigError where there is neither."""
        from qtransformers.load.chat import ChatTemplate, no_template

        named = self._templates.by_name
        source = self._templates.default
        format = self._format or (PromptFormat(self._templates.origin, source) if source is not None else None)
        if format is None:
            raise no_template(self.plan.file)
        t = self.tokenizer
        special = {"bos_token": t.bos_id, "eos_token": t.eos_id}
        return ChatTemplate(
            format,
            tool_template="" if self._format else named.get("tool_use", ""),
            special_tokens={name: "" if i is None else t.token_text(i) for name, i in special.items()},
            control_texts=tuple(t.token_text(i) for i in sorted(t.special_ids)),
        )

    def close(self) -> None:
        """Free weights and cache; any use afterwards raises ConfigError. Waits for the forward under way."""
        self._engine.close()
        if self._pipeline is not None:
            self._pipeline.close()
        self._prepare.close()
        self._settle()
        if self._small is not None:
            self._small.settle()
            if self._small.sources.gguf is not None:
                self._small.sources.gguf.close()
            self._small = None
        if self._gguf is not None:
            self._gguf.close()
            self._gguf = None
        if self.plan.devices:
            from qtransformers.kernels.triton.device import give_back

            give_back()

    @property
    def problem(self) -> str:
        """Why it cannot answer any more: a process that has some of its layers is lost. "" while it can."""
        return self._pipeline.lost if self._pipeline is not None else ""

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._engine.closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"<Model {self.plan.architecture} of {self.plan.file}, context of {self.context_length:,} tokens{state}>"

    @property
    def _driver(self) -> Driver:
        from qtransformers.generate.asynchronous import Driver

        driver: Driver = vars(self).setdefault("_the_driver", Driver(self._engine))  # one, whatever thread asks first
        return driver

    @cached_property
    def _fingerprint(self) -> str:
        from qtransformers.generate.session import fingerprint

        assert self._gguf is not None  # the model is open
        return f"{fingerprint(self._gguf, self.hparams)}-{self.config.accuracy}"

    def _check_open(self) -> None:
        if self.closed:
            raise ConfigError(f"the model of {self.plan.file} is closed. Load it again to use it.")

    def _check_whole(self, what: str) -> None:
        if self._pipeline is not None:
            raise UnsupportedError(
                f"{what} need all layers of {self.plan.file} in one process, and they are in several (stages). Load it without."
            )

    def _check_generates(self) -> None:
        self._check_open()
        if self._kind != "language":
            raise ConfigError(
                f"{self.plan.file} is an encoder ({self.plan.architecture}): it makes vectors of texts and generates none. Use embed(), or load a language model."
            )
