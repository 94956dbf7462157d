"""OLMo 2: norms behind attention and feed-forward instead of before, and over all heads of q and k (arXiv:2501.00656)."""

from __future__ import annotations

from typing import Any

from qtransformers.archs.heads import by_head
from qtransformers.archs.parts import RMS_EPS, SIZES, VOCAB_SIZE, check, ends, gated_ffn, norm, qkv
from qtransformers.archs.rotary import ROPE_HPARAMS, rotation
from qtransformers.archs.spec import ArchSpec
from qtransformers.cache import Batch, PagedCache
from qtransformers.nn import Rotation, attention, embedding, gated, linear, linears, rms_norm, rope


def forward(w: Any, h: Any, batch: Batch, cache: PagedCache) -> Any:
    """Logits `[R, vocab_size]` of the batch's output rows; keys and values of its T tokens enter the cache."""
    turn = rotation(h, interleaved=False)
    x = embedding(batch.tokens, w.token_embd)  # [T, n_embd]
    for i, layer in enumerate(w.layers):
        y = self_attention(x, layer, h, turn, batch, cache, i)
        x += rms_norm(y, layer.post_attention_norm, h.rms_eps)
        y = linear(gated(x, layer.ffn_gate, layer.ffn_up), layer.ffn_down)
        x += rms_norm(y, layer.post_ffw_norm, h.rms_eps)
    x = rms_norm(x[batch.output_rows], w.output_norm, h.rms_eps)
    return linear(x, w.output)


def self_attention(x: Any, w: Any, h: Any, turn: Rotation, batch: Batch, cache: PagedCache, layer: int) -> Any:
    """Causal grouped-query attention."""
    q, k, v = linears(x, (w.attn_q, w.attn_k, w.attn_v), (None, None, None))
    q, k = rms_norm(q, w.attn_q_norm, h.rms_eps), rms_norm(k, w.attn_k_norm, h.rms_eps)
    q, k, v = by_head(q, h.head_dim), by_head(k, h.head_dim), by_head(v, h.head_dim_v)
    q, k = rope(q, batch.positions, *turn), rope(k, batch.positions, *turn)
    return linear(attention(q, k, v, cache, layer, batch, scale=h.head_dim**-0.5), w.attn_output)


SPEC = ArchSpec(
    id="olmo2",
    hparams=(*SIZES, RMS_EPS, *ROPE_HPARAMS, VOCAB_SIZE),
    tensors=ends(),
    layer_tensors=(
        *qkv(),
        norm("attn_q_norm", "self_attn.q_norm", "n_heads*head_dim"),
        norm("attn_k_norm", "self_attn.k_norm", "n_kv_heads*head_dim"),
        norm("post_attention_norm", "post_attention_layernorm"),
        *gated_ffn(),
        norm("post_ffw_norm", "post_feedforward_layernorm"),
    ),
    forward=forward,
    check=check,
    hf_model_types=("olmo2",),
    hf_fixed={"hidden_act": ("silu",), "attention_bias": (False,)},
)
