"""Rotary position embedding (arXiv:2104.09864)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import ConfigError
from qtransformers.kernels import kernels_for


def rope_frequencies(
    dim: int, base: float, scaling: str = "none", factor: float = 1.0, factors: NDArray[np.float32] | None = None
) -> NDArray[np.float64]:
    """Radians per position of each rotated pair `[dim / 2]`.

    `factors [dim / 2]` divide them one by one (Llama 3.1's `rope_freqs`); `scaling="linear"` divides all by `factor`.
    ConfigError for another kind of scaling.
    """
    if scaling not in ("none", "linear"):
        raise ConfigError(f"rope scaling is {scaling!r}; expected none or linear.")
    freqs = base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    if factors is not None:
        freqs = freqs / factors
    return freqs / factor if scaling == "linear" else freqs


def rope(x: Any, positions: Any, freqs: NDArray[np.float64], interleaved: bool) -> Any:
    """Rotate the first `2 * len(freqs)` of each head of `x [T, H, D]` by its position `[T]`.

    `interleaved` pairs neighbours (0, 1), (2, 3), ... (NORM); otherwise i pairs with i + dim / 2 (NEOX).
    """
    return kernels_for(x).rope(x, positions, freqs, interleaved)
