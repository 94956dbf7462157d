"""The public Model: load, generate, chat."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args, overload

import numpy as np
from numpy.typing import NDArray

from qtransformers.cache.pages import check_codec
from qtransformers.checks import flag, real, shown, text, whole
from qtransformers.constrain import Grammar, Grammars, grammar_kind
from qtransformers.errors import ConfigError, ConstraintError
from qtransformers.generate import Completion, Engine, Request, Stream, Usage
from qtransformers.generate import Sequence as Answer
from qtransformers.generate.drafting import draft_of
from qtransformers.generate.embed import check_pooling, embed, normalized
from qtransformers.generate.requests import MAX_DRAFT, Hook, Speculate, answer_limit, prompt_ids, texts
from qtransformers.generate.speculative import Speculation
from qtransformers.kernels.table import ACCURACY, FEW_ROWS, check_accuracy
from qtransformers.load import Loaded, load
from qtransformers.load.chat.formats import PromptFormat
from qtransformers.load.chat.formats import prompt_format as named_format
from qtransformers.load.placement import check_placement
from qtransformers.load.plan import LOGITS_ROWS, PARALLEL, PREFILL_CHUNK
from qtransformers.load.rope import check_rope_base, check_rope_scaling
from qtransformers.load.start import doubts, encode_prompt
from qtransformers.machine import usable_cores
from qtransformers.nn.adapted import adapted
from qtransformers.sampling import Breaks, Sampling, SamplingOptions, breaks_of
from qtransformers.settings import MAX_THREADS, Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from qtransformers.archs.spec import Hyperparameters
    from qtransformers.generate.asynchronous import AsyncStream, Driver
    from qtransformers.load.adapters import Adapter
    from qtransformers.load.chat import ChatTemplate
    from qtransformers.load.plan import LoadPlan
    from qtransformers.load.tokenizer import Tokenizer

__all__ = ["Model", "ModelConfig"]

MAX_TOKENS = 2**31 - 1
MAX_PARALLEL = 1024
MAX_LOGPROBS = 1024


@dataclass(frozen=True)
class ModelConfig:
    """How a model is loaded, checked once; None leaves a choice to the files or the machine. ConfigError names the field."""

    gguf_path: str | Path | None = None
    model_path: str | Path | None = None
    context_length: int | None = None  # tokens of prompt and answer; None: what the model was trained for
    cache: str = "f16"  # how keys and values are kept: f32, f16, q8, q6, q4 or k8v4
    placement: str = "auto"  # load.placement, or a .json where one is saved; this version runs on the CPU alone
    accuracy: str = ACCURACY  # of products with quantised weights: exact, high or fast
    prefill_chunk: int = PREFILL_CHUNK  # tokens of a prompt that one forward takes
    logits_rows: int = LOGITS_ROWS  # rows of logits that one forward gives at most; more is memory, for `logits()`
    cache_tokens: int | None = None  # of all requests together; None: of one that fills the context
    parallel: int = PARALLEL  # requests that are computed at the same time; others wait
    rope_base: float | None = None  # of the rotary frequencies, in place of the file's
    rope_scaling: str | None = (
        None  # `none`, or `linear`, `ntk` or `yarn` with a factor (yarn:4), in place of the file's
    )
    deterministic: bool = False  # an answer does not depend on what is computed beside it, not even by rounding
    threads: int | None = None  # None: QTRANSFORMERS_THREADS, else every core this process may use
    draft: str | Path | None = None  # a smaller model of the same vocabulary, whose guesses this one confirms
    prompt_format: str | Path | None = None  # name or jinja file, instead of the model's chat template
    pre: str | None = None  # instead of the file's tokenizer.ggml.pre
    mlock: bool = False  # keep the weights in main memory until the model is closed
    preload: bool = False  # wait until all weights are in main memory

    def __post_init__(self) -> None:
        for name in ("gguf_path", "model_path", "draft"):
            path = getattr(self, name)
            if path is not None and not isinstance(path, (str, os.PathLike)):
                raise ConfigError(f"{name}={shown(path)}; expected a path.")
        if self.context_length is not None:
            whole("context_length", self.context_length, 1, MAX_TOKENS)
        check_codec(self.cache)
        check_placement(text("placement", self.placement))
        check_accuracy(self.accuracy)
        whole("prefill_chunk", self.prefill_chunk, 1, 2**20)
        whole("logits_rows", self.logits_rows, 1, 2**20)
        if self.cache_tokens is not None:
            whole("cache_tokens", self.cache_tokens, 1, 2**40)
        whole("parallel", self.parallel, 1, MAX_PARALLEL)
        if self.rope_base is not None:
            check_rope_base(self.rope_base)
        if self.rope_scaling is not None:
            check_rope_scaling(self.rope_scaling)
        flag("deterministic", self.deterministic)
        if self.threads is not None:
            whole("threads", self.threads, 1, MAX_THREADS)
        if self.pre is not None:
            text("pre", self.pre)
        flag("mlock", self.mlock)
        flag("preload", self.preload)


class LoadOptions(TypedDict, total=False):
    """The fields of `ModelConfig` that every way of loading takes."""

    context_length: int | None
    cache: str
    placement: str
    accuracy: str
    prefill_chunk: int
    logits_rows: int
    cache_tokens: int | None
    parallel: int
    rope_base: float | None
    rope_scaling: str | None
    deterministic: bool
    threads: int | None
    draft: str | Path | None
    prompt_format: str | Path | None
    pre: str | None
    mlock: bool
    preload: bool


class Options(SamplingOptions, total=False):
    """What a request may say. What it leaves out comes from the model's generation config, else it is neutral."""

    max_tokens: int | None  # of the answer; None: until the context is full
    min_tokens: int  # of the answer, before it may end
    stop: str | Sequence[str] | None  # texts that end the answer and are no part of it
    banned: str | Sequence[str] | None  # texts that the answer does not hold: it goes back and takes another way
    max_repeats: int | None  # the answer ends where its last tokens are the same so many times in a row
    heal: bool  # let the first tokens of the answer complete the last of the prompt
    decode_special: bool  # show control tokens in the text
    logprobs: (
        int | None
    )  # log-probabilities of the tokens by the model alone, and of so many of the likeliest each time
    hooks: Sequence[Hook]  # functions (tokens so far, logits) -> logits, called before sampling in their order
    speculate: (
        bool | Speculate | None
    )  # guess tokens ahead, by repeats in the text (`ngram`), a draft model (`draft`), or both
    max_draft: int  # tokens guessed ahead in one forward, at most
    json_schema: str | Mapping[str, Any] | bool | None  # the answer is JSON that follows it; True: any JSON value
    lora: (
        Adapter | Sequence[Adapter | tuple[Adapter, float]] | None
    )  # of `load_lora`, each at a scale (1 if none is given)
    regex: str | None  # the answer as a whole matches it
    grammar: str | None  # the answer follows it: GBNF, or llguidance's Lark
    sampling: Sampling | None  # in place of the model's; its fields may be given one by one, too


