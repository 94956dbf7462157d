"""Qwen2 (biases on q, k and v; arXiv:2407.10671) and Qwen3 (norms of q and k instead; arXiv:2505.09388)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qtransformers.archs.heads import heads
from qtransformers.archs.parts import RMS_EPS, SIZES, VOCAB_SIZE, check, ends, gated_ffn, norm, qkv
from qtransformers.archs.rotary import ROPE_HPARAMS, rotation
from qtransformers.archs.spec import ArchSpec
from qtransformers.cache import Batch, PagedCache
from qtransformers.nn import Rotation, attention, embedding, gated, layers, linear, rms_norm, rope


def forward(w: Any, h: Any, batch: Batch, cache: PagedCache) -> Any:
    """Logits `[R, vocab_size]` of the batch's output rows; keys and values of its T tokens enter the cache."""
    turn = rotation(h, interleaved=False)
    x = embedding(batch.tokens, w.token_embd)  # [T, n_embd]
    for i, layer in layers(w, x):
        x += self_attention(rms_norm(x, layer.attn_norm, h.rms_eps), layer, h, turn, batch, cache, i)
        x += mlp(rms_norm(x, layer.ffn_norm, h.rms_eps), layer)
    x = rms_norm(x[batch.output_rows], w.output_norm, h.rms_eps)
    return linear(x, w.output)


def self_attention(x: Any, w: Any, h: Any, turn: Rotation, batch: Batch, cache: PagedCache, layer: int) -> Any:
    """Causal grouped-query attention; Qwen3 norms each head of q and k."""
    q, k, v = heads(x, w, h)
    if getattr(w, "attn_q_norm", None) is not None:
        q, k = rms_norm(q, w.attn_q_norm, h.rms_eps), rms_norm(k, w.attn_k_norm, h.rms_eps)
    q, k = rope(q, batch.positions, *turn), rope(k, batch.positions, *turn)
    return linear(attention(q, k, v, cache, layer, batch, scale=h.head_dim**-0.5), w.attn_output)


def mlp(x: Any, w: Any) -> Any:
    """SwiGLU feed-forward."""
    return linear(gated(x, w.ffn_gate, w.ffn_up), w.ffn_down)


QWEN2 = ArchSpec(
    id="qwen2",
    hparams=(*SIZES, RMS_EPS, *ROPE_HPARAMS, VOCAB_SIZE),
    tensors=ends(),
    layer_tensors=(
        norm("attn_norm", "input_layernorm"),
        *qkv("required"),
        norm("ffn_norm", "post_attention_layernorm"),
        *gated_ffn(),
    ),
    forward=forward,
    check=check,
    hf_model_types=("qwen2",),
    hf_fixed={"hidden_act": ("silu",), "use_sliding_window": (False,)},
)

QK_NORMS = (
    norm("attn_q_norm", "self_attn.q_norm", "head_dim"),
    norm("attn_k_norm", "self_attn.k_norm", "head_dim"),
)

QWEN3 = replace(
    QWEN2,
    id="qwen3",
    layer_tensors=(
        norm("attn_norm", "input_layernorm"),
        *qkv(),
        *QK_NORMS,
        norm("ffn_norm", "post_attention_layernorm"),
        *gated_ffn(),
    ),
    hf_model_types=("qwen3",),
    hf_fixed={"hidden_act": ("silu",), "use_sliding_window": (False,), "attention_bias": (False,)},
)
