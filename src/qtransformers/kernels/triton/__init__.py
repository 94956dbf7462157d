"""The GPU kernels, in Triton: torch arrays in and out, by the names that `kernels.cpu` has.

They read GGUF blocks as they lie in the file. Everything also runs in Triton's interpreter on the CPU.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

# name -> the module it is in, imported on first use: one kernel needs not all the others
HOMES = {
    "Experts": "weights",
    "Weight": "weights",
    "activate": "elementwise",
    "attention": "attend",
    "bind": "weights",
    "causal_conv": "recurrent",
    "embedding": "multiply",
    "gated": "multiply",
    "gated_delta": "recurrent",
    "join": "elementwise",
    "layer_norm": "elementwise",
    "linear": "multiply",
    "linear_like": "multiply",
    "linears": "multiply",
    "log1p": "elementwise",
    "moe": "experts",
    "per_head": "multiply",
    "repeat": "elementwise",
    "rms_norm": "elementwise",
    "rope": "elementwise",
    "route": "elementwise",
    "softplus": "elementwise",
    "split": "elementwise",
}
# Operations on what may lie anywhere, by the argument that says where they run.
PLACED = {"attention": 3, "embedding": 1, "gated": 1, "linear": 1, "linears": 1, "moe": 3, "per_head": 1}
__all__ = list(HOMES)


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name!r}")
    value = kernel(name)() if name not in PLACED else _placed(name)
    globals()[name] = value
    return value


def kernel(name: str) -> Any:
    """A function that gives the kernel of a name, for tensors of one GPU, from its module."""

    @cache
    def found() -> Any:
        return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)

    return found


def _placed(name: str) -> Any:
    from qtransformers.kernels.triton.hybrid import placed

    return placed(name, kernel(name), PLACED[name])
