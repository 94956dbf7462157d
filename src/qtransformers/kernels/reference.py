"""The CPU kernels' twins in plain NumPy: the truth that tests compare every fast kernel with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from qtransformers.kernels import kv
from qtransformers.quants import plain
from qtransformers.tensor import QTensor

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Ints = NDArray[np.int32]


def linear(x: F32, w: QTensor, bias: F32 | None = None) -> F32:
    """`x [T, in] @ w [out, in].T + bias`, summed in float64."""
    y = x.astype(np.float64) @ w.dequantize().astype(np.float64).T
    return (y if bias is None else y + bias).astype(np.float32)


def linear_bf16(x: F32, w: QTensor, bias: F32 | None = None) -> F32:
    """`linear` with `x` and the weights rounded to bfloat16: plain floats at `fast`, where the processor multiplies these."""
    y = _bf16(x).astype(np.float64) @ _bf16(w.dequantize()).astype(np.float64).T
    return (y if bias is None else y + bias).astype(np.float32)


def _bf16(x: F32) -> F32:
    return plain.bf16(plain.encode_bf16(np.ascontiguousarray(x)))


def linears(x: F32, ws: Sequence[QTensor], biases: Sequence[F32 | None]) -> list[F32]:
    """`linear` of one `x [T, in]` by each weight, with its bias or None."""
    return [linear(x, w, bias) for w, bias in zip(ws, biases, strict=True)]


def per_head(x: F32, w: QTensor) -> F32:
    """`x [T, H, in]`, each head times a matrix `[out, in]` of its own: `[T, H, out]`, summed in float64."""
    return np.einsum("thi,hoi->tho", x.astype(np.float64), w.dequantize().astype(np.float64)).astype(np.float32)


def embedding(tokens: Ints, w: QTensor) -> F32:
    """Rows of `w [vocab, n_embd]`."""
    return np.concatenate([w.rows(int(t), int(t) + 1) for t in tokens] or [w.rows(0, 0)])


def rms_norm(x: F32, weight: F32, eps: float) -> F32:
    """Root-mean-square norm over the last dimension."""
    wide = x.astype(np.float64)
    return (wide / np.sqrt((wide**2).mean(-1, keepdims=True) + eps) * weight).astype(np.float32)


def layer_norm(x: F32, weight: F32, bias: F32 | None, eps: float) -> F32:
    """Layer norm over the last dimension."""
    wide = x.astype(np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight
    return (y if bias is None else y + bias).astype(np.float32)


def activate(x: F32, act: str, up: F32 | None = None) -> F32:
    """`f(x)`, times `up` where there is one."""
    wide = x.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        y = _FUNCTIONS[act](wide)
        return (y if up is None else y * up).astype(np.float32)


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


_FUNCTIONS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "silu": lambda x: x * _sigmoid(x),
    "gelu_erf": lambda x: x * np.vectorize(math.erfc, otypes=[np.float64])(-x / math.sqrt(2)) / 2,
    "gelu": lambda x: x * _sigmoid(2 * math.sqrt(2 / math.pi) * x * (1 + 0.044715 * x * x)),
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
}


# How a gate and what it lets through become one: `silu(gate) * up`, tanh-approximated `gelu(gate) * up`, and gpt-oss's.
ACTIVATIONS: dict[str, Callable[[F64, F64], F64]] = {
    "silu": lambda gate, up: gate * _sigmoid(gate) * up,
    "gelu": lambda gate, up: gate * _sigmoid(np.sqrt(8 / np.pi) * (gate + 0.044715 * gate**3)) * up,
    "gpt_oss": lambda gate, up: (g := np.minimum(gate, 7)) * _sigmoid(1.702 * g) * (np.clip(up, -7, 7) + 1),
}


def gated(
    x: F32, w_gate: QTensor, w_up: QTensor, act: str = "silu", gate_bias: F32 | None = None, up_bias: F32 | None = None
) -> F32:
    """A feed-forward layer's first half: gate and up, joined by one of `ACTIVATIONS`."""
    gate, up = (x.astype(np.float64) @ w.dequantize().astype(np.float64).T for w in (w_gate, w_up))
    gate, up = gate + (0 if gate_bias is None else gate_bias), up + (0 if up_bias is None else up_bias)
    return ACTIVATIONS[act](gate, up).astype(np.float32)


