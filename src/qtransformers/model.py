"""The public Model: load, generate, chat."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from qtransformers.checks import flag, shown, text, whole
from qtransformers.checks import path as checked
from qtransformers.errors import ConfigError, ContextLengthError, UnsupportedError
from qtransformers.generate import Completion, Engine, Stream, Usage
from qtransformers.generate.device import forward_of, pool_of
from qtransformers.generate.drafting import draft_of
from qtransformers.generate.embed import check_pooling, embed, normalized
from qtransformers.generate.link import Meeting
from qtransformers.generate.pipeline import Pipeline, lead
from qtransformers.generate.prepare import MAX_LOGPROBS, Preparer
from qtransformers.generate.requests import prompt_ids, texts
from qtransformers.generate.speculative import Speculation
from qtransformers.kernels.table import ACCURACY, FEW_ROWS
from qtransformers.load import Loaded, load
from qtransformers.load.chat.formats import PromptFormat
from qtransformers.load.chat.formats import prompt_format as named_format
from qtransformers.load.plan import LOGITS_ROWS, PARALLEL, PREFILL_CHUNK
from qtransformers.load.stages import Part
from qtransformers.load.start import doubts, encode_prompt
from qtransformers.machine import usable_cores
from qtransformers.options import MAX_TOKENS, LoadOptions, ModelConfig, Options, PromptOptions
from qtransformers.sampling import Logprob, Sampling, logprobs
from qtransformers.settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from qtransformers.archs.hparams import Hyperparameters
    from qtransformers.generate.asynchronous import AsyncStream, Driver
    from qtransformers.load.adapters import Adapter
    from qtransformers.load.chat import ChatTemplate
    from qtransformers.load.plan import LoadPlan
    from qtransformers.load.tokenizer import Tokenizer

__all__ = ["Model", "ModelConfig"]


class Model:
    """A language model or an encoder: weights from a GGUF file, tokenizer and chat template from the file or a Hugging Face directory.

    Made by `load` or `from_pretrained`; `close()` or a `with` block frees it. Thread-safe: answers asked for side by side
    are computed together, `parallel` at a time, and share what their prompts have in common.
    """

    def __init__(
        self, loaded: Loaded, config: ModelConfig, format: PromptFormat | None = None, small: Loaded | None = None
    ) -> None:
        h, plan = loaded.hparams, loaded.plan
        self._pipeline = _pipeline(loaded, config) if config.stages else None
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
        for message in plan.warnings:
            warnings.warn(message, stacklevel=3)

    @classmethod
    def load(
        cls,
        gguf_path: str | Path | None = None,
        model_path: str | Path | None = None,
        *,
        context_length: int | None = None,
        cache: str = "f16",
        placement: str = "auto",
        accuracy: str = ACCURACY,
        prefill_chunk: int = PREFILL_CHUNK,
        logits_rows: int = LOGITS_ROWS,
        cache_tokens: int | None = None,
        parallel: int = PARALLEL,
        rope_base: float | None = None,
        rope_scaling: str | None = None,
        deterministic: bool = False,
        threads: int | None = None,
        draft: str | Path | None = None,
        prompt_format: str | Path | None = None,
        pre: str | None = None,
        mlock: bool = False,
        preload: bool = False,
        stages: str | None = None,
    ) -> Model:
        """Load the weights of `gguf_path` (a file, its first shard, or a folder); the fields are `ModelConfig`'s.

        `model_path`, a directory or Hub id, gives tokenizer, config, chat template and generation config where the
        GGUF's own should not serve; its weights are never read or downloaded. Errors name file, field and remedy:
        ConfigError, ModelNotFoundError, GGUFError, LoadError, UnsupportedError, TokenizerError, InsufficientMemoryError.
        """
        config = ModelConfig(
            gguf_path=gguf_path,
            model_path=model_path,
            context_length=context_length,
            cache=cache,
            placement=placement,
            accuracy=accuracy,
            prefill_chunk=prefill_chunk,
            logits_rows=logits_rows,
            cache_tokens=cache_tokens,
            parallel=parallel,
            rope_base=rope_base,
            rope_scaling=rope_scaling,
            deterministic=deterministic,
            threads=threads,
            draft=draft,
            prompt_format=prompt_format,
            pre=pre,
            mlock=mlock,
            preload=preload,
            stages=stages,
        )
        meeting = None if stages is None else Meeting.parse(stages)
        format = None if prompt_format is None else named_format(prompt_format)
        loaded = load(
            gguf_path,
            model_path,
            context_length=config.context_length,
            cache=config.cache,
            placement="cpu" if config.deterministic and config.placement == "auto" else config.placement,
            accuracy=config.accuracy,
            prefill_chunk=config.prefill_chunk,
            logits_rows=config.logits_rows,
            cache_tokens=config.cache_tokens,
            parallel=config.parallel,
            rope_base=config.rope_base,
            rope_scaling=config.rope_scaling,
            threads=config.threads or Settings.from_env().threads,
            pre=config.pre,
            mlock=config.mlock,
            preload=config.preload,
            part=None if meeting is None else Part(0, meeting.n),
        )
        if config.deterministic and loaded.plan.devices:
            raise UnsupportedError(
                f"deterministic=True, placement={shown(config.placement)}: on a GPU the last bits of an answer depend on how many are "
                "computed with it. Use placement=cpu, or leave out deterministic."
            )
        small = None
        if config.draft is not None:
            small = load(
                config.draft,
                context_length=loaded.plan.context_length,
                cache=config.cache,
                placement="auto" if loaded.plan.devices else "cpu",
                accuracy=config.accuracy,
                prefill_chunk=config.prefill_chunk,
                cache_tokens=loaded.plan.cache_tokens,
                parallel=config.parallel,
                threads=config.threads or Settings.from_env().threads,
                mlock=config.mlock,
                preload=config.preload,
            )
        return cls(loaded, config, format, small)

    @classmethod
    def from_pretrained(
        cls, model: str | Path, model_path: str | Path | None = None, **options: Unpack[LoadOptions]
    ) -> Model:
        """Load `user/repo:QUANT` from the Hugging Face Hub, `demo`, or a path; options as `load`.

        What has to be downloaded is planned from its header first: nothing is fetched that could not be loaded.
        """
        from qtransformers.load.hub import resolve_model
        from qtransformers.load.survey import judge

        if not isinstance(model, (str, os.PathLike)) or not str(model):
            raise ConfigError(f"model={shown(model)}; expected user/repo:QUANT, demo, or a path.")
        return cls.load(resolve_model(str(model), check=judge), model_path, **options)

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

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        add_bos: bool | None = None,
        encode_special: bool = False,
        **options: Unpack[Options],
    ) -> Completion:
        """Continue a text, or token ids as they are; see `Options`.

        Of a text: `add_bos` None puts BOS in front where the model expects it; `encode_special` lets control tokens that
        the text spells out become those tokens. What looks like a missing or a doubled BOS is a warning; for ids without
        one `add_bos=False` says that it is meant. ConfigError names the field that cannot be honoured.
        """
        return self.stream(prompt, add_bos=add_bos, encode_special=encode_special, **options).read()

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        add_bos: bool | None = None,
        encode_special: bool = False,
        continues: bool | None = None,
        **options: Unpack[Options],
    ) -> Stream:
        """As `generate`, piece by piece: an iterator of `Chunk`, whose `completion` is the whole.

        continues: whether the text goes on in the answer, so that a blank in front of it is shown; False after a chat's prompt.
        """
        self._check_generates()
        flag("encode_special", encode_special)
        if add_bos is not None:
            flag("add_bos", add_bos)
        if isinstance(prompt, str):
            ids = tuple(encode_prompt(text("prompt", prompt), self.tokenizer, add_bos, encode_special))
            found = doubts(ids, self.tokenizer, prompt, encode_special)
        else:
            if add_bos or encode_special:
                raise ConfigError(
                    "add_bos and encode_special are for text, but the prompt is token ids. Leave them out."
                )
            ids = prompt_ids(prompt, self._engine.n_tokens)
            found = doubts(ids, self.tokenizer) if add_bos is None else []
        _warn(found)
        if continues is None:
            continues = not isinstance(prompt, str) or bool(prompt)
        return Stream(self._engine, self._prepare(ids, flag("continues", continues), **options))

    def generate_many(
        self, prompts: Sequence[str | Sequence[int]], **options: Unpack[PromptOptions]
    ) -> list[Completion]:
        """`generate` for each of the prompts, computed together, `parallel` at a time: their answers in the same order."""
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            raise ConfigError(f"prompts={shown(prompts)}; expected a list of prompts, [prompt] for one.")
        streams = [self.stream(prompt, **options) for prompt in prompts]
        try:
            for stream in streams:
                stream.start(run_ahead=MAX_TOKENS)
            return [stream.read() for stream in streams]
        finally:
            for stream in streams:
                stream.close()

    @overload
    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[False] = ..., tools: Sequence[Mapping[str, Any]] | None = ...,
        documents: Sequence[Mapping[str, Any]] | None = ..., template_variables: Mapping[str, Any] | None = ...,
        encode_special: bool = ..., **options: Unpack[Options],
    ) -> Completion: ...  # fmt: skip
    @overload
    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[True], tools: Sequence[Mapping[str, Any]] | None = ...,
        documents: Sequence[Mapping[str, Any]] | None = ..., template_variables: Mapping[str, Any] | None = ...,
        encode_special: bool = ..., **options: Unpack[Options],
    ) -> Stream: ...  # fmt: skip
    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        encode_special: bool = False,
        **options: Unpack[Options],
    ) -> Completion | Stream:
        """Answer OpenAI-shaped messages, `{"role": "user", "content": "..."}`; a `Stream` with `stream=True`.

        `tools`, `documents` and `template_variables` go to the chat template. Control tokens that messages spell out stay
        text unless `encode_special`. ConfigError for malformed messages or a model without a template, TemplateError.
        """
        flag("stream", stream)
        ids = self.chat_ids(
            messages, tools=tools, documents=documents, template_variables=template_variables, encode_special=encode_special
        )  # fmt: skip
        options["stop"] = (*self.chat_template.format.stop, *texts("stop", options.get("stop")))
        answer = Stream(self._engine, self._prepare(ids, False, **options))
        return answer if stream else answer.read()

    def chat_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        encode_special: bool = False,
    ) -> tuple[int, ...]:
        """The prompt of a chat as token ids."""
        from qtransformers.load.chat import encode

        self._check_generates()
        prompt = self.chat_template.render(
            messages,
            tools=tools,
            documents=documents,
            variables=template_variables,
            encode_special=flag("encode_special", encode_special),
        )
        ids = tuple(encode(prompt, self.tokenizer))
        _warn(doubts(ids, self.tokenizer, prompt.text, encode_special=True))
        return ids

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

    async def agenerate(
        self,
        prompt: str | Sequence[int],
        *,
        add_bos: bool | None = None,
        encode_special: bool = False,
        **options: Unpack[Options],
    ) -> Completion:
        """`generate` beside an event loop; cancelling the task ends the answer and frees its memory."""
        return await self.astream(prompt, add_bos=add_bos, encode_special=encode_special, **options).read()

    def astream(
        self,
        prompt: str | Sequence[int],
        *,
        add_bos: bool | None = None,
        encode_special: bool = False,
        continues: bool | None = None,
        **options: Unpack[Options],
    ) -> AsyncStream:
        """`stream` beside an event loop: `async for chunk in model.astream(...)`."""
        from qtransformers.generate.asynchronous import AsyncStream

        stream = self.stream(prompt, add_bos=add_bos, encode_special=encode_special, continues=continues, **options)
        return AsyncStream(stream, self._driver)

    @overload
    async def achat(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[False] = ..., tools: Sequence[Mapping[str, Any]] | None = ...,
        documents: Sequence[Mapping[str, Any]] | None = ..., template_variables: Mapping[str, Any] | None = ...,
        encode_special: bool = ..., **options: Unpack[Options],
    ) -> Completion: ...  # fmt: skip
    @overload
    async def achat(
        self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[True], tools: Sequence[Mapping[str, Any]] | None = ...,
        documents: Sequence[Mapping[str, Any]] | None = ..., template_variables: Mapping[str, Any] | None = ...,
        encode_special: bool = ..., **options: Unpack[Options],
    ) -> AsyncStream: ...  # fmt: skip
    async def achat(
        self, messages: Sequence[Mapping[str, Any]], *, stream: bool = False, **given: Any
    ) -> Completion | AsyncStream:
        """`chat` beside an event loop; with `stream=True`: `async for chunk in await model.achat(..., stream=True)`."""
        from qtransformers.generate.asynchronous import AsyncStream

        flag("stream", stream)
        answer = AsyncStream(self.chat(messages, stream=True, **given), self._driver)
        return answer if stream else await answer.read()

    @property
    def _driver(self) -> Driver:
        from qtransformers.generate.asynchronous import Driver

        driver: Driver = vars(self).setdefault("_the_driver", Driver(self._engine))  # one, whatever thread asks first
        return driver

    def logits(self, tokens: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float32]:
        """Logits of the token after each of `tokens [T]`: `[T, vocab_size]`, the rows of padding included."""
        self._check_generates()
        ids = prompt_ids(tokens, self._engine.n_tokens)
        if not 0 < len(ids) <= self.context_length:
            raise ConfigError(f"tokens has {len(ids):,} ids; expected 1 to {self.context_length:,} (context_length).")
        return np.concatenate(list(self._engine.logits(ids)))

    def score(self, tokens: Sequence[int], *, top: int = 0) -> Iterator[list[Logprob]]:
        """Log-probabilities of `tokens` after those before them, but of the first, and of the `top` likeliest in each place.

        They come in lists of at most `logits_rows`, as they are computed; dropping the iterator ends it.
        """
        self._check_generates()
        ids = prompt_ids(tokens, self._engine.n_tokens, "tokens")
        whole("top", top, 0, MAX_LOGPROBS)
        if not 0 < len(ids) <= self.context_length:
            raise ContextLengthError(
                f"the prompt has {len(ids):,} tokens; expected 1 to {self.context_length:,} (context_length). Shorten it, or load "
                "the model with a larger context_length."
            )
        return self._scores(ids, top)

    def _scores(self, ids: tuple[int, ...], top: int) -> Iterator[list[Logprob]]:
        at = 1
        for rows in self._engine.logits(ids[:-1]):
            rows = rows[:, : self._engine.n_tokens].copy()
            rows[:, [i for i in self.tokenizer.unused_ids if i < self._engine.n_tokens]] = -np.inf
            yield [logprobs(row, token, top) for row, token in zip(rows, ids[at : at + len(rows)], strict=True)]
            at += len(rows)

    def save_session(self, path: str | Path, tokens: Sequence[int], *, overwrite: bool = False) -> int:
        """Write the keys and values of `tokens` to a file, computing what the cache lacks; how many tokens it holds.

        `completion.prompt + completion.tokens` are those of an answer. ConfigError where the file exists or there are more
        tokens than the context takes, UnsupportedError for models with recurrent layers.
        """
        from qtransformers.generate import session

        self._check_generates()
        self._check_whole("sessions")
        file = checked("path", path)
        ids = prompt_ids(tokens, self._engine.n_tokens, "tokens")
        if not 0 < len(ids) <= self.context_length:
            raise ConfigError(f"tokens has {len(ids):,} ids; expected 1 to {self.context_length:,} (context_length).")
        if len(ids) < self.context_length:  # or there is no room for even one token more
            self.generate(ids, max_tokens=1, temperature=0)
        return session.save(self._engine, file, ids, self._fingerprint, flag("overwrite", overwrite))

    def load_session(self, path: str | Path) -> tuple[int, ...]:
        """Bring a saved session back into the cache; its tokens. A prompt that begins with them goes on from there.

        LoadError for a file of another model, cache type or version of this library, or a damaged one.
        """
        from qtransformers.generate import session

        self._check_generates()
        self._check_whole("sessions")
        return session.restore(self._engine, checked("path", path), self._fingerprint)

    def load_lora(self, path: str | Path) -> Adapter:
        """A LoRA adapter for this model from a GGUF file or a PEFT directory, for `lora` of requests; weights stay as they are.

        ModelNotFoundError, UnsupportedError, or LoadError with every tensor that does not fit.
        """
        from qtransformers.load.adapters import load_adapter

        self._check_generates()
        self._check_whole("adapters")
        return load_adapter(checked("path", path), self._spec, self.hparams)

    @cached_property
    def _fingerprint(self) -> str:
        from qtransformers.generate.session import fingerprint

        assert self._gguf is not None  # the model is open
        return f"{fingerprint(self._gguf, self.hparams)}-{self.config.accuracy}"

    @property
    def usage(self) -> Usage:
        """Requests that run and wait, and pages of the cache."""
        return self._engine.usage

    def embed(
        self,
        texts: Sequence[str | Sequence[int]],
        *,
        pooling: str | None = None,
        normalize: bool = True,
        truncate: bool = False,
    ) -> NDArray[np.float32]:
        """A vector for each text, or list of token ids, of an encoder (bert, nomic-bert): `[n, n_embd]`, in their order.

        `pooling` makes one vector of a text's tokens: `mean`, `cls` (the first) or `last`; None: as the file says. Vectors
        have length 1 unless `normalize=False`. A text longer than the context is an error, or loses its end with
        `truncate=True`. Prefixes that the model's authors ask for ("search_query: ") are the caller's to write.
        ConfigError names the field that cannot be honoured.
        """
        self._check_open()
        if self._kind != "encoder":
            raise ConfigError(
                f"{self.plan.file} is a language model ({self.plan.architecture}), which gives no embeddings here. Load an encoder, such as a bert or nomic-bert model."
            )
        pooling = check_pooling(pooling, self.hparams["pooling"], self.plan.file)
        found = embed(self._engine, self.tokenizer, texts, pooling, flag("truncate", truncate))
        vectors = np.concatenate([np.zeros((0, self.hparams["n_embd"]), np.float32), *found])
        return normalized(vectors) if flag("normalize", normalize) else vectors

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

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"<Model {self.plan.architecture} of {self.plan.file}, context of {self.context_length:,} tokens{state}>"

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


def _pipeline(loaded: Loaded, config: ModelConfig) -> Pipeline:
    """The other stages, as soon as they are there, which load what this one did."""
    same = ("cache", "accuracy", "prefill_chunk", "logits_rows", "parallel", "rope_base", "rope_scaling")
    settings = {name: getattr(config, name) for name in same}
    settings |= {"context_length": loaded.plan.context_length, "cache_tokens": loaded.plan.cache_tokens}
    return lead(Meeting.parse(config.stages), loaded, settings, config.threads)


def _warn(messages: Sequence[str]) -> None:
    for message in messages:
        warnings.warn(message, stacklevel=4)
