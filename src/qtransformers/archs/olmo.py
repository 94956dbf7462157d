"""OLMo 2 and 3: norms behind attention and feed-forward instead of before, and over all heads of q and k (arXiv:2501.00656).

OLMo 3 has windows in three of four layers, which are not stretched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qtransformers.archs.heads import by_head
from qtransformers.archs.parts import (
    RMS_EPS,
    SIZES,
    VOCAB_SIZE,
    WINDOW,
    check,
    ends,
    gated_ffn,
    norm,
    qkv,
    window_period,
)
from qtransformers.archs.rotary import ROPE_HPARAMS, rope_base_swa, rotation, unstretched
from qtransformers.archs.spec import ArchSpec
from qtransformers.cache import Batch, PagedCache
from qtransformers.nn import Rotation, attention, embedding, gated, layers, linear, linears, rms_norm, rope


def forward(w: Any, h: Any, batch: Batch, cache: PagedCache) -> Any:
    """Logits `[R, vocab_size]` of the batch's output rows; keys and values of its T tokens enter the cache."""
    everywhere, nearby = rotation(h, interleaved=False), unstretched(h)
    x = embedding(batch.tokens, w.token_embd)  # [T, n_embd]
    for i, layer in layers(w, x):
        window = h.sliding_window if (i + 1) % h.swa_period else 0
        y = self_attention(x, layer, h, nearby if window else everywhere, batch, cache, i, window)
        x += rms_norm(y, layer.post_attention_norm, h.rms_eps)
        y = linear(gated(x, layer.ffn_gate, layer.ffn_up), layer.ffn_down)
        x += rms_norm(y, layer.post_ffw_norm, h.rms_eps)
    x = rms_norm(x[batch.output_rows], w.output_norm, h.rms_eps)
    return linear(x, w.output)


def self_attention(x: Any, w: Any, h: Any, turn: Rotation, batch: Batch, cache: PagedCache, layer: int, window: int) -> Any:  # fmt: skip
    """Causal grouped-query attention, within a window where there is one."""
    q, k, v = linears(x, (w.attn_q, w.attn_k, w.attn_v), (None, None, None))
    q, k = rms_norm(q, w.attn_q_norm, h.rms_eps), rms_norm(k, w.attn_k_norm, h.rms_eps)
    q, k, v = by_head(q, h.head_dim), by_head(k, h.head_dim), by_head(v, h.head_dim_v)
    q, k = rope(q, batch.positions, *turn), rope(k, batch.positions, *turn)
    return linear(attention(q, k, v, cache, layer, batch, scale=h.head_dim**-0.5, window=window), w.attn_output)


WINDOWS = (window_period(4), rope_base_swa(lambda h: float(h["rope_base"])))  # of OLMo 3
SPEC = ArchSpec(
    id="olmo2",
    hparams=(
        *SIZES,
        RMS_EPS,
        *ROPE_HPARAMS,
        WINDOW,
        *(replace(p, applies=lambda h: h["sliding_window"] > 0) for p in WINDOWS),
        VOCAB_SIZE,
    ),
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
    hf_model_types=("olmo2", "olmo3"),
    hf_fixed={"hidden_act": ("silu",), "attention_bias": (False,)},
)
