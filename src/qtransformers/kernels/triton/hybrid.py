"""Operations on what may lie anywhere: a weight or a cache in main memory, or on another GPU than the activations.

They run where the weight is: there go the activations, and back comes the result. So a model needs to know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from qtransformers.kernels import cpu
from qtransformers.kernels.triton.device import current
from qtransformers.kernels.triton.graphs import RECORDING

Tensor = torch.Tensor


def placed(name: str, kernel: Callable[[], Callable[..., Any]], which: int) -> Callable[..., Any]:
    """The operation `name` where its argument number `which` lies, a weight or several; `kernel()` is the GPU's."""

    def run(*args: Any) -> Any:
        w, device = args[which], args[0].device
        there = home(w[0] if isinstance(w, (list, tuple)) else w)
        if there == device:
            return kernel()(*args)
        if there is None:
            return on_host(getattr(cpu, name), device, args)
        with current(there):
            found = kernel()(*(moved(a, there) for a in args))
        return moved(found, device)

    run.__name__ = run.__qualname__ = name
    return run


def home(w: Any) -> torch.device | None:
    """The device of a weight or tensor; None for what lies in main memory, for the CPU kernels."""
    if isinstance(w, (cpu.Weight, cpu.Experts, np.ndarray)):
        return None
    return w.device if isinstance(w, Tensor) else w.data.device


def on_host(operation: Callable[..., Any], device: torch.device, args: Sequence[Any]) -> Any:
    """An operation of the CPU kernels on copies in main memory; its results on `device`."""

    def run() -> Any:
        return moved(operation(*map(hosted, args)), device)

    recording = RECORDING.get()
    return run() if recording is None else recording.host(operation, args, run)


def hosted(x: Any) -> Any:
    """Tensors as arrays of NumPy, also in lists; anything else as it is."""
    if isinstance(x, Tensor):
        return x.contiguous().cpu().numpy()
    return type(x)(map(hosted, x)) if isinstance(x, (list, tuple)) else x


def moved(x: Any, device: torch.device) -> Any:
    """Tensors and arrays on a device, also in lists; anything else as it is."""
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(x)
    if isinstance(x, Tensor):
        return x.to(device, non_blocking=True)
    return type(x)(moved(part, device) for part in x) if isinstance(x, (list, tuple)) else x
