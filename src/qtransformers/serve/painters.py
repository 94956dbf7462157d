"""Diffusion models of a server: loaded when somebody asks for a picture, one picture at a time each."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtransformers.checks import shown
from qtransformers.errors import ConfigError, InsufficientMemoryError
from qtransformers.gguf import GGUFFile
from qtransformers.load.diffusion import is_diffusion
from qtransformers.load.diffusion_fit import Outlook, outlook
from qtransformers.machine import memory
from qtransformers.serve.errors import HTTPError

if TYPE_CHECKING:
    from qtransformers.diffusers.pipelines import Painted
    from qtransformers.serve.models import State

MAX_SIDE, MAX_STEPS, MAX_COUNT = 2048, 200, 4  # pixels, steps, pictures of one request
DEFAULT_STEPS = 50  # what most pipelines take where nobody says
PATCH, TEXT_TOKENS = 16 * 16, 512  # pixels of a token, and tokens of a prompt, as most models have them
COPIES = 3  # of its widest activations that a VAE holds at once while it decodes


@dataclass(frozen=True)
class PainterSpec:
    """A diffusion model that may be asked for: the GGUF file of its transformer, its names, the pipeline it belongs to."""

    path: str
    names: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(
        default_factory=dict
    )  # of `diffusers.load_pipeline`: base, device, offload, accuracy

    def __post_init__(self) -> None:
        if not self.names:
            object.__setattr__(self, "names", (Path(self.path).stem,))


class Stopped(Exception):
    """Whoever asked for the picture has gone."""


class Painter:
    """A pipeline and its thread: load, paint, close. Of one event loop."""

    def __init__(self, spec: PainterSpec, free: Callable[[], int | None] = lambda: memory().usable) -> None:
        self.spec, self._free = spec, free
        self.created = int(time.time())
        self.state: State = "unloaded"
        self.pipe: Any = None
        self.waiting = 0  # requests that paint or wait for their turn
        self.used = 0.0
        self.seconds = 5.0  # that a picture takes, of late
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="paint")

    @property
    def limits(self) -> dict[str, Any]:
        """What a request may ask for, and what it gets where it does not; sizes once the pipeline is loaded."""
        most = {"width": MAX_SIDE, "height": MAX_SIDE, "steps": MAX_STEPS}
        return {"steps": DEFAULT_STEPS, "max": most} | (
            dict.fromkeys(("width", "height"), _side(self.pipe)) if self.pipe else {}
        )

    async def paint(self, wish: Mapping[str, Any], progress: Callable[[int, int], None]) -> Painted:
        """Pictures, after those that were asked for before; `progress` gets (step, steps) on the event loop."""
        loop, gone = asyncio.get_running_loop(), threading.Event()

        def each(step: int, steps: int) -> None:
            if gone.is_set():
                raise Stopped
            loop.call_soon_threadsafe(progress, step, steps)

        self.waiting += 1
        started = time.monotonic()
        work = loop.run_in_executor(self._thread, self._paint, dict(wish), each, gone)
        try:
            painted = await asyncio.shield(work)
        except asyncio.CancelledError:
            gone.set()
            work.add_done_callback(lambda done: done.exception())  # it was told to end: nobody asks how it did
            raise
        finally:
            self.waiting -= 1
            self.used = time.monotonic()
        self.seconds = time.monotonic() - started
        return painted

    def _paint(self, wish: dict[str, Any], each: Callable[[int, int], None], gone: threading.Event) -> Painted:
        if gone.is_set():
            raise Stopped
        from qtransformers.diffusers.pipelines import Picture, paint

        picture = Picture(**wish)
        self._load()
        side = _side(self.pipe)
        pixels = picture.count * (picture.width or side) * (picture.height or side)
        need, free = peak_bytes(self.pipe, self._outlook(), pixels), self._room()
        if free is not None and need > free:
            raise InsufficientMemoryError(
                f"width, height: pictures of this size take about {need:,} bytes while they are painted; {free:,} are free. Ask for smaller ones, or fewer."
            )
        return paint(self.pipe, picture, each)

    def _outlook(self) -> Outlook:
        """What the header tells of the transformer."""
        return outlook(GGUFFile(self.spec.path))

    def _room(self) -> int | None:
        """Bytes that are free where pictures are painted."""
        if not str(self.spec.options.get("device", "cpu")).startswith("cuda"):
            return self._free()
        import torch

        return torch.cuda.mem_get_info(torch.device(self.spec.options["device"]))[0]

    def _load(self) -> None:
        if self.pipe is not None:
            return
        self.state = "loading"
        try:
            from qtransformers.diffusers import load_pipeline

            need, free = _stored(self.spec) + self._outlook().weights_bytes, self._free()
            if free is not None and need > free:
                raise InsufficientMemoryError(
                    f"{self.spec.path}: it and the pipeline of --base take {need:,} bytes; {free:,} are free. Serve a file of fewer bits a weight, or where there is more."
                )
            self.pipe = load_pipeline(self.spec.path, **self.spec.options)
        except BaseException:
            self.state = "broken"
            raise
        self.state = "ready"

    async def load(self) -> None:
        """Load the pipeline, if it is not loaded."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._load)

    def unload(self) -> None:
        """Let go of the pipeline."""
        self.pipe = None
        self.state = "unloaded"

    def close(self) -> None:
        """End the thread, once what it paints has ended."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self.unload()


class Painters:
    """All of them, by name. `keep_alive` seconds unused unload one; None: none."""

    def __init__(self, specs: Iterable[PainterSpec] = (), keep_alive: float | None = None) -> None:
        self.names: dict[str, Painter] = {}
        self.all = [Painter(spec) for spec in specs]
        for painter in self.all:
            for name in painter.spec.names:
                if name in self.names:
                    raise ConfigError(f"alias={shown(name)} names two models. Give one of them another (--alias).")
                self.names[name] = painter
        self._keep_alive = keep_alive

    def find(self, name: str | None) -> Painter:
        """The one of a name, or the first; HTTPError 404."""
        found = (self.all[0] if self.all else None) if not name else self.names.get(name)
        if found is None:
            known = (
                f"this server paints with {', '.join(self.names)}" if self.names else "no model of this server paints"
            )
            raise HTTPError(404, f"model={shown(name, 100)}: {known}.", "model_not_found", field="model")
        return found

    async def expire(self, every: float = 1.0) -> None:
        """Unload what nobody has asked for in `keep_alive` seconds; for ever."""
        while self._keep_alive is not None:
            await asyncio.sleep(every)
            for painter in self.all:
                if (
                    painter.state == "ready"
                    and not painter.waiting
                    and time.monotonic() - painter.used >= self._keep_alive
                ):
                    painter.unload()

    def close(self) -> None:
        """End all of them."""
        for painter in self.all:
            painter.close()


def paints(path: str) -> bool:
    """Whether a file is of a diffusion transformer."""
    return Path(path).suffix == ".gguf" and Path(path).is_file() and is_diffusion(GGUFFile(path))


def peak_bytes(pipe: Any, found: Outlook, pixels: int) -> int:
    """About what painting so many pixels takes: a step with guidance, or the VAE's widest activations at full size, in floats."""
    channels = getattr(getattr(getattr(pipe, "vae", None), "config", None), "block_out_channels", None) or (256,)
    step = found.temporaries(2 * (pixels // PATCH + TEXT_TOKENS))
    return max(step, pixels * 4 * COPIES * max(channels[:2]))


def _side(pipe: Any) -> int:
    """Pixels of a side where a request says nothing."""
    size = (
        getattr(pipe, "default_sample_size", None)
        or getattr(getattr(pipe, "transformer", pipe), "config", {}).get("sample_size")
        or 128
    )
    return int(size if isinstance(size, int) else size[0]) * int(getattr(pipe, "vae_scale_factor", 8))


def _stored(spec: PainterSpec) -> int:
    """Bytes of the weights beside the transformer's, where the pipeline lies in a folder."""
    base = Path(str(spec.options.get("base", "")))
    files = base.glob("*/*.safetensors") if base.is_dir() else ()
    return sum(f.stat().st_size for f in files if f.parent.name not in ("transformer", "unet"))
