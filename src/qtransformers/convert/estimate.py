"""About how long a conversion takes on this machine: each type's encoder is timed on a few rows."""

from __future__ import annotations

import math
import time
from collections import Counter

import numpy as np

from qtransformers.convert.plan import ConversionPlan
from qtransformers.quants import quantize
from qtransformers.types import QuantType

SAMPLE = (128, 2048)  # values that are encoded
DISK = 500e6  # bytes a second that are read and written, where encoding is faster


def seconds(plan: ConversionPlan) -> float:
    """Seconds that `write` will take, of reading and writing or of encoding, whichever is more."""
    weights: Counter[tuple[QuantType, bool]] = Counter()
    moved = plan.nbytes
    for t in plan.tensors:
        moved += t.stored.row_bytes(t.shape[-1]) * math.prod(t.shape[:-1]) if t.stored else 2 * math.prod(t.shape)
        if t.type is not t.stored:
            weights[t.type, t.importance is not None] += math.prod(t.shape)
    encoding = sum(n * _each(type, weighed) for (type, weighed), n in weights.items())
    return max(encoding, moved / DISK)


def _each(type: QuantType, weighed: bool) -> float:
    """Seconds for a value."""
    values = np.random.default_rng(0).standard_normal(SAMPLE, np.float32)
    importance = np.ones(SAMPLE[1], np.float32) if weighed and type.is_quantized else None
    start = time.perf_counter()
    quantize(values, type, importance=importance) if type.is_quantized else quantize(values.reshape(-1), type)
    return (time.perf_counter() - start) / values.size


def time_text(seconds: float) -> str:
    """For people: `40 s`, `4 min`, `1.5 h`."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
