"""What a model is loaded with, and what a request may say."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtransformers.cache.pages import check_codec
from qtransformers.checks import flag, shown, text, whole
from qtransformers.errors import ConfigError
from qtransformers.generate.requests import Hook, Speculate
from qtransformers.kernels.table import ACCURACY, check_accuracy
from qtransformers.load.placement import check_placement
from qtransformers.load.plan import LOGITS_ROWS, PARALLEL, PREFILL_CHUNK
from qtransformers.load.prepare import PrepareOptions
from qtransformers.load.rope import check_rope_base, check_rope_scaling
from qtransformers.sampling import Sampling, SamplingOptions
from qtransformers.settings import MAX_THREADS

if TYPE_CHECKING:
    from qtransformers.load.adapters import Adapter

MAX_TOKENS = 2**31 - 1
MAX_PARALLEL = 1024


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
    # `none`, or `linear`, `ntk` or `yarn` with a factor (yarn:4), in place of the file's
    rope_scaling: str | None = None
    deterministic: bool = False  # an answer does not depend on what is computed beside it, not even by rounding
    threads: int | None = None  # None: QTRANSFORMERS_THREADS, else every core this process may use
    draft: str | Path | None = None  # a smaller model of the same vocabulary, whose guesses this one confirms
    prompt_format: str | Path | None = None  # name or jinja file, instead of the model's chat template
    pre: str | None = None  # instead of the file's tokenizer.ggml.pre
    mlock: bool = False  # keep the weights in main memory until the model is closed
    preload: bool = False  # wait until all weights are in main memory
    # HOST:PORT/N: be the first of N processes that share the layers, and let the others join there
    stages: str | None = None

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
        if self.stages is not None:
            text("stages", self.stages)


class LoadOptions(PrepareOptions, total=False):
    """The fields of `ModelConfig` that every way of loading takes."""

    placement: str
    deterministic: bool
    draft: str | Path | None
    prompt_format: str | Path | None
    pre: str | None
    mlock: bool
    preload: bool
    stages: str | None


class Options(SamplingOptions, total=False):
    """What a request may say. What it leaves out comes from the model's generation config, else it is neutral."""

    max_tokens: int | None  # of the answer; None: until the context is full
    min_tokens: int  # of the answer, before it may end
    stop: str | Sequence[str] | None  # texts that end the answer and are no part of it
    banned: str | Sequence[str] | None  # texts that the answer does not hold: it goes back and takes another way
    max_repeats: int | None  # the answer ends where its last tokens are the same so many times in a row
    heal: bool  # let the first tokens of the answer complete the last of the prompt
    decode_special: bool | Sequence[str]  # show control tokens in the text: all, or those spelled so
    logprobs: int | None  # log-probabilities of the tokens by the model, and of so many of the likeliest each time
    hooks: Sequence[Hook]  # functions (tokens so far, logits) -> logits, called before sampling in their order
    speculate: bool | Speculate | None  # guess ahead by repeats in the text (`ngram`), a draft model (`draft`), or both
    max_draft: int  # tokens guessed ahead in one forward, at most
    json_schema: str | Mapping[str, Any] | bool | None  # the answer is JSON that follows it; True: any JSON value
    # of `load_lora`, each at a scale, 1 where none is given
    lora: Adapter | Sequence[Adapter | tuple[Adapter, float]] | None
    regex: str | None  # the answer as a whole matches it
    grammar: str | None  # the answer follows it: GBNF, or llguidance's Lark
    salt: str | None  # only requests of the same salt find each other's prompts in the cache
    sampling: Sampling | None  # in place of the model's; its fields may be given one by one, too


class PromptOptions(Options, total=False):
    """What a request whose prompt is text or token ids may say beside."""

    add_bos: bool | None
    encode_special: bool
