"""Answers that follow a grammar: JSON Schema, regular expressions, Lark, GBNF.

`Grammars` compiles for one vocabulary, each source once. A `Grammar` makes a `Matcher` for each request, which says at every step
what tokens may follow. Grammars decide on bytes: a token may end within a character, and a text may be cut into tokens in any
way. The work is llguidance's (https://github.com/guidance-ai/llguidance), imported with the first grammar.
"""

from __future__ import annotations

import json
import os
import re
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from qtransformers.checks import shown, text
from qtransformers.constrain import schema as schemas
from qtransformers.constrain.gbnf import to_lark
from qtransformers.errors import ConstraintError, UnsupportedError

if TYPE_CHECKING:
    import llguidance

    from qtransformers.load.tokenizer import Tokenizer

Kind = Literal["json", "json_schema", "regex", "lark", "gbnf"]
Source = str | Mapping[str, Any] | bool | None
Bools = NDArray[np.bool_]

JSON_KINDS = ("json", "json_schema")
MAX_CHARACTERS = {"json_schema": 2_000_000, "regex": 16_000, "lark": 50_000, "gbnf": 50_000}
COMPILER_STACK = 256 << 20  # bytes: llguidance recurses along chains of rules and references
MAX_KEPT = 64  # compiled grammars
MAX_WORKERS = 4  # threads that compute masks beside the forward
MAX_FORCED = 128  # tokens to look ahead
MAX_BRANCHES = 256  # tokens that may follow, for one of them to be a question of how the same text is cut
# What a model may write between the parts of a JSON value. Without a bound small models go on with blanks for ever.
WHITESPACE = r" |\r?\n[ \t]{0,40}"
# llguidance would also forbid tokens other than a tokenizer's own where a text is forced; `Matcher.forced` finds those instead.
OPTIONS = '\n%llguidance {"no_forcing": true}\n'


LARK_TOKENS = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/(?:\\.|[^/\\\n])+/')  # literals, comments, regular expressions


def grammar_kind(source: str) -> Kind:
    """Whether a grammar is GBNF, whose rules are `name ::= ...`, or Lark."""
    return "gbnf" if re.search(r"^[ \t]*[A-Za-z0-9_-]+[ \t]*::=", source, re.MULTILINE) else "lark"


