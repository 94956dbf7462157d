"""Codes on a grid, `(code - zero) * scale`, as GGUF blocks of the same values: nothing is rounded to other codes.

Grids of 2 and 3 bits go into the blocks of 4. Q4_0 and Q8_0 hold symmetric grids exactly, Q4_1 any but for m's rounding to a half. Q4_K keeps the codes and fits its
six-bit scales and minima to those of the groups, which adds to the error of the checkpoint in 4 bits (AWQ, groups of 128) 2e-4
of its power, of 64 3e-3; Q4_1 adds 2e-5 (tests/convert/test_methods.py).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from qtransformers.machine import usable_cores
from qtransformers.quants import Scales, pack
from qtransformers.types import BY_NAME, QuantType

F32 = NDArray[np.float32]
SUPER, SUB = 256, 32  # values of a block of Q4_K, and of one of its groups
# By which of its 63 steps the largest scale of a block may be represented: others give the same in coarser steps
_STEPS = np.arange(24, 64, dtype=np.float32)
_CHUNK = 1 << 14  # blocks fitted at a time, which bounds the temporaries


def the_type(bits: int, symmetric: bool, width: int, group: int) -> QuantType | None:
    """The smallest type that holds such a grid without rounding its codes; None where there is none."""
    if width % SUB or (group % SUB and group != width):
        return None
    if bits == 8:
        return BY_NAME["Q8_0"] if symmetric else None
    if symmetric:
        return BY_NAME["Q4_0"]
    return BY_NAME["Q4_K" if width % SUPER == 0 and group >= 2 * SUB else "Q4_1"]


def repacked(
    codes: NDArray[np.uint8], zeros: NDArray[np.uint8], scales: F32, bits: int, to: QuantType
) -> NDArray[np.uint8] | None:
    """Blocks of type `to`, row after row, or None where it cannot hold the grid; codes `[n, in]`, zeros and scales `[n, groups]`."""
    width = codes.shape[1]
    group = width // max(1, zeros.shape[1])
    fits = width % to.block_size == 0 and group % SUB == 0
    middle = 1 << (bits - 1)
    if not fits or to.name not in ("Q4_0", "Q8_0", "Q4_1", "Q4_K"):
        return None
    if to.name == "Q4_K":
        return _q4_k(codes, zeros, scales, group) if bits <= 4 else None
    z, s = (np.repeat(v, group // SUB, axis=1).reshape(-1).astype(np.float32) for v in (zeros, scales))
    if to.name == "Q4_1":
        if bits > 4:
            return None
        q, low = codes.astype(np.int16), s * z
    elif to.name == "Q4_0" and (bits > 4 or (zeros != middle).any()):
        return None
    else:
        q, low = codes.astype(np.int16) - np.repeat(zeros, group, axis=1), np.zeros_like(s)
        if q.size and (q.min() < -128 or q.max() > 127):
            return None
    ones = np.ones((len(s), 1), np.float32)
    halves = Scales(_half(s), _half(low), ones, ones)
    return pack(q.reshape(-1, SUB), to, halves)


def _half(x: F32) -> F32:
    return x.astype(np.float16).astype(np.float32)


def _q4_k(codes: NDArray[np.uint8], zeros: NDArray[np.uint8], scales: F32, group: int) -> NDArray[np.uint8]:
    """The codes in blocks of Q4_K, d, dmin and six-bit scales and minima fitted to the groups."""
    if (scales < 0).any():  # the grid the other way round has the same values
        turned = scales < 0
        codes = np.where(np.repeat(turned, group, axis=1), 15 - codes, codes)
        zeros, scales = np.where(turned, 15 - zeros, zeros), np.abs(scales)
    per = SUPER // SUB
    q = codes.reshape(-1, per, SUB)
    s = np.repeat(scales, group // SUB, axis=1).reshape(-1, per)
    m = s * np.repeat(zeros, group // SUB, axis=1).reshape(-1, per)
    shared = min(per, group // SUB)  # groups of 32 with the same scale
    chunks = [slice(i, i + _CHUNK) for i in range(0, len(q), _CHUNK)]
    with ThreadPoolExecutor(usable_cores()) as pool:
        parts = list(pool.map(lambda at: _fitted(q[at], s[at], m[at], shared), chunks))
    d, dmin, sc, mins = (np.concatenate(column) for column in zip(*parts, strict=True))
    return pack(codes.reshape(-1, SUPER), BY_NAME["Q4_K"], Scales(d, dmin, sc, mins))


def _fitted(q: NDArray[np.uint8], s: F32, m: F32, shared: int) -> tuple[F32, F32, F32, F32]:
    """d, dmin `[n]` and whole scales and minima `[n, 8]` of least squared error for codes `[n, 8, 32]`.

    The error of a group with scale off by e and minimum off by f is sum((e q - f)^2): the best f for an e is e mean(q), and
    leaves e^2 times the codes' spread. So scales are chosen first, minima then for what they leave.
    """
    groups = (len(q), -1, shared * SUB)
    of_group = q.reshape(groups).astype(np.float32)
    mean, spread = of_group.mean(axis=2), of_group.var(axis=2)  # [n, groups]
    s, m = s[:, ::shared], m[:, ::shared]
    d, sc = _nearest(s, spread)
    wanted = np.maximum(0, m + (d[:, None] * sc - s) * mean)
    dmin, mins = _nearest(wanted, np.ones_like(spread))
    return d, dmin, np.repeat(sc, shared, axis=1), np.repeat(mins, shared, axis=1)


def _nearest(x: F32, weight: F32) -> tuple[F32, F32]:
    """A half `[n]` of which multiples 0..63 `[n, groups]` come nearest to x, by weighted squares."""
    largest = x.max(axis=1)
    best = np.full(len(x), np.inf, np.float32)
    unit, times = np.zeros(len(x), np.float32), np.zeros_like(x)
    for step in _STEPS:
        first = _half(largest / step)
        k = np.clip(np.round(x / np.where(first > 0, first, 1)[:, None]), 0, 63)
        square = (weight * k * k).sum(axis=1)
        d = _half(np.divide((weight * k * x).sum(axis=1), square, out=first, where=square > 0))
        error = (weight * (d[:, None] * k - x) ** 2).sum(axis=1)
        better = error < best
        best, unit = np.where(better, error, best), np.where(better, d, unit)
        times[better] = k[better]
    return unit, times
