"""Llama 1-3 and Mistral: pre-norm decoder, grouped-query attention, interleaved (NORM) rope, SwiGLU.

Touvron et al. 2023 (arXiv:2302.13971, 2307.09288); rope scaling factors of Llama 3.1 come as the tensor `rope_freqs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.archs.spec import ArchSpec, HParam, Problem, TensorSpec
from qtransformers.cache import Batch, PagedCache
from qtransformers.nn import attention, embedding, gated, linear, linears, rms_norm, rope, rope_frequencies

ROPE_TYPES = {"default": "none", "dynamic": "none", "llama3": "none"}  # llama3's scaling is the tensor rope_freqs
ROPE = ("rope_parameters", "rope_scaling")  # where config.json keeps rope, since transformers 5 and before


def rope_factors(config: Mapping[str, Any], h: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """Divisors of the rotary frequencies `[rope_dim / 2]` when config.json asks for Llama 3.1's scaling, else None."""
    rope: Mapping[str, Any] = next((config[key] for key in ROPE if config.get(key)), {})
    if rope.get("rope_type", rope.get("type")) != "llama3":
        return None
    low, high, context = (float(rope[k]) for k in ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))  # fmt: skip
    turns = context * rope_frequencies(h["rope_dim"], h["rope_base"]) / (2 * np.pi)  # in the original context
    kept = np.clip((turns - low) / (high - low), 0, 1)  # 1: the frequency stays, 0: it is divided by `factor`
    return (1 / (kept + (1 - kept) / float(rope["factor"]))).astype(np.float32)