class Grammars:
    """Grammars for one vocabulary. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._vocabulary: Vocabulary | None = None
        self._kept: OrderedDict[tuple[str, str], Grammar] = OrderedDict()
        self._closed = False
        self._lock = threading.Lock()

    def compile(self, kind: Kind, source: Source = None) -> Grammar:
        """The grammar of `source`, compiled once; the last ones are kept.

        kind: "json" for any JSON object (no source), "json_schema" (JSON text or Python values), "regex" (the answer as a
        whole matches), "lark" (llguidance's dialect), "gbnf" (llama.cpp's).
        ConstraintError naming the place in a source that is invalid or too costly, or of which no text can be written;
        UnsupportedError without llguidance. A warning for keywords of a schema that constrain nothing.
        """
        if not isinstance(kind, str) or kind not in get_args(Kind):
            raise ConstraintError(f"grammar: kind={shown(kind)}; expected {', '.join(map(repr, get_args(Kind)))}.")
        source = _source_text(kind, source)
        with self._lock:
            found = self._kept.get((kind, source))
            if found is None and self._closed:
                raise ConstraintError("grammar: these grammars were closed. Load the model again.")
            if self._vocabulary is not None and self._vocabulary.process != os.getpid():  # a fork has no threads
                self._vocabulary, found = None, None
                self._kept.clear()
            if found is None and self._vocabulary is None:
                self._vocabulary = Vocabulary(self._tokenizer)
        if found is None or found.broken:
            assert self._vocabulary is not None
            found = self._vocabulary.compiler.submit(_compiled, kind, source, self._vocabulary).result()
            for message in found.warnings:
                warnings.warn(f"{message}.", stacklevel=2)
        with self._lock:
            self._kept[kind, source] = found
            self._kept.move_to_end((kind, source))
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return found

    def close(self) -> None:
        """End the threads: nothing can be compiled then, and matchers in use compute in the threads of their callers."""
        with self._lock:
            self._closed = True
            if self._vocabulary is not None:
                self._vocabulary.workers.shutdown(wait=False)
                self._vocabulary.compiler.shutdown(wait=False)


class Vocabulary:
    """A tokenizer as llguidance wants it, and the threads that work with it."""

    is_tokenizer_wrapper = True  # how llguidance knows what it is given

    def __init__(self, tokenizer: Tokenizer) -> None:
        llguidance = _llguidance()
        self._tokenizer = tokenizer
        self.n_tokens = tokenizer.n_tokens
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.n_tokens)]
        self.eos_ids = tokenizer.eos_ids
        self.eos_token_id = min(tokenizer.eos_ids, default=None)
        self.bos_token_id = tokenizer.bos_id
        self.special = tokenizer.special_ids | tokenizer.unused_ids | tokenizer.eos_ids
        self.special_token_ids = sorted(self.special)
        # It keeps what it is given, and Python cannot look into it: given this itself, neither would ever be freed.
        self.native = llguidance.LLTokenizer(copy(self), eos_token=sorted(tokenizer.eos_ids) or None)
        self.process = os.getpid()
        self.workers = ThreadPoolExecutor(MAX_WORKERS, thread_name_prefix="grammar")
        self.compiler = ThreadPoolExecutor(1, thread_name_prefix="grammar-compiler")
        usual = threading.stack_size(COMPILER_STACK)
        try:
            self.compiler.submit(int).result()  # its thread begins here
        finally:
            threading.stack_size(usual)

    def __call__(self, s: str) -> list[int]:
        """The tokens of a text that goes on after another: without what a tokenizer puts before a first word."""
        data = s.encode()
        for before in ("", "\n", "\x02"):
            ids = self._tokenizer.encode(before + s, add_bos=False)
            ends = np.cumsum([0, *(len(self.tokens[i]) for i in ids)])
            cut = np.flatnonzero(ends == ends[-1] - len(data))
            if len(cut) and b"".join(self.tokens[i] for i in ids[cut[-1] :]) == data:
                return ids[cut[-1] :]
        return []


class Grammar:
    """A compiled grammar, shared by the requests that use it. `broken` where one of them exceeded its limits."""

    def __init__(
        self, kind: Kind, start: llguidance.LLMatcher, vocabulary: Vocabulary, warnings: Sequence[str] = ()
    ) -> None:
        self.kind = kind
        self.vocabulary = vocabulary
        self.warnings = tuple(warnings)  # what of the source constrains nothing
        self.broken = False  # states are shared too: what is too much for one matcher is for the others
        self.empty = False  # it allows the empty text and no other
        self._start = start

    def matcher(self) -> Matcher:
        """A matcher at the beginning of an answer."""
        return Matcher(self, self._start.deep_copy())


class Matcher:
    """How far one answer has come in its grammar. For one thread at a time."""

    def __init__(self, grammar: Grammar, state: llguidance.LLMatcher) -> None:
        self._grammar = grammar
        self._vocabulary = grammar.vocabulary
        self._state = state
        self._tokens: list[int] = []
        self._ended = False  # by EOS, which the state is not told
        self._mask: Bools | None = None
        self._coming: Future[Bools] | None = None

    @property
    def complete(self) -> bool:
        """Whether the answer may end here: exactly then EOS is allowed."""
        self._settle()
        return self._ended or self._state.is_accepting()

    @property
    def finished(self) -> bool:
        """Whether the answer is complete and nothing but EOS can follow."""
        return self.complete and (self._ended or self._state.is_stopped() or (not self._tokens and self._grammar.empty))

    @property
    def ready(self) -> bool:
        """Whether it is known what may follow, so that nothing has to wait."""
        return self._mask is not None or (self._coming is not None and self._coming.done())

    def prepare(self) -> None:
        """Begin to compute, in another thread, what may follow; everything else waits for it."""
        if self._mask is None and self._coming is None:
            try:
                self._coming = self._vocabulary.workers.submit(self._compute)
            except RuntimeError:  # the threads have ended: `allowed` computes it
                self._coming = None

    def allowed(self) -> Bools:
        """Whether each token `[n_tokens]` may follow; EOS tokens exactly where the answer is complete.

        ConstraintError where none may: the grammar leads nowhere with this vocabulary, or exceeds llguidance's limits.
        """
        self._settle()
        if self._mask is None:
            self._mask = self._compute()
        return self._mask

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Forbid in `logits [n_tokens]` what may not follow: -inf, in place.

        ConstraintError as of `allowed`, and where other settings forbid all that may follow.
        """
        mask = self.allowed()
        np.copyto(logits[: len(mask)], -np.inf, where=~mask)
        logits[len(mask) :] = -np.inf
        if logits.max() == -np.inf:
            raise ConstraintError(
                "grammar: other settings (logit_bias, banned tokens, a hook) forbid every token that may follow. Loosen one."
            )

    def accept(self, token: int) -> None:
        """Go on by one token; ConstraintError, and no change, for one that may not follow."""
        self._settle()
        if token in self._vocabulary.eos_ids and self.complete and not self._ended:
            self._ended = True
        elif self._ended or not self._in_range(token) or not self._state.try_consume_tokens([token]):
            self._check(self._state)
            raise ConstraintError(f"grammar: token {token} may not follow here.")
        self._tokens.append(token)
        self._mask = None

    def rollback(self, n: int) -> None:
        """Take the last `n` tokens back; ConstraintError for more than were accepted."""
        self._settle()
        if not 0 <= n <= len(self._tokens):
            raise ConstraintError(f"grammar: rollback of {n} tokens, but {len(self._tokens)} were accepted.")
        if n > self._ended and not self._state.rollback(n - self._ended):
            self._check(self._state)
        if n:
            del self._tokens[-n:]
            self._ended, self._mask = False, None

    def valid_prefix(self, tokens: Sequence[int]) -> int:
        """How many of `tokens`, a draft of what comes, may follow one after the other. Nothing is accepted."""
        self._settle()
        if self._ended:
            return 0
        eos = self._vocabulary.eos_ids
        n = next((i for i, t in enumerate(tokens) if t in eos or not self._in_range(t)), len(tokens))
        head = [int(t) for t in tokens[:n]]
        valid: int = self._state.validate_tokens(head) if head else 0
        self._check(self._state)
        if valid == n < len(tokens) and tokens[n] in eos:
            after = self._state.deep_copy()
            valid += (not head or after.try_consume_tokens(head) == n) and after.is_accepting()
        return valid

    def forced(self) -> list[int]:
        """The tokens that follow in any case, cut as the tokenizer cuts, so that none need be drawn; often none.

        A last token that could turn out longer is left out. Nothing is accepted.
        """
        if self._ended or self.finished:
            return []
        pieces, no_text = self._vocabulary.tokens, self._vocabulary.special
        ahead, mask = self._state.deep_copy(), self.allowed()
        found = b""
        for _ in range(MAX_FORCED):
            ids = np.flatnonzero(mask).tolist() if np.count_nonzero(mask) <= MAX_BRANCHES else []
            if not ids or not no_text.isdisjoint(ids):
                break
            common = _common_start([pieces[i] for i in ids])
            step = max((i for i in ids if common.startswith(pieces[i])), key=lambda i: len(pieces[i]), default=None)
            if not common or step is None or not ahead.try_consume_tokens([step]):
                break
            found += pieces[step]
            if ahead.is_stopped():
                break
            try:
                mask = self._bits(ahead)
            except ConstraintError:  # further than the limits reach
                break
        return self._cut(found)

    def copy(self) -> Matcher:
        """Another matcher that has come as far."""
        self._settle()
        other = Matcher(self._grammar, self._state.deep_copy())
        other._tokens, other._ended, other._mask = [*self._tokens], self._ended, self._mask
        return other

    def _cut(self, found: bytes) -> list[int]:
        """Text that is forced as the tokens that a tokenizer makes of it, whatever comes after."""
        if not found:
            return []
        ids, _ = self._vocabulary.native.tokenize_partial(found, recent_tokens=self._tokens[-1:])
        return ids[: self._state.validate_tokens(ids)] if ids else []

    def _compute(self) -> Bools:
        if self._ended:
            mask = np.zeros(self._vocabulary.n_tokens, np.bool_)
            mask[list(self._vocabulary.eos_ids)] = True
            return mask
        return self._bits(self._state)

    def _bits(self, state: llguidance.LLMatcher) -> Bools:
        bits = np.frombuffer(state.compute_bitmask(), np.uint8)
        self._check(state)
        mask: Bools = np.unpackbits(bits, count=self._vocabulary.n_tokens, bitorder="little").view(np.bool_)
        return mask

    def _settle(self) -> None:
        """Wait for the other thread: llguidance lets only one at a matcher."""
        if self._coming is not None:
            coming, self._coming = self._coming, None
            self._mask = coming.result()

    def _check(self, state: llguidance.LLMatcher) -> None:
        if state.is_error():
            self._grammar.broken = True
            raise ConstraintError(f"grammar: {_summary(state.get_error())}.")

    def _in_range(self, token: int) -> bool:
        return 0 <= token < self._vocabulary.n_tokens


