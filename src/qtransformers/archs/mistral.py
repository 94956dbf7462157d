"""Ministral 3: Llama with YaRN and queries that grow with the logarithm of the position (mistral.ai, 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtransformers.archs import llama
from qtransformers.archs.heads import heads
from qtransformers.archs.parts import RMS_EPS, SIZES, VOCAB_SIZE, WINDOW, check, ends, gated_ffn, norm, qkv
from qtransformers.archs.rotary import ROPE_FREQS, ROPE_HPARAMS, rotation, said
from qtransformers.archs.spec import ArchSpec, HParam
from qtransformers.cache import Batch, PagedCache
from qtransformers.nn import Rotation, attention, embedding, layers, linear, log1p, rms_norm, rope


def forward(w: Any, h: Any, batch: Batch, cache: PagedCache) -> Any:
    """Logits `[R, vocab_size]` of the batch's output rows; keys and values of its T tokens enter the cache."""
    turn = rotation(h, w, interleaved=True)
    growth = 1 + h.temperature_scale * log1p(batch.positions // h.rope_original)[:, None, None]  # [T, 1, 1]
    x = embedding(batch.tokens, w.token_embd)  # [T, n_embd]
    for i, layer in layers(w, x):
        x += self_attention(rms_norm(x, layer.attn_norm, h.rms_eps), layer, h, turn, growth, batch, cache, i)
        x += llama.mlp(rms_norm(x, layer.ffn_norm, h.rms_eps), layer)
    x = rms_norm(x[batch.output_rows], w.output_norm, h.rms_eps)
    return linear(x, w.output)


def self_attention(x: Any, w: Any, h: Any, turn: Rotation, growth: Any, batch: Batch, cache: PagedCache, layer: int) -> Any:  # fmt: skip
    """Causal grouped-query attention, sharper the further a token is beyond the original context."""
    q, k, v = heads(x, w, h)
    q, k = rope(q, batch.positions, *turn) * growth, rope(k, batch.positions, *turn)
    y = attention(q, k, v, cache, layer, batch, scale=h.head_dim**-0.5, window=h.sliding_window)
    return linear(y, w.attn_output, w.attn_output_bias)


def llama_4_scaling_beta(config: Mapping[str, Any]) -> Any:
    """By how much queries grow."""
    return said(config).get("llama_4_scaling_beta")


SPEC = ArchSpec(
    id="mistral3",
    hparams=(
        *SIZES,
        RMS_EPS,
        *ROPE_HPARAMS,
        HParam("temperature_scale", "attention.temperature_scale", float, default=0.0, minimum=0, hf=(llama_4_scaling_beta,)),
        WINDOW,
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
    hf_model_types=("ministral3", "mistral3"),
    hf_fixed={"hidden_act": ("silu",)},
    hf_names=((r"^(model\.)?(vision_tower|multi_modal_projector)\..*", ""), (r"^(model\.)?language_model\.(model\.)?", "model."), (r"^model\.lm_head", "lm_head")),
)  # fmt: skip
