"""The public Model: load, generate, chat."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from qtransformers.checks import flag, shown, text, whole
from qtransformers.checks import path as checked
from qtransformers.errors import ConfigError, ContextLengthError
from qtransformers.generate import Completion, Stream
from qtransformers.generate.embed import check_pooling, embed, normalized
from qtransformers.generate.prepare import MAX_LOGPROBS
from qtransformers.generate.requests import prompt_ids, texts
from qtransformers.kernels.staging import Progress
from qtransformers.load.chat.formats import prompt_format as named_format
from qtransformers.load.start import doubts, encode_prompt
from qtransformers.model.loading import load_draft, load_model
from qtransformers.model.opened import OpenModel
from qtransformers.options import MAX_TOKENS, LoadOptions, ModelConfig, Options, PromptOptions
from qtransformers.sampling import Logprob, logprobs

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from qtransformers.generate.asynchronous import AsyncStream
    from qtransformers.load.adapters import Adapter

__all__ = ["Model", "ModelConfig"]


class Model(OpenModel):
    """A language model or an encoder: weights from a GGUF file, tokenizer and chat template from the file or a Hugging Face directory.

    Made by `load` or `from_pretrained`; `close()` or a `with` block frees it. Thread-safe: answers asked for side by side
    are computed together, `parallel` at a time, and share what their prompts have in common.
    """

    @classmethod
    def load(
        cls,
        gguf_path: str | Path | None = None,
        model_path: str | Path | None = None,
        *,
        progress: Progress | None = None,
        **options: Unpack[LoadOptions],
    ) -> Model:
        """Load the weights of `gguf_path` (a file, its first shard, or a folder); `options` are `ModelConfig`'s fields.

        `progress(bytes, bytes in all, GB/s until now)` hears of weights on their way to a GPU.

        `model_path`, a directory or Hub id, gives tokenizer, config, chat template and generation config where the
        GGUF's own should not serve; its weights are never read or downloaded. Errors name file, field and remedy:
        ConfigError, ModelNotFoundError, GGUFError, LoadError, UnsupportedError, TokenizerError, InsufficientMemoryError.
        """
        config = ModelConfig(gguf_path, model_path, **options)
        format = None if config.prompt_format is None else named_format(config.prompt_format)
        loaded = load_model(config, progress)
        return cls(loaded, config, format, load_draft(config, loaded))

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


def _warn(messages: Sequence[str]) -> None:
    for message in messages:
        warnings.warn(message, stacklevel=4)