def route(
    logits: F32,
    n_used: int,
    gate: str = "softmax",
    bias: F32 | None = None,
    n_groups: int = 1,
    n_groups_used: int = 1,
    group_top: int = 1,
    normalize: bool = False,
    scale: float = 1.0,
) -> tuple[Ints, F32]:
    """The chosen experts of each token and their weights, both `[T, n_used]`; see `nn.route`."""
    wide = logits.astype(np.float64)
    if gate == "softmax":
        with np.errstate(invalid="ignore"):
            weights = np.exp(wide - wide.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
    else:
        weights = _sigmoid(wide)
    scores = weights if bias is None else weights + bias
    if n_groups > 1:
        grouped = scores.reshape(len(scores), n_groups, -1)
        of_groups = np.sort(grouped, -1)[..., -group_top:].sum(-1)
        kept = np.argsort(-of_groups, kind="stable")[:, :n_groups_used]
        out = np.full_like(grouped, -np.inf)
        np.put_along_axis(out, kept[..., None], np.take_along_axis(grouped, kept[..., None], 1), 1)
        scores = out.reshape(scores.shape)
    ids = np.argsort(-scores, -1, kind="stable")[:, :n_used]
    chosen = np.take_along_axis(weights, ids, 1)
    if normalize:
        chosen = chosen / (chosen.sum(-1, keepdims=True) + 1e-20)
    return ids.astype(np.int32), (chosen * scale).astype(np.float32)


def moe(
    x: F32,
    ids: Ints,
    weights: F32,
    w_gate: QTensor,
    w_up: QTensor,
    w_down: QTensor,
    act: str = "silu",
    gate_bias: F32 | None = None,
    up_bias: F32 | None = None,
    down_bias: F32 | None = None,
) -> F32:
    """Each token through its chosen experts, summed with their weights: `[T, n_embd]`."""
    y = np.zeros((len(x), w_down.shape[1]))
    wide, chosen = x.astype(np.float64), np.unique(ids)
    for e in chosen:
        gate, up, down = (
            w.rows(int(e) * w.shape[1], int(e + 1) * w.shape[1]).astype(np.float64).T for w in (w_gate, w_up, w_down)
        )
        biases = (0 if b is None else b[e] for b in (gate_bias, up_bias, down_bias))
        t, k = np.nonzero(ids == e)
        hidden = ACTIVATIONS[act](wide[t] @ gate + next(biases), wide[t] @ up + next(biases))
        np.add.at(y, t, (hidden @ down + next(biases)) * weights[t, k, None])
    return y.astype(np.float32)


def rope(x: F32, positions: Ints, freqs: NDArray[np.float64], interleaved: bool, magnitude: float = 1.0) -> F32:
    """Rotate pairs of the first `2 * len(freqs)` values of each head of `x [T, H, D]`, and multiply them by `magnitude`."""
    half = len(freqs)
    angle = positions[:, None] * freqs  # [T, half]
    turn = magnitude * np.exp(1j * angle)[:, None, :]
    y = x.astype(np.float64)
    a, b = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(0, half), slice(half, 2 * half))
    pairs = (y[..., a] + 1j * y[..., b]) * turn
    y[..., a], y[..., b] = pairs.real, pairs.imag
    return y.astype(np.float32)


