"""Granite 3: Llama with factors on embedding, residual, scores and logits (github.com/ibm-granite/granite-3.0-language-models)."""

from __future__ import annotations

from typing import Any

from qtransformers.archs import llama
from qtransformers.archs.heads import heads
from qtransformers.archs.parts import RMS_EPS, SIZES, VOCAB_SIZE, check, ends, gated_ffn, norm, qkv, scale
from qtransformers.archs.rotary import ROPE_FREQS, ROPE_HPARAMS, rotation
from qtransformers.archs.spec import ArchSpec
from qtransformers.cache import Batch, PagedCache
from qtransformers.nn import Rotation, attention, embedding, layers, linear, rms_norm, rope


def forward(w: Any, h: Any, batch: Batch, cache: PagedCache) -> Any:
    """Logits `[R, vocab_size]` of the batch's output rows; keys and values of its T tokens enter the cache."""
    turn = rotation(h, w, interleaved=True)
    x = embedding(batch.tokens, w.token_embd) * h.embedding_scale  # [T, n_embd]
    for i, layer in layers(w, x):
        x += h.residual_scale * self_attention(rms_norm(x, layer.attn_norm, h.rms_eps), layer, h, turn, batch, cache, i)
        x += h.residual_scale * llama.mlp(rms_norm(x, layer.ffn_norm, h.rms_eps), layer)
    x = rms_norm(x[batch.output_rows], w.output_norm, h.rms_eps)
    return linear(x, w.output) / h.logit_scale


def self_attention(x: Any, w: Any, h: Any, turn: Rotation, batch: Batch, cache: PagedCache, layer: int) -> Any:
    """Causal grouped-query attention with a scale of the model's own."""
    q, k, v = heads(x, w, h)
    q, k = rope(q, batch.positions, *turn), rope(k, batch.positions, *turn)
    y = attention(q, k, v, cache, layer, batch, scale=h.attn_scale or h.head_dim**-0.5)
    return linear(y, w.attn_output, w.attn_output_bias)


SPEC = ArchSpec(
    id="granite",
    hparams=(
        *SIZES,
        RMS_EPS,
        *ROPE_HPARAMS,
        scale("embedding_scale", "embedding_scale", "embedding_multiplier", 1.0),
        scale("residual_scale", "residual_scale", "residual_multiplier", 1.0),
        scale("attn_scale", "attention.scale", "attention_multiplier"),
        scale("logit_scale", "logit_scale", "logits_scaling", 1.0),
        VOCAB_SIZE,
    ),
    tensors=(*ends(), ROPE_FREQS),
    layer_tensors=(
        norm("attn_norm", "input_layernorm"),
        *qkv("optional", "optional", permute=True),
        norm("ffn_norm", "post_attention_layernorm"),
        *gated_ffn("optional"),
    ),
    forward=forward,
    check=check,
    hf_model_types=("granite",),
    hf_fixed={"hidden_act": ("silu",)},
)
