"""Rotary position embedding as the user wants it, in place of what the file says."""

from __future__ import annotations

from typing import Any

from qtransformers.archs.hparams import Hyperparameters
from qtransformers.checks import real, shown
from qtransformers.errors import ConfigError

STRETCHES = ("linear", "ntk", "yarn")  # by a factor
MAX_FACTOR = 1024
MAX_BASE = 1e12


def check_rope_scaling(value: Any) -> tuple[str, float]:
    """Kind and factor of `none`, `linear:4`, `ntk:4`, `yarn:4`; ConfigError for anything else."""
    kind, _, factor = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind == "none" and not factor:
        return "none", 1.0
    try:
        number = float(factor) if kind in STRETCHES else 0.0
    except ValueError:
        number = 0.0
    if not 1 <= number <= MAX_FACTOR:
        raise ConfigError(
            f"rope_scaling={shown(value)}; expected none, or linear, ntk or yarn with a factor from 1 to {MAX_FACTOR}, such as yarn:4."
        )
    return kind, number


def check_rope_base(value: Any) -> float:
    """A base of rotary frequencies; ConfigError for anything else."""
    return real("rope_base", value, 1.000001, MAX_BASE)


def override_rope(h: Hyperparameters, base: float | None, scaling: str | None, file: str) -> Hyperparameters:
    """Hyperparameters with another base or scaling; a stretched context counts as what the model can do.

    The factor is of the context before any stretching. ConfigError for a model without rope, or one whose own factors
    (longrope, llama3) leave no room for another scaling.
    """
    if base is None and scaling is None:
        return h
    if "rope_scaling" not in h.values_ or h["rope_scaling"] == "longrope":
        why = "is scaled by factors of its own (longrope)" if "rope_scaling" in h.values_ else "has no rotary positions"
        raise ConfigError(f"{file} {why}: rope_base and rope_scaling do not apply. Leave them out.")
    changes: dict[str, Any] = {} if base is None else {"rope_base": check_rope_base(base)}
    if scaling is not None:
        kind, factor = check_rope_scaling(scaling)
        original = h["rope_original"] if h["rope_scaling"] == "yarn" else h["context_length"]
        changes |= {
            "rope_scaling": kind,
            "rope_factor": factor,
            "rope_original": original,
            "context_length": int(original * factor),
        }
    return h.replaced(**changes)
