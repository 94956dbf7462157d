"""What is computed row by row beside the products: norms, rotations, activations, the choice of experts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from qtransformers.errors import ConfigError
from qtransformers.kernels.table import FUNCTIONS
from qtransformers.kernels.triton.few import put_packed
from qtransformers.kernels.triton.products import attach, room_for_packed

Tensor = torch.Tensor
FEW = 8  # tokens that enter products packed
RIGHT, TURNS = tl.constexpr(1.5707963267948966), tl.constexpr(0.6366197723675814)  # a right angle, and one over it


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension, of `x`'s shape; see `nn.rms_norm`."""
    return _norm(x, weight, None, eps, centred=False)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Layer norm over the last dimension, of `x`'s shape; `weight` None for ones."""
    return _norm(x, weight, bias, eps, centred=True)


def _norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool) -> Tensor:
    n = x.shape[-1]
    for name, part in (("weight", weight), ("bias", bias)):
        if part is not None and tuple(part.shape) != (n,):
            raise ConfigError(f"a norm over {n} values has a {name} of {list(part.shape)}; expected [{n}].")
    x = x.contiguous()
    y = torch.empty_like(x)
    rows = x.numel() // max(n, 1)
    if rows:
        block = triton.next_power_of_2(n)
        few = x.dim() == 2 and rows <= FEW and n % 32 == 0
        planes = getattr(weight, "planes", 0) if few else 0  # `load.place` says what products of it want
        found = room_for_packed(triton.next_power_of_2(rows), n, planes, x.device) if planes else None
        codes, scales, sums = (y, y, y) if found is None else (found.codes, found.scales, found.sums)
        _norm_kernel[rows,](
            x, x if weight is None else weight, x if bias is None else bias, y, codes, scales, sums, n, eps,
            0 if found is None else found.rows, PLANES=planes,
            BLOCK=block, CENTRED=centred, WEIGHT=weight is not None, BIAS=bias is not None, num_warps=_warps(block),
        )  # fmt: skip
        if found is not None:
            attach(y, found)
    return y


