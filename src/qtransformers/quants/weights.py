"""How much the error of each value counts. The same weights as ggml's encoders have, so that errors can be compared.

Where an importance of the columns is given (the mean square of what each is multiplied with), it is spread over the values by
`sqrt(spread mean(x^2) + x^2)`; where none is, each type has a weight that has proved itself there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qtransformers.quants.bits import F32
from qtransformers.quants.search import total


@dataclass(frozen=True)
class Weighting:
    """The weights of a type."""

    plain: str = (
        "one"  # without importance: one, magnitude, rms (of 32 values, and magnitude), square, shifted (square)
    )
    spread: float = 0  # of importance; 0: as it is
    rows: bool = False  # whether mean(x^2) is that of the row, else that of the block


WEIGHTS = {
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1"), Weighting("one", 1, True)),
    "Q2_K": Weighting("magnitude", 1), "Q3_K": Weighting("shifted", 2), "Q4_K": Weighting("rms", 2),
    "Q5_K": Weighting("rms", 2), "Q6_K": Weighting("shifted"),
    **dict.fromkeys(("IQ4_NL", "IQ4_XS", "IQ3_XXS", "IQ3_S", "IQ1_M"), Weighting("shifted", 2)),
    "IQ2_XXS": Weighting("even", 1), "IQ2_XS": Weighting("even", 1), "IQ2_S": Weighting("shifted", 2), "IQ1_S": Weighting("even", 2),
    **dict.fromkeys(("TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "Q1_0", "Q2_0"), Weighting()),
}  # fmt: skip


def weigh(x: F32, type_name: str, importance: F32 | None = None, power: F32 | None = None) -> F32:
    """Weights of the values of blocks `x [block, n]`; `importance` alike, `power [n]` the mean squares of the blocks' rows."""
    rule = WEIGHTS[type_name]
    if importance is not None and not rule.spread:
        return importance
    square = x * x
    if importance is not None:
        mean = power if rule.rows else total(square) * np.float32(1 / len(x))
        return importance * np.sqrt(np.float32(rule.spread) * mean + square)
    if rule.plain == "magnitude":
        return np.abs(x)
    if rule.plain == "even":
        return np.sqrt(np.float32(rule.spread) * (total(square) * np.float32(1 / len(x))) + square)
    if rule.plain == "shifted":
        return total(square) * np.float32(0.5 / len(x)) + square
    if rule.plain == "rms":
        groups = square.reshape(-1, 32, x.shape[-1]).swapaxes(0, 1)
        rms = np.sqrt(total(groups) * np.float32(1 / 32))
        return np.abs(x) + np.repeat(rms, 32, 0)
    return np.ones_like(x)


def row_power(x: F32) -> F32:
    """The mean squares of rows `[rows, in]`."""
    power: F32 = np.einsum("ij,ij->i", x, x) / np.float32(x.shape[-1])
    return power
