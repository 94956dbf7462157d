"""Operations on what may lie anywhere: a weight or a cache in main memory, or on another GPU than the activations.

They run where the weight is: there go the activations, and back comes the result. So a model needs to know nothing of it, but
where it says what may be computed `beside` an operation: that runs on the activations' device meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from qtransformers.kernels import cpu
from qtransformers.kernels.triton.device import current
from qtransformers.kernels.triton.graphs import RECORDING, mapped, mark, pinned_like

Tensor = torch.Tensor
Beside = Callable[[], Any]


def placed(name: str, kernel: Callable[[], Callable[..., Any]], which: int) -> Callable[..., Any]:
    """The operation `name` where its argument number `which` lies, a weight or several; `kernel()` is the GPU's.

    With `beside`, what that gives is added to the result.
    """

    def run(*args: Any, beside: Beside | None = None) -> Any:
        w, device = args[which], args[0].device
        there = home(w[0] if isinstance(w, (list, tuple)) else w)
        if there is None:
            found, more = on_host(getattr(cpu, name), device, args, beside)
        elif there == device:
            found, more = kernel()(*args), beside and beside()
        else:
            with current(there):
                found = kernel()(*(moved(a, there) for a in args))
            more = beside and beside()  # before the way back, which the activations' device waits for
            found = moved(found, device)
        return found if more is None else found + more

    run.__name__ = run.__qualname__ = name
    return run


def home(w: Any) -> torch.device | None:
    """The device of a weight or tensor; None for what lies in main memory, for the CPU kernels."""
    if isinstance(w, (cpu.Weight, cpu.Experts, np.ndarray)):
        return None
    return w.device if isinstance(w, Tensor) else w.data.device


def on_host(
    operation: Callable[..., Any], device: torch.device, args: Sequence[Any], beside: Beside | None = None
) -> tuple[Any, Any]:
    """An operation of the CPU kernels on copies in main memory, its results on `device`; and what `beside()` gives, or None."""

    def run() -> tuple[Any, Any]:
        copies = mapped(args, _sent)
        arrived = mark(device)
        more = beside and beside()
        arrived()
        return moved(operation(*mapped(copies, Tensor.numpy)), device), more

    recording = RECORDING.get()
    return run() if recording is None else recording.host(operation, args, run, beside)


def _sent(x: Tensor) -> Tensor:
    """A tensor on its way to main memory."""
    return pinned_like(x).copy_(x, non_blocking=True) if x.is_cuda else x.contiguous()


def moved(x: Any, device: torch.device) -> Any:
    """Tensors and arrays on a device, also in lists; anything else as it is."""
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(x)
        if device.type == "cuda":
            x = x.pin_memory()  # or the copy would hold up who launches it
    if isinstance(x, Tensor):
        return x.to(device, non_blocking=True)
    return type(x)(moved(part, device) for part in x) if isinstance(x, (list, tuple)) else x