def _common_start(texts: Sequence[bytes]) -> bytes:
    first, last = min(texts), max(texts)  # what these two share, all share
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def _compiled(kind: Kind, source: str, vocabulary: Vocabulary) -> Grammar:
    schema = schemas.read(source) if kind in JSON_KINDS else None
    lark = _lark(kind, source, schema)
    state = _llguidance().LLMatcher(vocabulary.native, lark, log_level=0, limits=_limits())
    if state.is_error():
        raise ConstraintError(_located(kind, state.get_error(), schema))
    unknown = schemas.unknown_keywords(schema) if schema is not None else []
    grammar = Grammar(kind, state, vocabulary, [*unknown, *state.get_grammar_warnings()])
    try:
        mask = grammar.matcher().allowed()
        grammar.empty = vocabulary.eos_ids.issuperset(np.flatnonzero(mask).tolist())
    except ConstraintError as e:
        raise ConstraintError(f"{kind}: nothing can be written that follows this grammar ({e})") from None
    return grammar


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as e:
        raise UnsupportedError(f"grammars need the package llguidance ({e}): pip install llguidance") from None
    return llguidance


def _limits() -> llguidance.LLParserLimits:
    return _llguidance().LLParserLimits(verbose_errors=False)


def _source_text(kind: Kind, source: Source) -> str:
    if kind == "json":
        if source is not None:
            raise ConstraintError(
                f"grammar: kind 'json' takes no source; found {shown(source)}. For a schema use kind 'json_schema'."
            )
        return '{"type": "object"}'
    if kind == "json_schema" and isinstance(source, (Mapping, bool)):
        try:
            return json.dumps(schemas.read(source))
        except TypeError as e:
            raise ConstraintError(f"json_schema: {e}.") from None
    found = text(kind, source)
    n = len(found) if kind != "lark" or len(found) <= MAX_CHARACTERS[kind] else _length_without_json(found)
    if n > MAX_CHARACTERS[kind]:
        raise ConstraintError(f"{kind} has {n:,} characters; expected at most {MAX_CHARACTERS[kind]:,}.")
    return found