HPARAMS = (
    HParam("n_layers", "block_count", required=True, minimum=1, maximum=512, hf=("num_hidden_layers",)),
    HParam("context_length", "context_length", required=True, minimum=1, hf=("max_position_embeddings",), agree="free"),
    HParam("n_embd", "embedding_length", required=True, minimum=1, hf=("hidden_size",)),
    HParam("n_ff", "feed_forward_length", required=True, minimum=1, hf=("intermediate_size",)),
    HParam("n_heads", "attention.head_count", required=True, minimum=1, hf=("num_attention_heads",)),
    HParam("n_kv_heads", "attention.head_count_kv", default=lambda h: h["n_heads"], minimum=1, hf=("num_key_value_heads",)),
    HParam("head_dim", "attention.key_length", default=lambda h: h["n_embd"] // h["n_heads"], minimum=1, hf=("head_dim",)),
    HParam("head_dim_v", "attention.value_length", default=lambda h: h["head_dim"], minimum=1),
    HParam("rms_eps", "attention.layer_norm_rms_epsilon", float, required=True, minimum=0, hf=("rms_norm_eps",)),
    HParam("rope_dim", "rope.dimension_count", default=lambda h: h["head_dim"], minimum=2),
    HParam("rope_base", "rope.freq_base", float, default=10000.0, minimum=1e-6, hf=("rope_parameters.rope_theta", "rope_theta")),
    HParam("rope_scaling", "rope.scaling.type", str, default="none", choices=("none", "linear"), hf=("rope_parameters.rope_type", "rope_scaling.rope_type", "rope_scaling.type"), hf_values=ROPE_TYPES),
    HParam("rope_factor", "rope.scaling.factor", float, default=1.0, minimum=1e-6, hf=("rope_parameters.factor", "rope_scaling.factor"), applies=lambda h: h["rope_scaling"] != "none"),
    HParam("sliding_window", "attention.sliding_window", default=0, minimum=0, hf=("sliding_window",), hf_values={None: 0}),
    HParam("n_experts", "expert_count", default=0, minimum=0, maximum=1024, hf=("num_local_experts",)),
    HParam("vocab_size", "vocab_size", minimum=1, hf=("vocab_size",), agree="at_most", rows_of="token_embd"),
)  # fmt: skip

TENSORS = (
    TensorSpec("token_embd", "token_embd", ("vocab_size", "n_embd"), "embed", hf="model.embed_tokens"),
    TensorSpec("output_norm", "output_norm", ("n_embd",), "norm", hf="model.norm"),
    TensorSpec("output", "output", ("vocab_size", "n_embd"), "output", on_absent="tie:token_embd", hf="lm_head"),
    TensorSpec("rope_freqs", "rope_freqs", ("rope_dim/2",), "rope", on_absent="none", from_config=rope_factors),
)

LAYER_TENSORS = (
    TensorSpec("attn_norm", "blk.{i}.attn_norm", ("n_embd",), "norm", hf="model.layers.{i}.input_layernorm"),
    TensorSpec("attn_q", "blk.{i}.attn_q", ("n_heads*head_dim", "n_embd"), "attn", "optional", hf="model.layers.{i}.self_attn.q_proj", hf_bias="attention_bias", permute="n_heads"),
    TensorSpec("attn_k", "blk.{i}.attn_k", ("n_kv_heads*head_dim", "n_embd"), "attn", "optional", hf="model.layers.{i}.self_attn.k_proj", hf_bias="attention_bias", permute="n_kv_heads"),
    TensorSpec("attn_v", "blk.{i}.attn_v", ("n_kv_heads*head_dim_v", "n_embd"), "attn", "optional", hf="model.layers.{i}.self_attn.v_proj", hf_bias="attention_bias"),
    TensorSpec("attn_output", "blk.{i}.attn_output", ("n_embd", "n_heads*head_dim_v"), "attn", "optional", hf="model.layers.{i}.self_attn.o_proj", hf_bias="attention_bias"),
    TensorSpec("ffn_norm", "blk.{i}.ffn_norm", ("n_embd",), "norm", hf="model.layers.{i}.post_attention_layernorm"),
    TensorSpec("ffn_gate", "blk.{i}.ffn_gate", ("n_ff", "n_embd"), "dense_ffn", "optional", hf="model.layers.{i}.mlp.gate_proj", hf_bias="mlp_bias"),
    TensorSpec("ffn_up", "blk.{i}.ffn_up", ("n_ff", "n_embd"), "dense_ffn", "optional", hf="model.layers.{i}.mlp.up_proj", hf_bias="mlp_bias"),
    TensorSpec("ffn_down", "blk.{i}.ffn_down", ("n_embd", "n_ff"), "dense_ffn", "optional", hf="model.layers.{i}.mlp.down_proj", hf_bias="mlp_bias"),
)  # fmt: skip


def forward(w: Any, h: Any, batch: Batch, cache: PagedCache) -> Any:
    """Logits `[R, vocab_size]` of the batch's output rows; keys and values of its T tokens enter the cache."""
    freqs = rope_frequencies(
        h.rope_dim, h.rope_base, scaling=h.rope_scaling, factor=h.rope_factor, factors=w.rope_freqs
    )
    x = embedding(batch.tokens, w.token_embd)  # [T, n_embd]
    for i, layer in enumerate(w.layers):
        x += self_attention(rms_norm(x, layer.attn_norm, h.rms_eps), layer, h, freqs, batch, cache, i)
        x += mlp(rms_norm(x, layer.ffn_norm, h.rms_eps), layer)
    x = rms_norm(x[batch.output_rows], w.output_norm, h.rms_eps)
    return linear(x, w.output)


def self_attention(x: Any, w: Any, h: Any, freqs: Any, batch: Batch, cache: PagedCache, layer: int) -> Any:
    """Causal grouped-query attention, `[T, n_embd]` to `[T, n_embd]`."""
    q, k, v = linears(x, (w.attn_q, w.attn_k, w.attn_v), (w.attn_q_bias, w.attn_k_bias, w.attn_v_bias))
    q = rope(q.reshape(-1, h.n_heads, h.head_dim), batch.positions, freqs, interleaved=True)
    k = rope(k.reshape(-1, h.n_kv_heads, h.head_dim), batch.positions, freqs, interleaved=True)
    v = v.reshape(-1, h.n_kv_heads, h.head_dim_v)
    y = attention(q, k, v, cache, layer, batch, scale=h.head_dim**-0.5, window=h.sliding_window)
    return linear(y, w.attn_output, w.attn_output_bias)


def mlp(x: Any, w: Any) -> Any:
    """SwiGLU feed-forward, `[T, n_embd]` to `[T, n_embd]`."""
    x = gated(x, w.ffn_gate, w.ffn_up, "silu", w.ffn_gate_bias, w.ffn_up_bias)
    return linear(x, w.ffn_down, w.ffn_down_bias)


def check(h: Mapping[str, Any]) -> Iterator[Problem]:
    """What the hyperparameters may not be together."""
    if h["n_heads"] % h["n_kv_heads"]:
        yield Problem(
            f"attention.head_count is {h['n_heads']}, no multiple of attention.head_count_kv, {h['n_kv_heads']}"
        )
    if h["rope_dim"] > h["head_dim"] or h["rope_dim"] % 2:
        yield Problem(
            f"rope.dimension_count is {h['rope_dim']}; expected an even number up to the head dimension, {h['head_dim']}"
        )
    if h["n_experts"]:
        yield Problem(
            f"expert_count is {h['n_experts']}; mixtures of experts (Mixtral) are not supported yet", "unsupported"
        )


SPEC = ArchSpec(
    id="llama",
    hparams=HPARAMS,
    tensors=TENSORS,
    layer_tensors=LAYER_TENSORS,
    forward=forward,
    check=check,
    hf_model_types=("llama", "mistral"),
    hf_fixed={"hidden_act": ("silu", "swish")},
    unused=("blk.{i}.attn_rot_embd",),
    ignored_keys=(
        "expert_used_count",
        "rope.scaling.original_context_length",
        "rope.scaling.finetuned",
        "tensor_data_layout",
    ),
)
