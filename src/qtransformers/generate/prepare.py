"""From what a caller says to a request: texts to ids, schemas to grammars, everything checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING, Any, get_args

from qtransformers.checks import flag, real, shown, text, whole
from qtransformers.constrain import Grammars
from qtransformers.constrain.matcher import Grammar
from qtransformers.constrain.sources import grammar_kind
from qtransformers.errors import ConfigError, ConstraintError
from qtransformers.generate.engine import Engine
from qtransformers.generate.requests import MAX_DRAFT, Hook, Request, Speculate, answer_limit, texts
from qtransformers.generate.sequence import Sequence
from qtransformers.sampling import Breaks, Sampling, breaks_of

if TYPE_CHECKING:
    from qtransformers.load import Loaded
    from qtransformers.load.adapters import Adapter

MAX_LOGPROBS = 1024


class Preparer:
    """Makes the requests of one model. It keeps compiled grammars."""

    def __init__(
        self, loaded: Loaded, engine: Engine, sampling: Sampling, eos_ids: Iterable[int], has_draft: bool
    ) -> None:
        self._engine = engine
        self._tokenizer = loaded.tokenizer
        self._hparams = loaded.hparams
        self._sampling = sampling
        self._eos_ids = frozenset(i for i in eos_ids if i < engine.n_tokens)  # padding is never drawn
        self._has_draft = has_draft
        self._file, self._architecture = loaded.plan.file, loaded.plan.architecture
        self._breaks: dict[tuple[str, ...], Breaks] = {}
        self._grammars = Grammars(loaded.tokenizer)

    def close(self) -> None:
        """End what compiles grammars and computes their masks."""
        self._grammars.close()

    def __call__(
        self,
        ids: tuple[int, ...],
        continues: bool,  # a text, so that a blank in front of the answer is shown
        *,
        max_tokens: int | None = None,
        min_tokens: int = 0,
        stop: str | Seq[str] | None = None,
        banned: str | Seq[str] | None = None,
        max_repeats: int | None = None,
        heal: bool = False,
        decode_special: bool | Seq[str] = False,
        logprobs: int | None = None,
        hooks: Seq[Hook] = (),
        speculate: bool | Speculate | None = None,
        max_draft: int = MAX_DRAFT,
        json_schema: str | Mapping[str, Any] | bool | None = None,
        lora: Adapter | Seq[Adapter | tuple[Adapter, float]] | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        salt: str | None = None,
        sampling: Sampling | None = None,
        **fields: Any,
    ) -> Sequence:
        """The request of a prompt, ready to be streamed; ConfigError names the field that cannot be honoured."""
        from qtransformers.load.tokenizer.healing import take_back

        if logprobs is not None:
            whole("logprobs", logprobs, 0, MAX_LOGPROBS)
        if not isinstance(hooks, (list, tuple)) or not all(map(callable, hooks)):
            raise ConfigError(f"hooks={shown(hooks)}; expected a list of functions (tokens, logits) -> logits.")
        if sampling is not None and not isinstance(sampling, Sampling):
            raise ConfigError(f"sampling={shown(sampling)}; expected a Sampling.")
        adapters = self._adapters_of(lora)
        if salt is not None:
            text("salt", salt)
        followed = self._grammar(json_schema, regex, grammar)
        if followed is not None and flag("heal", heal):
            raise ConfigError(
                "heal=True: a grammar speaks of the answer only, not of the end of the prompt. Leave one of them out."
            )
        stops, bans = texts("stop", stop), texts("banned", banned)
        ids, healing = take_back(ids, self._tokenizer) if flag("heal", heal) else (ids, None)
        skip = len(healing.text) if healing else 0
        some = isinstance(decode_special, (list, tuple))
        visible = texts("decode_special", decode_special) if some else flag("decode_special", decode_special)
        decoder = self._tokenizer.decoder(visible, continues=continues or skip > 0 or followed is not None, skip=skip)
        sampling = (sampling or self._sampling).override(**fields)
        request = Request(
            prompt=ids,
            max_tokens=answer_limit(len(ids), max_tokens, self._engine.context_length),
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
            # what lies in the cache depends on the adapters
            salt=(salt, adapters) if salt is not None or adapters else None,
            # control tokens leave no text by which to find them
            stop_ids=self._eos_ids | self._control_ids(stops),
            banned_ids=self._control_ids(bans),
            breaks=self._breaks_of(sampling),
        )
        self._engine.check(request)
        return Sequence(request, decoder, self._engine.n_tokens)

    def _adapters_of(
        self, given: Adapter | Seq[Adapter | tuple[Adapter, float]] | None
    ) -> tuple[tuple[Adapter, float], ...]:
        if given is None:
            return ()
        from qtransformers.load.adapters import Adapter

        found = []
        for i, item in enumerate(given if isinstance(given, (list, tuple)) else [given]):
            adapter, scale = item if isinstance(item, tuple) and len(item) == 2 else (item, 1.0)
            if not isinstance(adapter, Adapter) or adapter.model is not self._hparams:
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
                f"speculate={shown(asked)}: the recurrent layers of {self._file} ({self._architecture}) keep one state and no way back "
                "from tokens that were guessed wrong. Leave it out."
            )
        if asked == "draft" and not self._has_draft:
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
        found = self._breaks.get(texts) or breaks_of(texts, self._tokenizer)
        self._breaks = {texts: found}  # that of the last request
        return found

    def _control_ids(self, texts: tuple[str, ...]) -> frozenset[int]:
        return frozenset(i for i in map(self._tokenizer.id_of, texts) if i in self._tokenizer.special_ids)
