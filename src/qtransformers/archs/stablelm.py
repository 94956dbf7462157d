"""StableLM 2: layer norms, part of each head rotated; the 12B norms q and k and runs both halves side by side (arXiv:2402.17834)."""

from __future__ import annotations

from typing import Any

from qtransformers.archs.heads import heads
from qtransformers.archs.parts import SIZES, VOCAB_SIZE, check, ends, gated_ffn, layer_norm_eps, norm, qkv
from qtransformers.archs.rotary import ROPE_HPARAMS, rotation
from qtransformers.archs.spec import ArchSpec, TensorSpec
from qtransformers.cache import Batch, PagedCache
from qtransformers.nn import Rotation, attention, embedding, gated, head_norm, layer_norm, layers, linear, rope


def forward(w: Any, h: Any, batch: Batch, cache: PagedCache) -> Any:
    """Logits `[R, vocab_size]` of the batch's output rows; keys and values of its T tokens enter the cache."""
    turn = rotation(h, interleaved=False)
    x = embedding(batch.tokens, w.token_embd)  # [T, n_embd]
    for i, layer in layers(w, x):
        y = layer_norm(x, layer.attn_norm, layer.attn_norm_bias, h.norm_eps)
        x += self_attention(y, layer, h, turn, batch, cache, i)
        if layer.ffn_norm is not None:  # else side by side with attention
            y = layer_norm(x, layer.ffn_norm, layer.ffn_norm_bias, h.norm_eps)
        x += linear(gated(y, layer.ffn_gate, layer.ffn_up), layer.ffn_down)
    x = layer_norm(x[batch.output_rows], w.output_norm, w.output_norm_bias, h.norm_eps)
    return linear(x, w.output)


def self_attention(x: Any, w: Any, h: Any, turn: Rotation, batch: Batch, cache: PagedCache, layer: int) -> Any:
    """Causal grouped-query attention; norms of q and k have weights of their own for each head."""
    q, k, v = heads(x, w, h)
    if w.attn_q_norm is not None:
        q, k = head_norm(q, w.attn_q_norm, h.norm_eps), head_norm(k, w.attn_k_norm, h.norm_eps)
    q, k = rope(q, batch.positions, *turn), rope(k, batch.positions, *turn)
    return linear(attention(q, k, v, cache, layer, batch, scale=h.head_dim**-0.5), w.attn_output)


SPEC = ArchSpec(
    id="stablelm",
    hparams=(*SIZES, layer_norm_eps("layer_norm_eps"), *ROPE_HPARAMS, VOCAB_SIZE),
    tensors=ends("required"),
    layer_tensors=(
        norm("attn_norm", "input_layernorm", bias="required"),
        *qkv("optional", hf_bias="use_qkv_bias"),
        TensorSpec("attn_q_norm", "blk.{i}.attn_q_norm", ("n_heads", "head_dim"), "norm", on_absent="none", beside="attn_k_norm", hf="model.layers.{i}.self_attn.q_layernorm.norms.{e}"),
        TensorSpec("attn_k_norm", "blk.{i}.attn_k_norm", ("n_kv_heads", "head_dim"), "norm", on_absent="none", beside="attn_q_norm", hf="model.layers.{i}.self_attn.k_layernorm.norms.{e}"),
        norm("ffn_norm", "post_attention_layernorm", bias="optional", on_absent="none"),
        *gated_ffn(),
    ),
    forward=forward,
    check=check,
    hf_model_types=("stablelm",),
    hf_fixed={"hidden_act": ("silu",)},
    ignored_keys=("use_parallel_residual",),
)  # fmt: skip
