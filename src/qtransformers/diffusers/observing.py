"""What comes to the layers of a diffusion model: the original runs in floats, on what a caller gives or from noise, and rows are kept.

Rows lie in a temporary file, which the system reads as they are asked for; layers that are called with one tensor share theirs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qtransformers.convert.diffusion import Model
from qtransformers.convert.sources import Lying
from qtransformers.diffusers.loading import build, fill
from qtransformers.diffusers.noise import Call, noise_calls
from qtransformers.errors import ConfigError, ModelNotFoundError, UnsupportedError
from qtransformers.load.checkpoint import Stored, open_file
from qtransformers.load.diffusion import DiffusionPlan

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Progress = Callable[[int, int], None]
PULL = 16  # layers that see the time alone see a row a call, which says little of single columns
ROWS = 2048  # of inputs that are kept of each layer, of all calls alike


@dataclass(eq=False)
class Seen:
    """What has come to a layer: the mean of squares of each column, and some rows."""

    squares: F64
    n: int = 0
    rows: list[F32] = field(default_factory=list)

    def sample(self, most: int = ROWS) -> F32:
        """At most so many rows `[n, in]`, of all calls alike."""
        step = max(1, -(-sum(map(len, self.rows)) // most))
        return np.concatenate(self.rows)[::step]

    def mean(self) -> F64:
        """The mean of squares of each column `[in]`, over all that came and `PULL` rows more in which columns are alike."""
        return (self.squares + PULL * self.squares.mean() / max(1, self.n)) / (self.n + PULL)

    def product(self, columns: F32 | None = None) -> F64:
        """The mean of x x^T `[in, in]`, of inputs over `columns` where there are some.

        Few rows know the sizes of many columns better than how these go together: what lies beside the diagonal shrinks as an
        oracle of normal rows would have it (Chen et al. 2010, arXiv:0907.4698), and the diagonal is that of all rows.
        """
        x, size = self.sample().astype(np.float64), np.sqrt(self.mean())
        n, width = x.shape
        own = np.sqrt(np.square(x).mean(0))
        x /= np.where(own > 0, own, 1)  # so that no loud column decides how much is believed
        h = x.T @ x / n
        power, trace = float(np.einsum("ij,ij->", h, h)), float(np.trace(h))
        spread = (n + 1 - 2 / width) * (power - trace**2 / width)
        shrink = min(1.0, ((1 - 2 / width) * power + trace**2) / spread) if spread > 0 else 1.0
        size = size if columns is None else size / columns
        h *= (1 - shrink) * np.outer(size, size)
        np.fill_diagonal(h, np.square(size))
        return h


@dataclass(eq=False)
class Observed:
    """A model that was run in floats, with what it was called with and what came to its layers, by their names."""

    live: Any
    calls: list[Call]
    seen: dict[str, Seen]


def read_call(path: Path) -> dict[str, torch.Tensor]:
    """Keyword arguments of a forward from a safetensors file, its tensors called as they are.

    ModelNotFoundError where there is none; LoadError where it is damaged; UnsupportedError for what holds no numbers.
    """
    if not path.is_file():
        raise ModelNotFoundError(f"{path}: no such file; expected what the model's forward is called with, in .safetensors.")  # fmt: skip
    return {name: _argument(tensor) for name, tensor in open_file(path).items()}


def _argument(stored: Stored) -> torch.Tensor:
    if stored.dtype == "BOOL":
        return torch.tensor(stored.view()).bool()
    if stored.dtype[0] in "IU":
        return torch.tensor(stored.view())
    return torch.tensor(Lying(stored).rows(slice(None)).reshape(stored.shape))


@contextmanager
def observed(model: Model, calls: Iterable[Call] | None, progress: Progress) -> Iterator[Observed]:
    """The original run on `calls`, or on noise where they are None; rows are there within the context.

    ConfigError for calls that do not fit the model; UnsupportedError for an architecture whose inputs are not known, where none
    are given, and where what comes to a layer is not finite.
    """
    live = floating(model)
    given = list(calls) if calls is not None else None
    with tempfile.TemporaryFile() as file:
        found = Observed(live, given or [], {})
        expected = len(given) if given else 0
        with _listening(live, found.seen, file, expected), torch.no_grad():
            if given is None:
                found.calls = noise_calls(live, model.spec, progress)
            for i, call in enumerate(given or ()):
                _called(live, call, f"call {i + 1} of {len(found.calls)}")
                progress(i + 1, len(found.calls))
        if loud := next((name for name, one in found.seen.items() if not np.isfinite(one.squares).all()), None):
            raise UnsupportedError(f"{model.spec.title}: what comes to {loud} is not finite, and nothing can be learned from it. The weights are damaged, or a call (-f) holds such values: fetch the model again, or leave that call out.")  # fmt: skip
        yield found


def _called(live: Any, call: Call, which: str) -> None:
    try:
        live(**call, return_dict=False)
    except Exception as e:  # whatever a class says to arguments that are not its own
        given = ", ".join(f"{k} {list(v.shape)}" if isinstance(v, torch.Tensor) else k for k, v in call.items())
        raise ConfigError(f"{which} does not fit {type(live).__name__}.forward ({type(e).__name__}: {e}). It has {given or 'no arguments'}: pass what a pipeline calls the model with.") from e  # fmt: skip


def floating(model: Model) -> Any:
    """The model of diffusers with its original weights, in floats."""
    plan = DiffusionPlan("the original", model.spec, model.layout, model.config, model.extra, model.parts)
    live = build(plan)
    fill(live, plan, torch.float32, "exact")
    live.requires_grad_(False)
    return live.eval()


@contextmanager
def _listening(live: Any, seen: dict[str, Seen], file: Any, n_calls: int) -> Iterator[None]:
    last: list[tuple[Any, F32]] = []  # what the layer before was called with: queries, keys and values share it
    each = max(1, ROWS // (n_calls or 8))

    def kept(x: torch.Tensor, flat: F32) -> F32:
        if last and last[0][0] is x:
            return last[0][1]
        some = flat[:: max(1, -(-len(flat) // each))]
        start = file.seek(0, 2)
        file.write(np.ascontiguousarray(some).data)
        file.flush()
        lying: F32 = np.memmap(file, np.float32, "r", start, some.shape)
        last[:] = [(x, lying)]
        return lying

    def heard(name: str) -> Callable[..., None]:
        def hook(module: Any, args: tuple[Any, ...]) -> None:
            if not args or args[0].shape[-1] != module.in_features or not args[0].numel():
                return
            x = args[0].detach().reshape(-1, module.in_features).float().numpy()
            one = seen.setdefault(name, Seen(np.zeros(x.shape[1])))
            one.squares += np.square(x, dtype=np.float64).sum(0)
            one.n += len(x)
            one.rows.append(kept(args[0], x))

        return hook

    handles = [m.register_forward_pre_hook(heard(n)) for n, m in live.named_modules() if hasattr(m, "in_features")]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
