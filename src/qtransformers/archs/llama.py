"""Llama 1-3, Mistral and Mixtral: pre-norm decoder, grouped-query attention, interleaved (NORM) rope, SwiGLU, or a mixture of such experts.

Touvron et al. 2023 (arXiv:2302.13971, 2307.09288), Jiang et al. 2024 (arXiv:2401.04088); rope scaling factors of Llama 3.1 come as the tensor `rope_freqs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qtransformers.archs import parts
from qtransformers.archs.parts import (
    EXPERTS,
    RMS_EPS,
    SIZES,
    VOCAB_SIZE,
    dense,
    ends,
    experts_ffn,
    gated_ffn,
    norm,
    qkv,
)
from qtransformers.archs.rotary import LONGROPE, LONGROPE_HPARAMS, ROPE_FREQS, rotation
from qtransformers.archs.spec import ArchSpec, HParam, Problem
from qtransformers.cache import Batch, PagedCache
from qtransformers.nn import Rotation, attention, embedding, gated, layers, linear, linears, moe, rms_norm, rope, route

HPARAMS = (
    *SIZES,
    RMS_EPS,
    *LONGROPE_HPARAMS,
    HParam("sliding_window", "attention.sliding_window", default=0, minimum=0, hf=("sliding_window",), hf_values={None: 0}),
    *EXPERTS,
    VOCAB_SIZE,
)  # fmt: skip

TENSORS = (*ends(), ROPE_FREQS, *LONGROPE)

LAYER_TENSORS = (
    norm("attn_norm", "input_layernorm"),
    *qkv("optional", "optional", permute=True),
    norm("ffn_norm", "post_attention_layernorm"),
    *gated_ffn("optional", when=dense),
    *experts_ffn("model.layers.{i}.block_sparse_moe", ("w1", "w3", "w2")),
)


def forward(w: Any, h: Any, batch: Batch, cache: PagedCache) -> Any:
    """Logits `[R, vocab_size]` of the batch's output rows; keys and values of its T tokens enter the cache."""
    turn = rotation(h, w, interleaved=True)
    x = embedding(batch.tokens, w.token_embd)  # [T, n_embd]
    for i, layer in layers(w, x):
        x += self_attention(rms_norm(x, layer.attn_norm, h.rms_eps), layer, h, turn, batch, cache, i)
        y = rms_norm(x, layer.ffn_norm, h.rms_eps)
        x += experts(y, layer, h) if h.n_experts else mlp(y, layer)
    x = rms_norm(x[batch.output_rows], w.output_norm, h.rms_eps)
    return linear(x, w.output)


def self_attention(x: Any, w: Any, h: Any, turn: Rotation, batch: Batch, cache: PagedCache, layer: int) -> Any:
    """Causal grouped-query attention, `[T, n_embd]` to `[T, n_embd]`."""
    q, k, v = linears(x, (w.attn_q, w.attn_k, w.attn_v), (w.attn_q_bias, w.attn_k_bias, w.attn_v_bias))
    q = rope(q.reshape(-1, h.n_heads, h.head_dim), batch.positions, *turn)
    k = rope(k.reshape(-1, h.n_kv_heads, h.head_dim), batch.positions, *turn)
    v = v.reshape(-1, h.n_kv_heads, h.head_dim_v)
    y = attention(q, k, v, cache, layer, batch, scale=h.head_dim**-0.5, window=h.sliding_window)
    return linear(y, w.attn_output, w.attn_output_bias)


def mlp(x: Any, w: Any) -> Any:
    """SwiGLU feed-forward, `[T, n_embd]` to `[T, n_embd]`."""
    x = gated(x, w.ffn_gate, w.ffn_up, "silu", w.ffn_gate_bias, w.ffn_up_bias)
    return linear(x, w.ffn_down, w.ffn_down_bias)


def experts(x: Any, w: Any, h: Any) -> Any:
    """Each token through the experts its router likes best, `[T, n_embd]` to `[T, n_embd]`."""
    ids, weights = route(linear(x, w.ffn_gate_inp), h.n_experts_used, normalize=True)
    return moe(x, ids, weights, w.ffn_gate_exps, w.ffn_up_exps, w.ffn_down_exps)


def check(h: Mapping[str, Any]) -> Iterator[Problem]:
    """What the hyperparameters may not be together."""
    yield from parts.check(h)
    yield from parts.check_experts(h)


SPEC = ArchSpec(
    id="llama",
    hparams=HPARAMS,
    tensors=TENSORS,
    layer_tensors=LAYER_TENSORS,
    forward=forward,
    check=check,
    hf_model_types=("llama", "mistral", "mixtral"),
    hf_fixed={"hidden_act": ("silu", "swish")},
    unused=("blk.{i}.attn_rot_embd",),
)
