"""A small model that is asked what comes next, with a cache of its own that follows the sequences."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qtransformers.archs import spec_of
from qtransformers.cache import Batch, PagedCache
from qtransformers.errors import ConfigError, InsufficientMemoryError
from qtransformers.generate.costs import Costs
from qtransformers.generate.device import forward_of
from qtransformers.generate.pages import PagePool, Table
from qtransformers.generate.sequence import Sequence as Answer
from qtransformers.load import Loaded
from qtransformers.load.plan import LoadPlan

F32 = NDArray[np.float32]
LOOK_BACK = 64  # tokens that may have been taken back and replaced since it last looked


@dataclass
class Followed:
    """What the draft model's cache has of a sequence: `tokens`, the first `sure` of them not guessed."""

    table: Table
    tokens: list[int] = field(default_factory=list)
    sure: int = 0


class Draft:
    """The forward of a draft model. Guesses that turned out wrong are overwritten in its cache, as in the model's own."""

    def __init__(
        self,
        forward: Callable[[Batch, PagedCache], F32],
        cache: PagedCache,
        *,
        n_tokens: int,
        context_length: int,
        chunk: int,
    ) -> None:
        self.context_length = context_length
        self.costs = Costs()  # seconds by rows
        self._forward = forward
        self._cache = cache
        self._pages = PagePool(cache)
        self._n_tokens = n_tokens
        self._chunk = chunk
        self._followed: dict[Answer, Followed] = {}

    def lag(self, s: Answer) -> int:
        """Tokens of a sequence that are to be computed before it can be asked; at least 1."""
        return len(s.tokens) - self._catch_up(s).sure

    def follow(self, answers: Sequence[Answer]) -> dict[Answer, F32]:
        """Logits of what comes next in each; without those that are still behind, or have no pages."""
        self.let_go()
        left, parts = self._chunk, {}
        for s in answers:
            f = self._catch_up(s)
            tokens = s.tokens[f.sure : f.sure + left]
            if tokens and self._reserve(f, len(tokens)):
                parts[s] = tokens
                left -= len(tokens)
        return self._compute(
            parts, {s for s, tokens in parts.items() if self._followed[s].sure + len(tokens) == len(s.tokens)}
        )

    def let_go(self) -> None:
        """Free what is held for answers that have ended."""
        for s in [s for s in self._followed if s.ended]:
            gone = self._followed.pop(s)
            self._pages.release(gone.table, gone.tokens, gone.sure)

    @property
    def n_held(self) -> int:
        """Pages held for answers under way."""
        return self._pages.n_pages - self._pages.n_free

    def go_on(self, tokens: Mapping[Answer, int]) -> dict[Answer, F32]:
        """Logits of what comes after these guesses; without those that have no pages."""
        parts = {s: [token] for s, token in tokens.items() if self._reserve(self._followed[s], 1)}
        return self._compute(parts, set(parts))

    def _catch_up(self, s: Answer) -> Followed:
        """Forget what was guessed wrong or taken back, and take over what is known of a new sequence."""
        f = self._followed.get(s)
        if f is None:
            f = self._followed[s] = Followed(Table(s.request.salt))
            f.sure = self._pages.extend(f.table, s.tokens)
            f.tokens = s.tokens[: f.sure]
            return f
        limit = min(len(f.tokens), len(s.tokens) - 1)  # the logits of the last one are wanted
        n = max(0, min(limit, f.sure - LOOK_BACK))
        while n < limit and f.tokens[n] == s.tokens[n]:
            n += 1
        f.sure = self._pages.rewind(f.table, n)
        del f.tokens[f.sure :]
        self._pages.learn(f.table, f.tokens, f.sure)
        return f

    def _reserve(self, f: Followed, n: int) -> bool:
        try:
            self._pages.reserve(f.table, len(f.tokens) + n)
        except InsufficientMemoryError:
            return False
        return True

    def _compute(self, parts: Mapping[Answer, list[int]], asked: set[Answer]) -> dict[Answer, F32]:
        if not parts:
            return {}
        start = time.perf_counter()
        held = [(self._followed[s], tokens, s in asked) for s, tokens in parts.items()]
        batch = Batch.join(
            [Batch.single(tokens, len(f.tokens), f.table.numbers, outputs=int(wanted)) for f, tokens, wanted in held]
        )
        logits = np.asarray(self._forward(batch, self._cache))[:, : self._n_tokens]
        for (f, tokens, _), s in zip(held, parts, strict=True):
            f.tokens += tokens
            if len(f.tokens) <= len(s.tokens):
                f.sure = len(f.tokens)
        self.costs.learn(len(batch.tokens), time.perf_counter() - start)
        return dict(zip([s for s in parts if s in asked], logits, strict=True))


def draft_of(small: Loaded, model: Loaded, chunk: int) -> Draft:
    """A loaded model as the draft of another; ConfigError where it cannot be one."""
    check_kinds(small.plan, model.plan)
    t, own = small.tokenizer, model.tokenizer
    check_vocabulary(
        [own.token_text(i) for i in range(own.n_tokens)],
        [t.token_text(i) for i in range(t.n_tokens)],
        model.plan.file,
        small.plan.file,
    )
    return Draft(
        forward_of(small),
        small.new_cache(),
        n_tokens=min(t.n_tokens, small.hparams.vocab_size),
        context_length=min(small.plan.context_length, small.hparams.context_length),  # it was trained for no more
        chunk=chunk,
    )


def check_kinds(small: LoadPlan, model: LoadPlan) -> None:
    """ConfigError where a draft and its model are not both language models that can take tokens back."""
    for plan, remedy in ((model, "Leave draft out"), (small, "Take a language model")):
        if spec_of(plan.architecture, plan.file).kind != "language":
            raise ConfigError(f"draft: {plan.file} is an encoder ({plan.architecture}), which generates nothing. {remedy}.")  # fmt: skip
    for plan in (small, model):
        if plan.states_bytes:
            raise ConfigError(
                f"draft: the recurrent layers of {plan.file} ({plan.architecture}) keep one state and no way back from tokens "
                "that were guessed wrong. Leave draft out."
            )


def check_vocabulary(tokens: Sequence[str], draft: Sequence[str], file: str, draft_file: str) -> None:
    """ConfigError naming the first difference between the vocabularies of a model and its draft."""
    if list(tokens) == list(draft):
        return
    both = min(len(tokens), len(draft))
    i = next((i for i in range(both) if tokens[i] != draft[i]), both)
    own, other = (repr(v[i]) if i < len(v) else "none" for v in (tokens, draft))
    raise ConfigError(
        f"draft: token {i} is {other} in {draft_file}, {own} in {file}: guesses of another vocabulary mean nothing. "
        "Take a smaller model of the same family."
    )
