"""Rotary position embedding (arXiv:2104.09864) and the ways to stretch it over longer contexts."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import ConfigError
from qtransformers.kernels import kernels_for

SCALINGS = ("none", "linear", "ntk", "yarn", "longrope")


class Rotation(NamedTuple):
    """How heads are rotated: `rope(q, positions, *rotation)`."""

    freqs: NDArray[np.float64]  # [dim / 2], radians per position
    interleaved: bool  # pairs (0, 1), (2, 3), ... (NORM); else i and i + dim / 2 (NEOX)
    magnitude: float = 1.0  # what is rotated grows by this much


def rope_frequencies(
    dim: int,
    base: float,
    scaling: str = "none",
    factor: float = 1.0,
    factors: NDArray[np.float32] | None = None,
    *,
    original: int = 0,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    rounded: bool = True,
) -> NDArray[np.float64]:
    """Radians per position of each rotated pair `[dim / 2]`.

    `factors [dim / 2]` divide them one by one (Llama 3.1's `rope_freqs`, LongRoPE's factors, arXiv:2402.13753).
    `linear` divides all by `factor` (arXiv:2306.15595), `ntk` enlarges the base so that only the slowest is, and `yarn`
    (arXiv:2309.00071) those that turn less than `beta_slow` times within the `original` context, none of those that turn
    more than `beta_fast` times, both to a whole pair unless `rounded` is false. ConfigError for another kind of scaling.
    """
    if scaling not in SCALINGS:
        raise ConfigError(f"rope scaling is {scaling!r}; expected one of {', '.join(SCALINGS)}.")
    if scaling == "ntk" and dim > 2:
        base *= factor ** (dim / (dim - 2))
    freqs = base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    if factors is not None:
        freqs = freqs / factors
    if scaling == "linear":
        return freqs / factor
    if scaling == "yarn":
        kept = _kept_by_yarn(dim, base, original, beta_fast, beta_slow, rounded)
        return freqs * (kept + (1 - kept) / factor)
    return freqs


def yarn_magnitude(factor: float, multiplier: float = 1.0) -> float:
    """How much YaRN enlarges queries and keys: attention over a longer context is sharpened."""
    return 0.1 * multiplier * math.log(factor) + 1.0 if factor > 1 else 1.0


def llama3_factors(
    dim: int, base: float, factor: float, low: float, high: float, original: float
) -> NDArray[np.float32]:
    """Divisors `[dim / 2]` of Llama 3.1: 1 for frequencies that turn more than `high` times in the original context,
    `factor` for those that turn less than `low` times, in between in between."""  # fmt: skip
    turns = original * rope_frequencies(dim, base) / (2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / (kept + (1 - kept) / factor)).astype(np.float32)


def rope(x: Any, positions: Any, freqs: NDArray[np.float64], interleaved: bool, magnitude: float = 1.0) -> Any:
    """Rotate the first `2 * len(freqs)` of each head of `x [T, H, D]` by its position `[T]`, enlarged by `magnitude`.

    `interleaved` pairs neighbours (0, 1), (2, 3), ... (NORM); otherwise i pairs with i + dim / 2 (NEOX).
    """
    return kernels_for(x).rope(x, positions, freqs, interleaved, magnitude)


def _kept_by_yarn(
    dim: int, base: float, original: int, beta_fast: float, beta_slow: float, rounded: bool
) -> NDArray[np.float64]:
    """1 for pairs whose frequency stays, 0 for those it is divided for, and a ramp between `[dim / 2]`."""

    def pair_that_turns(times: float) -> float:
        return dim * math.log(max(original, 1) / (times * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair_that_turns(beta_fast), pair_that_turns(beta_slow)
    if rounded:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    return 1 - np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0, 1)