def _warps(block: int) -> int:
    """Warps for a row of so many values: about 8 values a thread."""
    return min(16, max(1, block // 256))


@triton.jit
def _norm_kernel(
    x, weight, bias, y, codes, scales, sums, n, eps, tokens, PLANES: tl.constexpr, BLOCK: tl.constexpr, CENTRED: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * n
    at = tl.arange(0, BLOCK)
    inside = at < n
    v = tl.load(x + row + at, inside, 0.0)
    if CENTRED:
        v = tl.where(inside, v - tl.sum(v, 0) / n, 0.0)
    v = v * (1.0 / tl.sqrt_rn(tl.sum(v * v, 0) / n + eps))
    if WEIGHT:
        v *= tl.load(weight + at, inside, 0.0)
    if BIAS:
        v += tl.load(bias + at, inside, 0.0)
    tl.store(y + row + at, v, inside)
    if PLANES:
        pieces = tl.reshape(tl.where(inside, v, 0.0), [BLOCK // 32, 32])
        put_packed(pieces, codes, scales, sums, tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK // 32), n, tokens, PLANES, BLOCK // 32)  # fmt: skip


def rope(x: Tensor, positions: Tensor, freqs: NDArray[np.float64], interleaved: bool, magnitude: float = 1.0) -> Tensor:
    """Rotate pairs of the first `2 * len(freqs)` values of each head of `x [T, H, D]`, and multiply them by `magnitude`."""
    t, heads, d = x.shape
    if 2 * len(freqs) > d or tuple(positions.shape) != (t,):
        raise ConfigError(
            f"rope of heads {list(x.shape)} has {len(freqs)} frequencies and positions {list(positions.shape)}; "
            f"expected at most {d // 2}, and [{t}]."
        )
    x = x.contiguous()
    y = torch.empty_like(x)
    if x.numel():
        block = triton.next_power_of_2((d + 1) // 2)
        _rope_kernel[t, triton.cdiv(heads, 4)](
            x, y, positions, _frequencies(freqs.tobytes(), x.device), heads, d, magnitude,
            HALF=len(freqs), INTERLEAVED=interleaved, REST=d > 2 * len(freqs), HEADS=4, BLOCK=block, num_warps=1,
        )  # fmt: skip
    return y


@cache  # a handful of numbers a model; captured graphs keep reading where they lie
def _frequencies(freqs: bytes, device: torch.device) -> Tensor:
    return torch.frombuffer(bytearray(freqs), dtype=torch.float64).to(device)


@triton.jit
def turn(angle):
    """Cosine and sine of angles in double, to the last bits of a float: the library's take memory of their own for large ones."""
    quarter = tl.floor(angle * TURNS + 0.5)
    x = (angle - quarter * RIGHT).to(tl.float32)  # within an eighth of a turn
    q = quarter.to(tl.int64) & 3
    z = x * x
    sin = x * (1 + z * (-0.16666667 + z * (0.008333334 + z * (-0.00019841270 + z * 2.7557319e-6))))
    cos = 1 + z * (-0.5 + z * (0.041666667 + z * (-0.0013888889 + z * (2.4801587e-5 - z * 2.7557319e-7))))
    odd = (q & 1) == 1
    s, c = tl.where(odd, cos, sin), tl.where(odd, sin, cos)
    return tl.where((q == 1) | (q == 2), -c, c), tl.where(q >= 2, -s, s)


@triton.jit
def _rope_kernel(
    x, y, positions, freqs, heads, d, magnitude,
    HALF: tl.constexpr, INTERLEAVED: tl.constexpr, REST: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    # In double: in float a position of 100,000 would leave the angle three digits.
    angle = tl.load(positions + t).to(tl.float64) * tl.load(freqs + i, i < HALF, 0.0)
    cos, sin = turn(angle)
    cos, sin = cos * magnitude, sin * magnitude
    for j in range(HEADS):
        head = tl.program_id(1) * HEADS + j
        row = (t * heads + head) * d
        turned = (i < HALF) & (head < heads)
        if INTERLEAVED:
            first, second = row + 2 * i, row + 2 * i + 1
        else:
            first, second = row + i, row + i + HALF
        a, b = tl.load(x + first, turned, 0.0), tl.load(x + second, turned, 0.0)
        tl.store(y + first, a * cos - b * sin, turned)
        tl.store(y + second, a * sin + b * cos, turned)
        if REST:
            rest = 2 * HALF + tl.arange(0, 2 * BLOCK)
            kept = (rest < d) & (head < heads)
            tl.store(y + row + rest, tl.load(x + row + rest, kept, 0.0), kept)


def activate(x: Tensor, act: str, up: Tensor | None = None) -> Tensor:
    """A function of each value (table.FUNCTIONS), times `up` where there is one; of `x`'s shape."""
    kind = FUNCTIONS.get(act) if isinstance(act, str) else None
    if kind is None:
        raise ConfigError(f"act={act!r}; expected one of {', '.join(FUNCTIONS)}.")
    if up is not None and up.shape != x.shape:
        raise ConfigError(f"activate of {list(x.shape)} has up {list(up.shape)}; expected the same shape.")
    x = x.contiguous()
    y = torch.empty_like(x)
    n = x.numel()
    if n:
        _activate_kernel[triton.cdiv(n, 1024),](
            x, x if up is None else up.contiguous(), y, n, KIND=kind, UP=up is not None, BLOCK=1024, num_warps=4
        )
    return y


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def apply(v, KIND: tl.constexpr):
    """A function of `table.FUNCTIONS` by its number."""
    if KIND == 0:  # silu
        return v * _sigmoid(v)
    elif KIND == 1:  # gelu
        return v * _sigmoid(1.5957691216057308 * (v + 0.044715 * v * v * v))
    elif KIND == 2:  # gelu_erf
        return 0.5 * v * (1.0 + tl.erf(v * 0.7071067811865476))
    elif KIND == 3:  # sigmoid
        return _sigmoid(v)
    else:  # tanh, without cancellation about 0
        small = v * (1.0 - v * v * (1.0 / 3.0))
        large = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(v)) + 1.0)
        return tl.where(tl.abs(v) < 0.02, small, tl.where(v < 0, -large, large))


@triton.jit
def _activate_kernel(x, up, y, n, KIND: tl.constexpr, UP: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    v = apply(tl.load(x + at, inside, 0.0).to(tl.float32), KIND)
    if UP:
        v *= tl.load(up + at, inside, 0.0).to(tl.float32)
    tl.store(y + at, v, inside)


def split(x: Tensor, at: Sequence[int], axis: int) -> list[Tensor]:
    """Contiguous parts of an array, cut before each of the places `at`."""
    return [part.contiguous() for part in x.tensor_split(tuple(at), axis)]


def join(parts: Sequence[Tensor]) -> Tensor:
    """Arrays one after the other along the last axis."""
    return torch.cat(tuple(parts), -1)


def repeat(x: Tensor, n: int, axis: int) -> Tensor:
    """Each part along an axis `n` times in a row."""
    return x.repeat_interleave(n, axis)


def log1p(x: Tensor) -> Tensor:
    """`log(1 + x)` of whole numbers, as f32."""
    return torch.log1p(x.float())


def softplus(x: Tensor) -> Tensor:
    """`log(1 + exp(x))`, without overflow."""
    return torch.logaddexp(torch.zeros_like(x), x)


def route(
    logits: Tensor, n_used: int, gate: str = "softmax", bias: Tensor | None = None, n_groups: int = 1, n_groups_used: int = 1,
    group_top: int = 1, normalize: bool = False, scale: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The experts of each token, i32, and their weights, both `[T, n_used]`; see `nn.route`. ConfigError for what cannot be."""
    t, n = logits.shape
    _check_route(n, n_used, gate, bias, n_groups, n_groups_used, group_top)
    ids = torch.empty((t, n_used), dtype=torch.int32, device=logits.device)
    weights = torch.empty((t, n_used), dtype=torch.float32, device=logits.device)
    if t:
        logits = logits.contiguous()
        _route_kernel[t,](
            logits, logits if bias is None else bias, ids, weights, n, scale, n // n_groups, N_USED=n_used, GROUPS_USED=n_groups_used,
            SIGMOID=gate == "sigmoid", BIAS=bias is not None, GROUPS=n_groups, TOP=group_top, NORMALIZE=normalize,
            USED=triton.next_power_of_2(n_used), BLOCK=triton.next_power_of_2(n), num_warps=1,
        )  # fmt: skip
    return ids, weights


def _check_route(
    n: int, n_used: int, gate: Any, bias: Tensor | None, n_groups: int, n_groups_used: int, group_top: int
) -> None:
    if gate not in ("softmax", "sigmoid"):
        raise ConfigError(f"gate={gate!r}; expected softmax or sigmoid.")
    if bias is not None and tuple(bias.shape) != (n,):
        raise ConfigError(f"route over {n} experts has a bias of {list(bias.shape)}; expected [{n}].")
    if n_groups < 1 or n % n_groups or not 1 <= n_groups_used <= n_groups or not 1 <= group_top <= n // n_groups:
        raise ConfigError(
            f"{n} experts in {n_groups} groups, of which {n_groups_used} are open by their best {group_top}, cannot be."
        )
    if not 1 <= n_used <= n_groups_used * (n // n_groups):
        raise ConfigError(f"n_used={n_used}; expected 1 to {n_groups_used * (n // n_groups)} of {n} experts.")


@triton.jit
def _best(scores, at, BLOCK: tl.constexpr):
    """The largest of scores and the first place that has it."""
    top = tl.max(scores, 0)
    return top, tl.min(tl.where(scores == top, at, BLOCK), 0)


@triton.jit
def _route_kernel(
    logits, bias, ids, weights, n, scale, group_size, N_USED: tl.constexpr, GROUPS_USED: tl.constexpr,
    SIGMOID: tl.constexpr, BIAS: tl.constexpr, GROUPS: tl.constexpr, TOP: tl.constexpr, NORMALIZE: tl.constexpr,
    USED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < n
    v = tl.load(logits + t * n + at, inside, float("-inf"))
    if SIGMOID:
        w = _sigmoid(v)
    else:
        w = tl.exp(v - tl.max(v, 0))
        w = w / tl.sum(w, 0)
    scores = w
    if BIAS:
        scores = scores + tl.load(bias + at, inside, 0.0)
    scores = tl.where(inside & (scores <= float("inf")), scores, float("-inf"))
    if GROUPS > 1:
        # the value of each group stands at each of its experts
        of_group = tl.full([BLOCK], float("-inf"), tl.float32)
        for g in range(GROUPS):
            mine = inside & (at // group_size == g)
            left = tl.where(mine, scores, float("-inf"))
            total = 0.0
            for _ in range(TOP):
                top, where = _best(left, at, BLOCK)
                total += top
                left = tl.where(at == where, float("-inf"), left)
            of_group = tl.where(mine, total, of_group)
        opened = at < 0
        for _ in range(GROUPS_USED):
            top, where = _best(tl.where(opened, float("-inf"), of_group), at, BLOCK)
            opened = opened | (at // group_size == where // group_size)
        scores = tl.where(opened & inside, scores, float("-inf"))
    slot = tl.arange(0, USED)
    taken = at >= n
    best, chosen = tl.zeros([USED], tl.int32), tl.zeros([USED], tl.float32)
    for i in range(N_USED):
        top, where = _best(tl.where(taken, float("-inf"), scores), tl.where(taken, BLOCK, at), BLOCK)
        where = tl.minimum(where, n - 1)  # of logits that are no numbers
        taken = taken | (at == where)
        best = tl.where(slot == i, where, best)
        chosen = tl.where(slot == i, tl.sum(tl.where(at == where, w, 0.0), 0), chosen)
    if NORMALIZE:
        chosen = chosen / (tl.sum(chosen, 0) + 1e-20)
    used = slot < N_USED
    tl.store(ids + t * N_USED + slot, best, used)
    tl.store(weights + t * N_USED + slot, chosen * scale, used)
