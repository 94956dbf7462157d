"""The models of a server: which there are, which are loaded, and who uses them."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qtransformers.checks import shown, text
from qtransformers.errors import ConfigError, InsufficientMemoryError, QTransformersError
from qtransformers.generate import Usage
from qtransformers.load.fit import Budget, fit
from qtransformers.load.hub import resolve_model
from qtransformers.load.survey import find_sources, judge, survey
from qtransformers.machine import memory, usable_cores
from qtransformers.model import Model
from qtransformers.serve.errors import HTTPError, http_error
from qtransformers.serve.metrics import Meters, Metrics
from qtransformers.serve.tools import Syntax, syntax_of
from qtransformers.settings import Settings

if TYPE_CHECKING:
    from qtransformers.load.adapters import Adapter
    from qtransformers.load.plan import LoadPlan

LOG = logging.getLogger("qtransformers.serve")
State = Literal["unloaded", "loading", "ready", "broken"]
NAME_CHARS = 200
FAILURES = 3  # in a row that mean that nothing works any more
RETRY = 30  # seconds after which it may be worth asking for a model again that could not be loaded
THREAD_BYTES = 4 << 20  # of weights, from which on another thread saves more than it takes from connections
SCORED = 64  # tokens of a prompt in one forward, where their log-probabilities are asked for


@dataclass(frozen=True)
class ModelSpec:
    """A model that may be asked for: MODEL as the command takes it, its names (the first is what answers say), how it is loaded."""

    reference: str
    names: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)  # of `Model.load`
    model_path: str | None = None
    loras: Mapping[str, str] = field(default_factory=dict)  # name -> GGUF file or PEFT folder
    tool_parser: str | None = None  # rows of serve.tools; None: as the chat template shows
    reasoning_parser: str | None = None

    def __post_init__(self) -> None:
        if not self.names:
            path = Path(self.reference)
            object.__setattr__(self, "names", (path.stem if path.suffix == ".gguf" else self.reference,))
        syntax_of("", tool_parser=self.tool_parser, reasoning_parser=self.reasoning_parser)  # their names are known
        for name in (*self.names, *self.loras):
            if not 0 < len(text("alias", name)) <= NAME_CHARS or not name.isprintable():
                raise ConfigError(f"alias={shown(name)}; expected 1 to {NAME_CHARS} printable characters.")

    @property
    def name(self) -> str:
        """What answers call it."""
        return self.names[0]


@dataclass(eq=False)
class Entry:
    """A model and how it is doing."""

    spec: ModelSpec
    created: int  # seconds since 1970
    meters: Meters
    state: State = "unloaded"
    model: Model | None = None
    adapters: dict[str, Adapter] = field(default_factory=dict)
    syntax: Syntax | None = None  # of its chats, once somebody has asked
    problem: str = ""  # why it is broken
    longest: int = 0  # bytes of a token; 0: not known yet
    folder: str = ""  # of its file, with the separator at its end
    failures: int = 0  # of the latest requests, one after the other, by a fault of ours
    answers: int = 0  # asked for and not yet given, waiting ones too
    users: int = 0  # requests that hold it
    used: float = 0.0  # when the last of them let go
    seconds: float = 1.0  # that answers take, of late
    scoring: asyncio.Lock = field(default_factory=asyncio.Lock)  # held while a prompt's tokens are scored

    @property
    def loaded(self) -> Model:
        """The model; it is only asked for while somebody holds it."""
        assert self.model is not None
        return self.model

    @property
    def health(self) -> State:
        """Its state, broken too where it is loaded and answers nothing."""
        lost = self.model is not None and self.model.problem
        return "broken" if lost or self.failures >= FAILURES else self.state

    def check_length(self, name: str, text: str) -> None:
        """HTTPError 400 for a text that the context cannot hold, by its bytes: encoding it would take long for nothing."""
        tokenizer = self.loaded.tokenizer
        self.longest = self.longest or max(len(tokenizer.token_bytes(i)) for i in range(tokenizer.n_tokens))
        n, most = len(text.encode("utf-8", "surrogatepass")), self.loaded.context_length * self.longest
        if n > most:
            raise HTTPError(400, f"{name} has {n:,} bytes; expected at most {most:,}: the context is {self.loaded.context_length:,} tokens of at most {self.longest} bytes. Shorten it. (The server's --ctx-size sets the context.)", "context_length_exceeded", field=name)  # fmt: skip

    def public(self, error: QTransformersError) -> HTTPError:
        """What a client is told of an error: files are named without their folder."""
        found = http_error(error)
        if self.folder:
            found.message = found.message.replace(self.folder, "")
        return found

    @property
    def usage(self) -> Usage | None:
        """What its engine does; None where it is not loaded."""
        try:
            return self.model.usage if self.model is not None else None
        except ConfigError:  # it is closed this very moment
            return None


class Models:
    """Loads models when they are asked for, and unloads them to make room or when nobody has asked for long.

    `keep_alive` is in seconds; None: for ever. Of one event loop. `may_be_none` where a server has others, which paint.
    """

    def __init__(
        self, specs: Iterable[ModelSpec], keep_alive: float | None = None, *, may_be_none: bool = False
    ) -> None:
        self.metrics = Metrics()
        self.entries = [Entry(spec, int(time.time()), self.metrics.of(spec.name)) for spec in specs]
        self.metrics.watch(self.entries)
        if not self.entries and not may_be_none:
            raise ConfigError("there is no model to serve. Name at least one.")
        self._by_name: dict[str, tuple[Entry, str | None]] = {}
        for entry in self.entries:
            for name in (*entry.spec.names, *entry.spec.loras):
                if name in self._by_name:
                    raise ConfigError(f"alias={shown(name)} names two models. Give one of them another (--alias).")
                self._by_name[name] = entry, name if name in entry.spec.loras else None
        self._keep_alive = keep_alive
        self._loading = asyncio.Lock()

    @property
    def names(self) -> dict[str, Entry]:
        """All names, those of adapters too."""
        return {name: entry for name, (entry, _) in self._by_name.items()}

    def find(self, name: str | None) -> tuple[Entry, str | None]:
        """The model of a name, and the adapter that the name means; HTTPError 404."""
        if not self.entries:
            raise HTTPError(404, f"model={shown(name, 100)}: no model of this server writes.", "model_not_found", field="model")  # fmt: skip
        if name is None or name == "":
            return self.entries[0], None
        found = self._by_name.get(name)
        if found is None:
            known = ", ".join(list(self._by_name)[:20])
            raise HTTPError(404, f"model={shown(name, 100)}: this server has {known}. Ask for one of these.", "model_not_found", field="model")  # fmt: skip
        return found

    @asynccontextmanager
    async def use(self, entry: Entry) -> AsyncIterator[Entry]:
        """A model, loaded, until the end of the block."""
        entry.users += 1
        try:
            if entry.state != "ready":
                await self._load_for_client(entry)
            yield entry
        finally:
            entry.users -= 1
            entry.used = time.monotonic()

    async def load(self, entry: Entry) -> None:
        """Load a model, after others were unloaded for it where they must; its errors are raised and kept."""
        async with self._loading:
            if entry.state == "ready":
                return
            entry.state, entry.longest = "loading", 0
            try:
                spec = await self._with_room(entry)
                loading = asyncio.get_running_loop().run_in_executor(None, _loaded, spec)
                try:
                    entry.model, entry.adapters = await asyncio.shield(loading)
                except asyncio.CancelledError:  # nobody waits for the thread
                    loading.add_done_callback(_forget)
                    raise
            except asyncio.CancelledError:  # whoever asked has gone
                entry.state = "unloaded"
                raise
            except Exception as e:
                entry.state, entry.problem = "broken", str(e)
                raise
            entry.state, entry.problem, entry.used = "ready", "", time.monotonic()

    async def _load_for_client(self, entry: Entry) -> None:
        """As `load`; what keeps it from loading is for the log, not for strangers, but for memory that others need now."""
        try:
            await self.load(entry)
        except InsufficientMemoryError:
            raise
        except Exception as e:
            LOG.error("%s: %s", entry.spec.name, e, exc_info=None if isinstance(e, QTransformersError) else e)
            raise HTTPError(503, f"model: {entry.spec.name} cannot be loaded; the server's log says why. Ask for another, or its operator.", "model_unavailable", field="model", retry=RETRY) from None  # fmt: skip

    async def unload(self, entry: Entry) -> None:
        """Free a model that nobody uses."""
        model, entry.model, entry.adapters = entry.model, None, {}
        if model is not None:
            entry.state = "unloaded"
            await asyncio.to_thread(model.close)

    async def close(self) -> None:
        """Free all of them."""
        for entry in self.entries:
            await self.unload(entry)

    async def expire(self, every: float = 1.0) -> None:
        """Unload what nobody has asked for in `keep_alive` seconds; for ever."""
        while self._keep_alive is not None:
            await asyncio.sleep(every)
            for entry in self.entries:
                if self._idle(entry) and time.monotonic() - entry.used >= self._keep_alive:
                    await self.unload(entry)

    def _idle(self, entry: Entry) -> bool:
        return entry.state == "ready" and not entry.users

    async def _with_room(self, entry: Entry) -> ModelSpec:
        """The spec with its file fetched; others are unloaded until the plan says that it fits, the longest unused first."""
        path, plan = await asyncio.to_thread(_planned, entry.spec)
        spec = with_threads(entry.spec, plan.weights_on("cpu"))
        entry.folder = f"{path.parent}{os.sep}" if path.parent.name else ""
        while others := [e for e in self.entries if e.model is not None]:
            budget = Budget.of(memory())
            if budget.ram is not None:  # what is mapped counts as free, but is wanted
                taken = sum(e.loaded.plan.weights_on("cpu") for e in others)
                budget = replace(budget, ram=max(0, budget.ram - taken))
            found = fit(plan, budget)
            if found.verdict != "does not fit":
                break
            idle = sorted((e for e in others if self._idle(e)), key=lambda e: e.used)
            if not idle:
                busy = ", ".join(e.spec.name for e in others)
                raise InsufficientMemoryError(
                    f"{plan.file} does not fit beside {busy}, which answers requests. Ask again when it has done so, or serve a "
                    "smaller quantisation or context (--ctx-size)."
                )
            await self.unload(idle[0])
        return replace(spec, reference=str(path))


def _planned(spec: ModelSpec) -> tuple[Path, LoadPlan]:
    """The file of a model, fetched where it must be, and what it will take."""
    path = resolve_model(spec.reference, check=judge)
    sources, _ = find_sources(str(path), spec.model_path)
    o = spec.options
    found = survey(sources, context_length=o.get("context_length"), cache=o.get("cache", "f16"))
    return path, found.plan


def with_threads(spec: ModelSpec, weights: int) -> ModelSpec:
    """The spec with as many threads as its weights keep busy, where nobody has said how many; `weights` in bytes."""
    if spec.options.get("threads") or Settings.from_env().threads:
        return spec
    own = min(usable_cores(), max(1, weights // THREAD_BYTES))
    return replace(spec, options={**spec.options, "threads": own})


def _loaded(spec: ModelSpec) -> tuple[Model, dict[str, Adapter]]:
    model = Model.load(spec.reference, spec.model_path, **{"logits_rows": SCORED, **spec.options})
    try:
        return model, {name: model.load_lora(path) for name, path in spec.loras.items()}
    except BaseException:
        model.close()
        raise


def _forget(loading: asyncio.Future[Any]) -> None:
    if not loading.cancelled() and loading.exception() is None:
        loading.result()[0].close()
