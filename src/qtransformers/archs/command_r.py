"""Command R: attention and feed-forward side by side behind one layer norm, scaled logits (docs.cohere.com/docs/command-r)."""

from __future__ import annotations

from typing import Any

from qtransformers.archs.heads import heads
from qtransformers.archs.parts import SIZES, VOCAB_SIZE, check, ends, gated_ffn, layer_norm_eps, norm, qkv, scale
from qtransformers.archs.rotary import ROPE_HPARAMS, rotation
from qtransformers.archs.spec import ArchSpec, TensorSpec
from qtransformers.cache import Batch, PagedCache
from qtransformers.nn import Rotation, attention, embedding, gated, head_norm, layer_norm, layers, linear, rope


def forward(w: Any, h: Any, batch: Batch, cache: PagedCache) -> Any:
    """Logits `[R, vocab_size]` of the batch's output rows; keys and values of its T tokens enter the cache."""
    turn = rotation(h, interleaved=True)
    x = embedding(batch.tokens, w.token_embd)  # [T, n_embd]
    for i, layer in layers(w, x):
        y = layer_norm(x, layer.attn_norm, None, h.norm_eps)
        x += self_attention(y, layer, h, turn, batch, cache, i)
        x += linear(gated(y, layer.ffn_gate, layer.ffn_up), layer.ffn_down)
    x = layer_norm(x[batch.output_rows], w.output_norm, None, h.norm_eps)
    logits = linear(x, w.output)
    return logits * h.logit_scale if h.logit_scale else logits


def self_attention(x: Any, w: Any, h: Any, turn: Rotation, batch: Batch, cache: PagedCache, layer: int) -> Any:
    """Causal grouped-query attention; Command R+ norms q and k, each head by weights of its own."""
    q, k, v = heads(x, w, h)
    if w.attn_q_norm is not None:
        q, k = head_norm(q, w.attn_q_norm, h.norm_eps), head_norm(k, w.attn_k_norm, h.norm_eps)
    q, k = rope(q, batch.positions, *turn), rope(k, batch.positions, *turn)
    return linear(attention(q, k, v, cache, layer, batch, scale=h.head_dim**-0.5), w.attn_output)


SPEC = ArchSpec(
    id="command-r",
    hparams=(
        *SIZES,
        layer_norm_eps("layer_norm_eps"),
        *ROPE_HPARAMS,
        scale("logit_scale", "logit_scale", "logit_scale"),
        VOCAB_SIZE,
    ),
    tensors=ends(),
    layer_tensors=(
        norm("attn_norm", "input_layernorm"),
        *qkv(),
        TensorSpec("attn_q_norm", "blk.{i}.attn_q_norm", ("n_heads", "head_dim"), "norm", on_absent="none", beside="attn_k_norm", hf="model.layers.{i}.self_attn.q_norm"),
        TensorSpec("attn_k_norm", "blk.{i}.attn_k_norm", ("n_kv_heads", "head_dim"), "norm", on_absent="none", beside="attn_q_norm", hf="model.layers.{i}.self_attn.k_norm"),
        *gated_ffn(),
    ),
    forward=forward,
    check=check,
    hf_model_types=("cohere",),
    hf_fixed={"hidden_act": ("silu",), "attention_bias": (False,)},
    hf_tied=True,
)  # fmt: skip