class PromptOptions(Options, total=False):
    """What a request whose prompt is text or token ids may say beside."""

    add_bos: bool | None
    encode_special: bool


class Model:
    """A language model or an encoder: weights from a GGUF file, tokenizer and chat template from the file or a Hugging Face directory.

    Made by `load` or `from_pretrained`; `close()` or a `with` block frees it. Thread-safe: answers asked for side by side
    are computed together, `parallel` at a time, and share what their prompts have in common.
    """

    def __init__(
        self, loaded: Loaded, config: ModelConfig, format: PromptFormat | None = None, small: Loaded | None = None
    ) -> None:
        settings = Settings.from_env()
        h, plan = loaded.hparams, loaded.plan
        cache = loaded.new_cache()
        draft = draft_of(small, loaded, config.prefill_chunk) if small else None
        speculation = Speculation(FEW_ROWS[config.accuracy], draft, may_draw=not config.deterministic)
        from qtransformers.kernels.cpu import Pool  # the extension

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
        self._breaks: dict[tuple[str, ...], Breaks] = {}
        self._grammars = Grammars(loaded.tokenizer)
        self._engine = Engine(
            partial(_forward, loaded.spec.forward, loaded.weights, h),
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
            pool=Pool(config.threads or settings.threads or usable_cores(), settings.isa or ""),
        )
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
    ) -> Model:
        """Load the weights of `gguf_path` (a file, its first shard, or a folder); the fields are `ModelConfig`'s.

        `model_path`, a directory or Hub id, gives tokenizer, config, chat template and generation config where the
        GGUF's own should not serve; its weights are never read or downloaded. Errors name file, field and remedy:
        ConfigError, ModelNotFoundError, GGUFError, LoadError, UnsupportedError, TokenizerError, InsufficientMemoryError.
        """
        config = ModelConfig(
            gguf_path, model_path, context_length, cache, placement, accuracy, prefill_chunk, logits_rows, cache_tokens, parallel, rope_base, rope_scaling, deterministic, threads, draft, prompt_format, pre,
            mlock, preload,
        )  # fmt: skip
        format = None if prompt_format is None else named_format(prompt_format)
        loaded = load(
            gguf_path,
            model_path,
            context_length=config.context_length,
            cache=config.cache,
            placement=config.placement,
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
        )
        small = None
        if config.draft is not None:
            small = load(
                config.draft,
                cache=config.cache,
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
        **options: Unpack[Options],
    ) -> Stream:
        """As `generate`, piece by piece: an iterator of `Chunk`, whose `completion` is the whole."""
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
        return self._stream(ids, not isinstance(prompt, str) or bool(prompt), **options)

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
        answer = self._stream(ids, False, **options)
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
        **options: Unpack[Options],
    ) -> AsyncStream:
        """`stream` beside an event loop: `async for chunk in model.astream(...)`."""
        from qtransformers.generate.asynchronous import AsyncStream

        return AsyncStream(self.stream(prompt, add_bos=add_bos, encode_special=encode_special, **options), self._driver)

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

    @cached_property
    def _driver(self) -> Driver:
        from qtransformers.generate.asynchronous import Driver

        return Driver(self._engine)

    def logits(self, tokens: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float32]:
        """Logits of the token after each of `tokens [T]`: `[T, vocab_size]`, the rows of padding included."""
        self._check_generates()
        ids = prompt_ids(tokens, self._engine.n_tokens)
        if not 0 < len(ids) <= self.context_length:
            raise ConfigError(f"tokens has {len(ids):,} ids; expected 1 to {self.context_length:,} (context_length).")
        return self._engine.logits(ids)

    def save_session(self, path: str | Path, tokens: Sequence[int], *, overwrite: bool = False) -> int:
        """Write the keys and values of `tokens` to a file, computing what the cache lacks; how many tokens it holds.

        `completion.prompt + completion.tokens` are those of an answer. ConfigError where the file exists or there are more
        tokens than the context takes, UnsupportedError for models with recurrent layers.
        """
        from qtransformers.generate import session

        self._check_generates()
        ids = prompt_ids(tokens, self._engine.n_tokens, "tokens")
        if not 0 < len(ids) <= self.context_length:
            raise ConfigError(f"tokens has {len(ids):,} ids; expected 1 to {self.context_length:,} (context_length).")
        if len(ids) < self.context_length:  # or there is no room for even one token more
            self.generate(ids, max_tokens=1, temperature=0)
        return session.save(self._engine, Path(path), ids, self._fingerprint, flag("overwrite", overwrite))

    def load_session(self, path: str | Path) -> tuple[int, ...]:
        """Bring a saved session back into the cache; its tokens. A prompt that begins with them goes on from there.

        LoadError for a file of another model, cache type or version of this library, or a damaged one.
        """
        from qtransformers.generate import session

        self._check_generates()
        return session.restore(self._engine, Path(path), self._fingerprint)

    @cached_property
    def _fingerprint(self) -> str:
        from qtransformers.generate.session import fingerprint

        assert self._gguf is not None  # the model is open
        return f"{fingerprint(self._gguf)}-{self.config.accuracy}"

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
        self._grammars.close()
        self._settle()
        if self._small is not None:
            self._small.settle()
            if self._small.sources.gguf is not None:
                self._small.sources.gguf.close()
            self._small = None
        if self._gguf is not None:
            self._gguf.close()
            self._gguf = None

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

    def _check_generates(self) -> None:
        self._check_open()
        if self._kind != "language":
            raise ConfigError(
                f"{self.plan.file} is an encoder ({self.plan.architecture}): it makes vectors of texts and generates none. Use embed(), or load a language model."
            )

    def _stream(
        self,
        ids: tuple[int, ...],
        continues: bool,  # a text, so that a blank in front of the answer is shown
        *,
        max_tokens: int | None = None,
        min_tokens: int = 0,
        stop: str | Sequence[str] | None = None,
        banned: str | Sequence[str] | None = None,
        max_repeats: int | None = None,
        heal: bool = False,
        decode_special: bool = False,
        logprobs: int | None = None,
        hooks: Sequence[Hook] = (),
        speculate: bool | Speculate | None = None,
        max_draft: int = MAX_DRAFT,
        json_schema: str | Mapping[str, Any] | bool | None = None,
        lora: Adapter | Sequence[Adapter | tuple[Adapter, float]] | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        sampling: Sampling | None = None,
        **fields: Any,
    ) -> Stream:
        from qtransformers.load.tokenizer.healing import take_back

        if logprobs is not None:
            whole("logprobs", logprobs, 0, MAX_LOGPROBS)
        if not isinstance(hooks, (list, tuple)) or not all(map(callable, hooks)):
            raise ConfigError(f"hooks={shown(hooks)}; expected a list of functions (tokens, logits) -> logits.")
        if sampling is not None and not isinstance(sampling, Sampling):
            raise ConfigError(f"sampling={shown(sampling)}; expected a Sampling.")
        adapters = self._adapters_of(lora)
        followed = self._grammar(json_schema, regex, grammar)
        if followed is not None and flag("heal", heal):
            raise ConfigError(
                "heal=True: a grammar speaks of the answer only, not of the end of the prompt. Leave one of them out."
            )
        stops, bans = texts("stop", stop), texts("banned", banned)
        ids, healing = take_back(ids, self.tokenizer) if flag("heal", heal) else (ids, None)
        skip = len(healing.text) if healing else 0
        decoder = self.tokenizer.decoder(
            flag("decode_special", decode_special), continues=continues or skip > 0 or followed is not None, skip=skip
        )
        sampling = (sampling or self.sampling).override(**fields)
        request = Request(
            prompt=ids,
            max_tokens=answer_limit(len(ids), max_tokens, self.context_length),
            min_tokens=min_tokens,
            sampling=sampling,
            stop=stops,
            banned=bans,
            max_repeats=max_repeats,
            healing=healing,
            logprobs=logprobs,
            hooks=tuple(hooks),
            speculate=self._speculates(speculate),
            max_draft=whole("max_draft", max_draft, 1, MAX_DRAFT),
            grammar=followed,
            adapters=adapters,
            salt=adapters or None,  # what lies in the cache depends on them
            # control tokens leave no text by which to find them
            stop_ids=self.eos_ids | self._control_ids(stops),
            banned_ids=self._control_ids(bans),
            breaks=self._breaks_of(sampling),
        )
        self._engine.check(request)
        return Stream(self._engine, Answer(request, decoder, self._engine.n_tokens))

    def load_lora(self, path: str | Path) -> Adapter:
        """A LoRA adapter for this model from a GGUF file or a PEFT directory, for `lora` of requests; weights stay as they are.

        ModelNotFoundError, UnsupportedError, or LoadError with every tensor that does not fit.
        """
        from qtransformers.load.adapters import load_adapter

        self._check_generates()
        return load_adapter(path, self._spec, self.hparams)

    def _adapters_of(
        self, given: Adapter | Sequence[Adapter | tuple[Adapter, float]] | None
    ) -> tuple[tuple[Adapter, float], ...]:
        if given is None:
            return ()
        from qtransformers.load.adapters import Adapter

        found = []
        for i, item in enumerate(given if isinstance(given, (list, tuple)) else [given]):
            adapter, scale = item if isinstance(item, tuple) and len(item) == 2 else (item, 1.0)
            if not isinstance(adapter, Adapter) or adapter.model is not self.hparams:
                raise ConfigError(f"lora[{i}]={shown(item)}; expected an adapter of this model's load_lora, or (adapter, scale).")  # fmt: skip
            found.append((adapter, real(f"lora[{i}][1]", scale, -1e4, 1e4)))
        return tuple(found)

    def _grammar(
        self, json_schema: str | Mapping[str, Any] | bool | None, regex: str | None, grammar: str | None
    ) -> Grammar | None:
        """What the answer must follow, compiled; ConfigError for one that is invalid, or for several."""
        given = {"json_schema": json_schema, "regex": regex, "grammar": grammar}
        names = [name for name, source in given.items() if source is not None]
        if len(names) > 1:
            raise ConfigError(f"{' and '.join(names)}: an answer can follow one of them. Leave the others out.")
        if not names:
            return None
        if grammar is not None:
            kind = grammar_kind(text("grammar", grammar))
            try:
                return self._grammars.compile(kind, grammar)
            except ConstraintError as e:
                raise ConstraintError(f"grammar: {e}") from None
        return (
            self._grammars.compile("regex", regex)
            if regex is not None
            else self._grammars.compile("json_schema", json_schema)
        )

    def _speculates(self, asked: bool | Speculate | None) -> Speculate | None:
        """Where guesses of tokens come from; ConfigError where there are none of these."""
        if (
            asked is not None
            and not isinstance(asked, bool)
            and not (isinstance(asked, str) and asked in get_args(Speculate))
        ):
            raise ConfigError(f"speculate={shown(asked)}; expected True, False, {', '.join(get_args(Speculate))}.")
        if asked and self._engine.speculation is None:
            raise ConfigError(
                f"speculate={shown(asked)}: the recurrent layers of {self.plan.file} ({self.plan.architecture}) keep one state and no way back "
                "from tokens that were guessed wrong. Leave it out."
            )
        if asked == "draft" and self._small is None:
            raise ConfigError(
                "speculate='draft', but the model was loaded without one. Load it with draft=, the path of a smaller model."
            )
        if isinstance(asked, str):
            return asked
        return None if asked is False else "auto"

    def _breaks_of(self, sampling: Sampling) -> Breaks | None:
        if not sampling.dry_multiplier:
            return None
        texts = sampling.dry_breakers
        found = self._breaks.get(texts) or breaks_of(texts, self.tokenizer)
        self._breaks = {texts: found}  # that of the last request
        return found

    def _control_ids(self, texts: tuple[str, ...]) -> frozenset[int]:
        return frozenset(i for i in map(self.tokenizer.id_of, texts) if i in self.tokenizer.special_ids)


def _warn(messages: Sequence[str]) -> None:
    for message in messages:
        warnings.warn(message, stacklevel=4)


def _forward(
    forward: Callable[..., Any], weights: Any, h: Any, batch: Any, cache: Any, adapters: Sequence[Any] = ()
) -> Any:
    """A forward in which some rows have adapters: (first row, end, updates, scale)."""
    return forward(adapted(weights, adapters, batch.output_rows) if adapters else weights, h, batch, cache)