def attention(
    q: F32, k: F32, v: F32, pages: NDArray[np.uint8], codec: str,
    positions: Ints, starts: Ints, page_tables: Ints, scale: float, window: int = 0,
    softcap: float = 0.0, sinks: F32 | None = None, causal: bool = True,
) -> F32:  # fmt: skip
    """Store k, v in the layer's pages `[n_pages, n_kv_heads, head_bytes]`, then grouped-query attention as `nn.attention` says."""
    keys_kind, values_kind = kv.CODECS[codec]
    d, dv = k.shape[2], v.shape[2]
    cut = kv.key_bytes(keys_kind, d)
    out = np.empty((q.shape[0], q.shape[1], dv), np.float32)
    q = q * np.float32(scale)
    if keys_kind.planes:
        q = kv.quantise_query(kv.rotate(q, kv.group(d)), keys_kind.query)
    group = q.shape[1] // k.shape[1]
    for s in range(len(starts) - 1):
        rows = np.arange(starts[s], starts[s + 1])
        if not len(rows):
            continue
        for page in np.unique(positions[rows] // kv.PAGE_TOKENS):
            here = rows[positions[rows] // kv.PAGE_TOKENS == page]
            slots = positions[here] % kv.PAGE_TOKENS
            for h in range(k.shape[1]):
                head = pages[page_tables[s, page], h]
                kv.store(head[:cut], keys_kind, True, slots, k[here, h])
                kv.store(head[cut:], values_kind, False, slots, v[here, h])
        length = positions[rows[-1]] + 1
        first = _seen(positions[rows[0]], length, window, causal)[0] // kv.PAGE_TOKENS
        held = pages[page_tables[s, first : (length - 1) // kv.PAGE_TOKENS + 1]]  # [n, n_kv_heads, head_bytes]
        all_keys = kv.decode_page(held[..., :cut], keys_kind, True, d).swapaxes(1, 2)  # [n, 256, n_kv_heads, d]
        all_values = kv.decode_page(held[..., cut:], values_kind, False, dv).swapaxes(1, 2)
        for t in rows:
            seen = slice(*(x - first * kv.PAGE_TOKENS for x in _seen(positions[t], length, window, causal)))
            keys = all_keys.reshape(-1, *all_keys.shape[2:])[seen].astype(np.float64).repeat(group, 1)
            values = all_values.reshape(-1, *all_values.shape[2:])[seen].astype(np.float64).repeat(group, 1)
            scores = np.einsum("hd,nhd->hn", q[t].astype(np.float64), keys)
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            sink = np.full(len(scores), -np.inf) if sinks is None else sinks.astype(np.float64)
            top = np.maximum(scores.max(-1), sink)
            p = np.exp(scores - top[:, None])
            y = np.einsum("hn,nhd->hd", p / (p.sum(-1) + np.exp(sink - top))[:, None], values)
            out[t] = kv.rotate(y, kv.group(dv)) if values_kind.planes else y
    return out.reshape(len(out), -1)


def _seen(position: int, length: int, window: int, causal: bool) -> tuple[int, int]:
    """First position a query sees, and the one after the last."""
    if causal:
        return max(0, position + 1 - window) if window else 0, position + 1
    return (max(0, position - window // 2), min(length, position + window // 2 + 1)) if window else (0, length)


def causal_conv(x: F32, kernel: F32, starts: Ints, pasts: Sequence[F32]) -> F32:
    """Token by token: the sum of the K last tokens of a sequence with `kernel [C, K]`; `pasts[s] [K - 1, C]` moves on."""
    y = np.empty_like(x)
    for s, past in enumerate(pasts):
        for t in range(starts[s], starts[s + 1]):
            rows = np.concatenate([past, x[t : t + 1]]).astype(np.float64)
            y[t] = (rows * kernel.T).sum(0)
            past[:] = rows[1:]
    return y


def gated_delta(q: F32, k: F32, v: F32, decay: F32, beta: F32, starts: Ints, states: Sequence[F32]) -> F32:
    """Token by token, as `nn.gated_delta` says it."""
    y = np.empty(v.shape, np.float32)
    wide_q, wide_k = (x / np.sqrt((x.astype(np.float64) ** 2).sum(-1, keepdims=True) + 1e-6) for x in (q, k))
    group = v.shape[1] // k.shape[1]
    for s, state in enumerate(states):
        memory = state.astype(np.float64)
        for t in range(starts[s], starts[s + 1]):
            query, key = (x[t].repeat(group, 0)[:, :, None] for x in (wide_q, wide_k))  # [H, D_k, 1]
            memory *= np.exp(decay[t].astype(np.float64))[:, None, None]
            memory += key * (beta[t][:, None] * (v[t] - (memory * key).sum(1)))[:, None]
            y[t] = (memory * query).sum(1) * query.shape[1] ** -0.5
        state[:] = memory
    return y
