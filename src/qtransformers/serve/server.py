"""What all requests to a server share: models, limits, threads."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from qtransformers.checks import shown
from qtransformers.errors import ConfigError, QTransformersError
from qtransformers.load.plan import PARALLEL
from qtransformers.serve.errors import HTTPError, http_error
from qtransformers.serve.guard import Rates
from qtransformers.serve.models import Entry, Models
from qtransformers.serve.painters import Painter, Painters
from qtransformers.serve.preparing import Preparing

if TYPE_CHECKING:
    from qtransformers.serve.call import Call
    from qtransformers.serve.config import ServerConfig

T = TypeVar("T")
RECENT = 0.2  # share of the latest answer in how long answers take


class Server:
    """Lets requests in, gives them their model, and takes what computes off the event loop."""

    def __init__(self, models: Models, config: ServerConfig, painters: Painters | None = None) -> None:
        self.models, self.config, self.painters = models, config, painters or Painters()
        if twice := sorted(models.names.keys() & self.painters.names.keys()):
            raise ConfigError(f"alias={shown(twice[0])} names two models. Give one of them another (--alias).")
        self.draining = False
        self.give_up: Callable[[Exception], None] = lambda error: None  # called where the first model cannot be loaded
        self._rates = Rates(config.per_key, config.rate)
        self._preparing = Preparing()

    @asynccontextmanager
    async def answering(self, call: Call, model: str | None, n: int = 1, prompts: int = 1) -> AsyncIterator[Entry]:
        """The model for `n` answers to each prompt of a request; HTTPError where there are too many already."""
        most = self.config.max_choices
        if not 1 <= n <= most:
            raise HTTPError(400, f"n: {n:,} answers are asked for at once; expected 1 to {most} (--max-choices).", "invalid_value", field="n")  # fmt: skip
        if n * prompts > most:
            raise HTTPError(400, f"prompt: {prompts:,} prompts with n={n} ask for {n * prompts:,} answers at once; expected at most {most} (--max-choices). Send fewer.", "invalid_value", field="prompt")  # fmt: skip
        n *= prompts
        if self.draining:
            raise HTTPError(503, "the server is about to end. Ask another, or again later.", "draining", retry=10)
        entry, adapter = self.models.find(model)
        call.told |= {"model": entry.spec.name} | ({"lora": adapter} if adapter else {})
        call.adapter = adapter
        self._rates.enter(call.key)
        try:
            parallel = entry.spec.options.get("parallel", PARALLEL)
            if entry.answers + n > parallel + self.config.queue:
                wait = entry.seconds * (entry.answers / parallel)
                raise HTTPError(503, f"{entry.answers} answers are under way or wait; the server takes {parallel} (--parallel) and {self.config.queue} that wait (--queue). Ask again.", "overloaded", retry=min(60, wait))  # fmt: skip
            entry.answers += n
            start = time.monotonic()
            try:
                async with self.models.use(entry):
                    yield entry
                entry.failures = 0
            except Exception as e:
                entry.failures += http_error(e).status == 500
                if isinstance(e, QTransformersError):
                    raise entry.public(e) from e
                raise
            finally:
                entry.answers -= n
                entry.seconds += RECENT * (time.monotonic() - start - entry.seconds)
        finally:
            self._rates.leave(call.key)

    @asynccontextmanager
    async def painting(self, call: Call, model: str | None) -> AsyncIterator[Painter]:
        """The diffusion model for a request; HTTPError where too many wait for it."""
        if self.draining:
            raise HTTPError(503, "the server is about to end. Ask another, or again later.", "draining", retry=10)
        painter = self.painters.find(model)
        call.told["model"] = painter.spec.names[0]
        self._rates.enter(call.key)
        try:
            if painter.waiting > self.config.queue:
                raise HTTPError(503, f"{painter.waiting} requests paint or wait; the server takes one and {self.config.queue} that wait (--queue). Ask again.", "overloaded", retry=min(60, painter.seconds))  # fmt: skip
            yield painter
        finally:
            self._rates.leave(call.key)

    async def off_loop(self, call: Call, function: Callable[..., T], *args: Any) -> T:
        """What `function` returns, computed in a thread that the request waits for in turns with those of other clients."""
        return await self._preparing.run(call.client, call.size, function, *args)

    async def close(self) -> None:
        """Free the models and end the threads."""
        await self.models.close()
        self.painters.close()
        self._preparing.close()
