"""Layers that remember a sequence in a state of fixed size: a short convolution, and the gated delta rule, token by token.

States are found by addresses on the device, so that a captured graph may be replayed for other sequences.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from qtransformers.errors import ConfigError
from qtransformers.kernels.triton.kv import sequence_of

CHANNELS = 128  # of a program
ROWS = 16
STATE_COLUMNS = 32


class Remembered(NamedTuple):
    """What a layer remembers of sequences: f32 arrays of one shape on the device."""

    addresses: Any  # [S, 2] int32, of 64 bits, of what each sequence has; not read where a sequence has no rows
    first: int  # number of it at which the array begins
    shape: tuple[int, ...]


def causal_conv(x: Any, kernel: Any, starts: Any, pasts: Remembered) -> Any:
    """Each channel of `x [T, C]` with `kernel [C, K]` over its last K tokens: `[T, C]`; see `nn.causal_conv`."""
    if x.ndim != 2 or kernel.shape[0] != x.shape[1] or pasts.shape != (kernel.shape[1] - 1, x.shape[1]):
        raise ConfigError(
            f"causal_conv got x {list(x.shape)}, kernel {list(kernel.shape)}, pasts of {list(pasts.shape)}; "
            "expected [T, C], [C, K], [K - 1, C]."
        )
    n_tokens, n_channels = x.shape
    x, kernel, y = x.contiguous(), kernel.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    size = {"SIZE": kernel.shape[1], "C": n_channels, "CHANNELS": CHANNELS}
    blocks = triton.cdiv(n_channels, CHANNELS)
    if n_tokens:
        places, n = _places(pasts, starts), len(starts) - 1
        _conv[(triton.cdiv(n_tokens, ROWS), blocks)](
            x, kernel, y, starts, places, pasts.first, n_tokens, n, LOG_S=(n - 1).bit_length(), ROWS=ROWS, **size
        )
        _move_on[(n, blocks)](x, starts, places, pasts.first, **size)
    return y


def gated_delta(q: Any, k: Any, v: Any, decay: Any, beta: Any, starts: Any, states: Remembered) -> Any:
    """The gated delta rule over sequences of `starts [S + 1]`, token by token: `[T, H, D_v]`; see `nn.gated_delta`."""
    n_heads, dv = v.shape[1:]
    n_key_heads, d = q.shape[1:]
    if q.shape != k.shape or n_heads % n_key_heads or decay.shape != beta.shape or states.shape != (n_heads, d, dv):
        raise ConfigError(
            f"gated_delta got q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}, decay {list(decay.shape)}, beta {list(beta.shape)}, "
            f"states of {list(states.shape)}; expected q, k [T, H_k, D_k], v [T, H, D_v], decay, beta [T, H], states of [H, D_k, D_v]."
        )
    q, k, v, decay, beta = (x.contiguous() for x in (q, k, v, decay, beta))
    y = torch.empty_like(v)
    if v.shape[0]:
        _delta[(len(starts) - 1, n_heads, triton.cdiv(dv, STATE_COLUMNS))](
            q, k, v, decay, beta, y, starts, _places(states, starts), states.first, d**-0.5,
            HEADS=n_heads, GROUP=n_heads // n_key_heads, D=d, DV=dv, WIDE=triton.next_power_of_2(d), COLUMNS=STATE_COLUMNS, num_warps=4,
        )  # fmt: skip
    return y


def _places(states: Remembered, starts: Any) -> Any:
    """The addresses of what each sequence has, `[S] int64`."""
    at = states.addresses
    if at is None or at.dtype != torch.int32 or at.shape != (len(starts) - 1, 2) or at.device != starts.device:
        found = "none" if at is None else f"{at.dtype} {list(at.shape)} on {at.device}"
        raise ConfigError(
            f"addresses of states are {found}; expected torch.int32 {[len(starts) - 1, 2]} on {starts.device}, "
            "as a batch has them that cache.States.placed gave."
        )
    return at.view(torch.int64).reshape(-1)


@triton.jit(do_not_specialize=["at", "n_tokens", "n_sequences"])
def _conv(
    x, kernel, y, starts, places, at, n_tokens, n_sequences,
    LOG_S: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr, C: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    real = (t < n_tokens) & (t < tl.load(starts + n_sequences))
    s = sequence_of(t, starts, n_sequences, LOG_S)
    first = tl.load(starts + s)
    past = tl.load(places + s).to(tl.pointer_type(tl.float32)) + at
    there = channel[None, :] < C
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    for i in tl.static_range(SIZE):
        row = t - (SIZE - 1 - i)
        new, old = real & (row >= first), real & (row < first)
        a = tl.load(x + row.to(tl.int64)[:, None] * C + channel[None, :], mask=new[:, None] & there, other=0.0)
        b = tl.load(past[:, None] + (row - first + SIZE - 1)[:, None] * C + channel[None, :], mask=old[:, None] & there, other=0.0)  # fmt: skip
        weight = tl.load(kernel + channel * SIZE + i, mask=channel < C, other=0.0).to(tl.float32)
        total += (a.to(tl.float32) + b) * weight[None, :]
    tl.store(y + t.to(tl.int64)[:, None] * C + channel[None, :], total.to(y.dtype.element_ty), mask=real[:, None] & there)  # fmt: skip


@triton.jit(do_not_specialize=["at"])
def _move_on(x, starts, places, at, SIZE: tl.constexpr, C: tl.constexpr, CHANNELS: tl.constexpr):
    """The last tokens of a sequence become its past, the oldest first: each is read before what it displaces is needed."""
    s = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    there = channel < C
    first, end = tl.load(starts + s), tl.load(starts + s + 1)
    past = tl.load(places + s).to(tl.pointer_type(tl.float32)) + at
    if end > first:
        for i in tl.static_range(SIZE - 1):
            row = end - (SIZE - 1 - i)
            a = tl.load(x + row.to(tl.int64) * C + channel, mask=there & (row >= first), other=0.0).to(tl.float32)
            b = tl.load(past + (row - first + SIZE - 1) * C + channel, mask=there & (row < first), other=0.0)
            tl.store(past + i * C + channel, a + b, mask=there)


@triton.jit(do_not_specialize=["start"])
def _delta(
    q, k, v, decay, beta, y, starts, places, start, scale,
    HEADS: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, WIDE: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    s, head = tl.program_id(0), tl.program_id(1)
    row, column = tl.arange(0, WIDE), tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    there = (row < D)[:, None] & (column < DV)[None, :]
    first, end = tl.load(starts + s), tl.load(starts + s + 1)
    if first == end:
        return
    own = tl.load(places + s).to(tl.pointer_type(tl.float32)) + start
    state = own + (head * D + row)[:, None] * DV + column[None, :]
    memory = tl.load(state, mask=there, other=0.0)
    begin = first.to(tl.int64)
    for i in range(0, end - first):
        at = (begin + i) * HEADS + head
        key_at = ((begin + i) * (HEADS // GROUP) + head // GROUP) * D + row
        query = tl.load(q + key_at, mask=row < D, other=0.0).to(tl.float32)
        key = tl.load(k + key_at, mask=row < D, other=0.0).to(tl.float32)
        value = tl.load(v + at * DV + column, mask=column < DV, other=0.0).to(tl.float32)
        query *= scale / tl.sqrt(tl.sum(query * query, 0) + 1e-6)
        key *= 1 / tl.sqrt(tl.sum(key * key, 0) + 1e-6)
        memory *= tl.exp(tl.load(decay + at).to(tl.float32))
        known = tl.sum(memory * key[:, None], 0)
        memory += key[:, None] * ((value - known) * tl.load(beta + at).to(tl.float32))[None, :]
        out = tl.sum(memory * query[:, None], 0)
        tl.store(y + at * DV + column, out.to(y.dtype.element_ty), mask=column < DV)
    tl.store(state, memory, mask=there)
