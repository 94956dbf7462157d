"""GLM-4: norms around attention and feed-forward, half of each head rotated, gate and up in one weight (arXiv:2406.12793)."""

from __future__ import annotations

from typing import Any

from qtransformers.archs import phi
from qtransformers.archs.heads import heads
from qtransformers.archs.parts import RMS_EPS, SIZES, VOCAB_SIZE, check, ends, norm, qkv
from qtransformers.archs.rotary import ROPE_HPARAMS, rotation
from qtransformers.archs.spec import ArchSpec
from qtransformers.cache import Batch, PagedCache
from qtransformers.nn import Rotation, attention, embedding, layers, linear, rms_norm, rope


def forward(w: Any, h: Any, batch: Batch, cache: PagedCache) -> Any:
    """Logits `[R, vocab_size]` of the batch's output rows; keys and values of its T tokens enter the cache."""
    turn = rotation(h, interleaved=True)
    x = embedding(batch.tokens, w.token_embd)  # [T, n_embd]
    for i, layer in layers(w, x):
        y = self_attention(rms_norm(x, layer.attn_norm, h.rms_eps), layer, h, turn, batch, cache, i)
        x += rms_norm(y, layer.post_attention_norm, h.rms_eps)
        y = phi.mlp(rms_norm(x, layer.ffn_norm, h.rms_eps), layer)
        x += rms_norm(y, layer.post_ffw_norm, h.rms_eps)
    x = rms_norm(x[batch.output_rows], w.output_norm, h.rms_eps)
    return linear(x, w.output)


def self_attention(x: Any, w: Any, h: Any, turn: Rotation, batch: Batch, cache: PagedCache, layer: int) -> Any:
    """Causal grouped-query attention."""
    q, k, v = heads(x, w, h)
    q, k = rope(q, batch.positions, *turn), rope(k, batch.positions, *turn)
    return linear(attention(q, k, v, cache, layer, batch, scale=h.head_dim**-0.5), w.attn_output)


SPEC = ArchSpec(
    id="glm4",
    hparams=(*SIZES, RMS_EPS, *ROPE_HPARAMS, VOCAB_SIZE),
    tensors=ends(),
    layer_tensors=(
        norm("attn_norm", "input_layernorm"),
        *qkv("optional"),
        norm("post_attention_norm", "post_self_attn_layernorm"),
        norm("ffn_norm", "post_attention_layernorm"),
        *phi.SPEC.layer_tensors[-2:],
        norm("post_ffw_norm", "post_mlp_layernorm"),
    ),
    forward=forward,
    check=check,
    hf_model_types=("glm4",),
    hf_fixed={"hidden_act": ("silu",)},
)
