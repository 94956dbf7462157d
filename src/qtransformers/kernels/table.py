"""Which operations run on which type of weight where, or why not: asked before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qtransformers.checks import shown
from qtransformers.errors import ConfigError, UnsupportedError
from qtransformers.types import QuantType

# How activations enter products with quantised weights, as int8 planes; none: as floats. See kernels.cpu.bind.
ACCURACIES = {"exact": 0, "high": 2, "fast": 1}
FEW_ROWS = {
    "exact": 8,
    "high": 4,
    "fast": 8,
}  # tokens up to which their number does not change a product's sums (csrc/linear.cpp)
ACCURACY = "fast"  # perplexity within 0.03% of exact (benchmarks/accuracy.py)


# Functions of one value, by the numbers the extension knows them by (csrc/jobs.h).
FUNCTIONS = {"silu": 0, "gelu": 1, "gelu_erf": 2, "sigmoid": 3, "tanh": 4}


def check_accuracy(accuracy: Any) -> None:
    """ConfigError listing what there is, where `accuracy` is none of it."""
    if not isinstance(accuracy, str) or accuracy not in ACCURACIES:
        raise ConfigError(f"accuracy={shown(accuracy)}; expected one of {', '.join(ACCURACIES)}.")


def _holds_floats(type: QuantType) -> str | None:
    if type.family == "int":
        return f"{type.name} holds whole numbers; a weight must decode to floats"
    if type.activation:
        return f"{type.name} is an activation format, never a weight"
    return None


# (operation, device) -> why a type of weight cannot be used, None where it can
_RULES: dict[tuple[str, str], Callable[[QuantType], str | None]] = {
    ("linear", "cpu"): _holds_floats,
    ("embedding", "cpu"): _holds_floats,
}


def why_not(operation: str, type: QuantType, device: str = "cpu") -> str | None:
    """Why `operation` (linear, embedding) cannot use weights of `type` on `device`; None where it can."""
    rule = _RULES.get((operation, device))
    if rule is None:
        places = sorted({d for o, d in _RULES if o == operation})
        return f"no {operation} on {device}; " + (f"expected {' or '.join(places)}" if places else "no such operation")
    return rule(type)


def check(operation: str, type: QuantType, device: str, tensor: str, file: str) -> None:
    """UnsupportedError naming file and tensor where `operation` cannot use them."""
    reason = why_not(operation, type, device)
    if reason:
        raise UnsupportedError(
            f"{file}: {tensor}: {reason}. Use a file of another quantisation, or update qtransformers."
        )