def _length_without_json(source: str) -> int:
    """Characters of a Lark grammar without its JSON schemas, for which their own bounds hold."""
    n, end = len(source), 0
    if n > MAX_CHARACTERS["json_schema"]:
        return n
    for start in re.finditer(r"%json\s+", source):
        if start.end() < end:
            continue  # within a schema
        try:
            schema, end = json.JSONDecoder().raw_decode(source, start.end())
        except (ValueError, RecursionError):
            return n
        schemas.read(schema)
        n -= end - start.end()
    return n


def _lark(kind: Kind, source: str, schema: schemas.Schema | None) -> str:
    if schema is not None:
        return _json_lark(schema)
    if kind == "regex":
        return f"start: /{_llguidance().regex_to_lark(source, '')}/{OPTIONS}"
    if kind == "gbnf":
        return to_lark(source) + OPTIONS
    for match in LARK_TOKENS.finditer(source):
        if len(match[0]) > MAX_CHARACTERS["regex"] and match[0][:2] not in ("//", '"'):
            line = source.count("\n", 0, match.start()) + 1
            raise ConstraintError(
                f"lark, line {line}: a regular expression of {len(match[0]):,} characters; at most {MAX_CHARACTERS['regex']:,} are possible."
            )
    return source + OPTIONS


def json_in_lark(schema: schemas.Schema) -> str:
    """A JSON schema as part of a Lark grammar; ConstraintError where it is none, or beyond the limits."""
    return _json_rule(schemas.lean(schemas.read(schema)))


def _json_lark(schema: schemas.Schema) -> str:
    return f"start: {_json_rule(schema)}{OPTIONS}"


def _json_rule(schema: schemas.Schema) -> str:
    if isinstance(schema, Mapping):
        given = schema.get("x-guidance", {})
        if not isinstance(given, Mapping):
            raise ConstraintError(f"json_schema /x-guidance: {shown(given)}; expected a JSON object.")
        own = {} if {"whitespace_flexible", "whitespace_pattern"} & given.keys() else {"whitespace_pattern": WHITESPACE}
        schema = {**schema, "x-guidance": {**own, **given}}
    return f"%json {json.dumps(schema)}"


def _located(kind: Kind, message: str, schema: schemas.Schema | None) -> str:
    """llguidance's message, with the place in the user's source."""
    found = _summary(message, kind)
    if schema is None:
        return f"{kind}: {found}."

    def problem(part: schemas.Schema) -> str:
        return _summary(_llguidance().LLMatcher.validate_grammar(_json_lark(part), None, limits=_limits()), kind)

    return f"{kind} {schemas.place_of(schema, found, problem)}: {found}."


def _summary(message: str, kind: str = "") -> str:
    """A message of llguidance without the dump of its state, and without places in text that the user did not write."""
    message = re.split(r"\n<|\n\s+\d+ \| ", message, maxsplit=1)[0].strip()
    if kind != "lark":
        made = r"(?:at )?\d+\(\d+\): (?:failed to compile JSON schema: |invalid regex .*? \(in regex\): )?"
        message = re.sub("^" + made, "", message, flags=re.DOTALL)
    if message.startswith("panic:"):
        return "too complex for llguidance (" + message.removeprefix("panic:").strip() + ")"
    return "no token may follow" if message == "NoExtensionBias" else message.rstrip(".")
