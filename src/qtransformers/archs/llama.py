"""Llama 1-3 and Mistral: pre-norm decoder, grouped-query attention, interleaved (NORM) rope, SwiGLU.

Touvron et al. 2023 (arXiv:2302.13971, 2307.09288); rope scaling factors of Llama 3.1 come as the tensor `rope_freqs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qtransformers.archs.spec import ArchSpec, HParam, TensorSpec
from qtransformers.cache import Batch, PagedCache
from qtransformers.nn import attention, embedding, linear, rms_norm, rope, rope_frequencies, swiglu

HPARAMS = (
    HParam("n_layers", "block_count", required=True, minimum=1),
    HParam("context_length", "context_length", required=True, minimum=1),
    HParam("n_embd", "embedding_length", required=True, minimum=1),
    HParam("n_ff", "feed_forward_length", required=True, minimum=1),
    HParam("n_heads", "attention.head_count", required=True, minimum=1),
    HParam("n_kv_heads", "attention.head_count_kv", default=lambda h: h["n_heads"], minimum=1),
    HParam("head_dim", "attention.key_length", default=lambda h: h["n_embd"] // h["n_heads"], minimum=1),
    HParam("head_dim_v", "attention.value_length", default=lambda h: h["head_dim"], minimum=1),
    HParam("rms_eps", "attention.layer_norm_rms_epsilon", float, required=True, minimum=0),
    HParam("rope_dim", "rope.dimension_count", default=lambda h: h["head_dim"], minimum=2),
    HParam("rope_base", "rope.freq_base", float, default=10000.0, minimum=1e-6),
    HParam("rope_scaling", "rope.scaling.type", str, default="none"),
    HParam("rope_factor", "rope.scaling.factor", float, default=1.0, minimum=1e-6),
    HParam("sliding_window", "attention.sliding_window", default=0, minimum=0),
    HParam("n_experts", "expert_count", default=0, minimum=0),
)

TENSORS = (
    TensorSpec("token_embd", "token_embd", ("vocab_size", "n_embd"), "embed"),
    TensorSpec("output_norm", "output_norm", ("n_embd",), "norm"),
    TensorSpec("output", "output", ("vocab_size", "n_embd"), "output", on_absent="tie:token_embd"),
    TensorSpec("rope_freqs", "rope_freqs", ("rope_dim/2",), "rope", on_absent="none"),
)

LAYER_TENSORS = (
    TensorSpec("attn_norm", "blk.{i}.attn_norm", ("n_embd",), "norm"),
    TensorSpec("attn_q", "blk.{i}.attn_q", ("n_heads*head_dim", "n_embd"), "attn", bias="optional"),
    TensorSpec("attn_k", "blk.{i}.attn_k", ("n_kv_heads*head_dim", "n_embd"), "attn", bias="optional"),
    TensorSpec("attn_v", "blk.{i}.attn_v", ("n_kv_heads*head_dim_v", "n_embd"), "attn", bias="optional"),
    TensorSpec("attn_output", "blk.{i}.attn_output", ("n_embd", "n_heads*head_dim_v"), "attn", bias="optional"),
    TensorSpec("ffn_norm", "blk.{i}.ffn_norm", ("n_embd",), "norm"),
    TensorSpec("ffn_gate", "blk.{i}.ffn_gate", ("n_ff", "n_embd"), "dense_ffn", bias="optional"),
    TensorSpec("ffn_up", "blk.{i}.ffn_up", ("n_ff", "n_embd"), "dense_ffn", bias="optional"),
    TensorSpec("ffn_down", "blk.{i}.ffn_down", ("n_embd", "n_ff"), "dense_ffn", bias="optional"),
)


def forward(w: Any, h: Any, batch: Batch, cache: PagedCache) -> Any:
    """Logits `[R, vocab_size]` of the batch's output rows; keys and values of its T tokens enter the cache."""
    freqs = rope_frequencies(
        h.rope_dim, h.rope_base, scaling=h.rope_scaling, factor=h.rope_factor, factors=w.rope_freqs
    )
    x = embedding(batch.tokens, w.token_embd)  # [T, n_embd]
    for i, layer in enumerate(w.layers):
        x = x + self_attention(rms_norm(x, layer.attn_norm, h.rms_eps), layer, h, freqs, batch, cache, i)
        x = x + mlp(rms_norm(x, layer.ffn_norm, h.rms_eps), layer)
    x = rms_norm(x[batch.output_rows], w.output_norm, h.rms_eps)
    return linear(x, w.output)


def self_attention(x: Any, w: Any, h: Any, freqs: Any, batch: Batch, cache: PagedCache, layer: int) -> Any:
    """Causal grouped-query attention, `[T, n_embd]` to `[T, n_embd]`."""
    q = linear(x, w.attn_q, w.attn_q_bias).reshape(-1, h.n_heads, h.head_dim)
    k = linear(x, w.attn_k, w.attn_k_bias).reshape(-1, h.n_kv_heads, h.head_dim)
    v = linear(x, w.attn_v, w.attn_v_bias).reshape(-1, h.n_kv_heads, h.head_dim_v)
    q = rope(q, batch.positions, freqs, interleaved=True)
    k = rope(k, batch.positions, freqs, interleaved=True)
    y = attention(q, k, v, cache, layer, batch, scale=h.head_dim**-0.5, window=h.sliding_window)
    return linear(y, w.attn_output, w.attn_output_bias)


def mlp(x: Any, w: Any) -> Any:
    """SwiGLU feed-forward, `[T, n_embd]` to `[T, n_embd]`."""
    gate = linear(x, w.ffn_gate, w.ffn_gate_bias)
    up = linear(x, w.ffn_up, w.ffn_up_bias)
    return linear(swiglu(gate, up), w.ffn_down, w.ffn_down_bias)


def check(h: Mapping[str, Any]) -> Iterator[str]:
    """What the hyperparameters may not be together."""
    if h["n_heads"] % h["n_kv_heads"]:
        yield f"attention.head_count is {h['n_heads']}, no multiple of attention.head_count_kv, {h['n_kv_heads']}"
    if h["rope_dim"] > h["head_dim"] or h["rope_dim"] % 2:
        yield f"rope.dimension_count is {h['rope_dim']}; expected an even number up to the head dimension, {h['head_dim']}"
    if h["n_experts"]:
        yield f"expert_count is {h['n_experts']}; mixtures of experts (Mixtral) are not supported yet"
    if h["rope_scaling"] not in ("none", "linear"):
        yield f"rope.scaling.type is {h['rope_scaling']!r}; expected none or linear"


SPEC = ArchSpec(
    id="llama",
    hparams=HPARAMS,
    tensors=TENSORS,
    layer_tensors=LAYER_TENSORS,
    forward=forward,
    check=check,
    hf_model_types=("llama", "mistral"),
)
