"""Phi-3 and Phi-4: q, k and v in one weight, gate and up in another, LongRoPE (arXiv:2404.14219)."""

from __future__ import annotations

from typing import Any

from qtransformers.archs.heads import fused_heads, halves
from qtransformers.archs.parts import RMS_EPS, SIZES, VOCAB_SIZE, WINDOW, check, ends, norm
from qtransformers.archs.rotary import LONGROPE, LONGROPE_HPARAMS, rotation
from qtransformers.archs.spec import ArchSpec, TensorSpec
from qtransformers.cache import Batch, PagedCache
from qtransformers.nn import Rotation, activate, attention, embedding, layers, linear, rms_norm, rope


def forward(w: Any, h: Any, batch: Batch, cache: PagedCache) -> Any:
    """Logits `[R, vocab_size]` of the batch's output rows; keys and values of its T tokens enter the cache."""
    turn = rotation(h, w, interleaved=False)
    x = embedding(batch.tokens, w.token_embd)  # [T, n_embd]
    for i, layer in layers(w, x):
        x += self_attention(rms_norm(x, layer.attn_norm, h.rms_eps), layer, h, turn, batch, cache, i)
        x += mlp(rms_norm(x, layer.ffn_norm, h.rms_eps), layer)
    x = rms_norm(x[batch.output_rows], w.output_norm, h.rms_eps)
    return linear(x, w.output)


def self_attention(x: Any, w: Any, h: Any, turn: Rotation, batch: Batch, cache: PagedCache, layer: int) -> Any:
    """Causal grouped-query attention within a window."""
    q, k, v = fused_heads(x, w, h)
    q, k = rope(q, batch.positions, *turn), rope(k, batch.positions, *turn)
    y = attention(q, k, v, cache, layer, batch, scale=h.head_dim**-0.5, window=h.sliding_window)
    return linear(y, w.attn_output)


def mlp(x: Any, w: Any) -> Any:
    """SwiGLU feed-forward."""
    gate, up = halves(linear(x, w.ffn_up))
    return linear(activate(gate, "silu", up), w.ffn_down)


SPEC = ArchSpec(
    id="phi3",
    hparams=(*SIZES, RMS_EPS, *LONGROPE_HPARAMS, WINDOW, VOCAB_SIZE),
    tensors=(*ends(), *LONGROPE),
    layer_tensors=(
        norm("attn_norm", "input_layernorm"),
        TensorSpec("attn_qkv", "blk.{i}.attn_qkv", ("n_heads*head_dim+2*n_kv_heads*head_dim", "n_embd"), "attn", hf="model.layers.{i}.self_attn.qkv_proj"),
        TensorSpec("attn_output", "blk.{i}.attn_output", ("n_embd", "n_heads*head_dim"), "attn", hf="model.layers.{i}.self_attn.o_proj"),
        norm("ffn_norm", "post_attention_layernorm"),
        TensorSpec("ffn_up", "blk.{i}.ffn_up", ("2*n_ff", "n_embd"), "dense_ffn", hf="model.layers.{i}.mlp.gate_up_proj"),
        TensorSpec("ffn_down", "blk.{i}.ffn_down", ("n_embd", "n_ff"), "dense_ffn", hf="model.layers.{i}.mlp.down_proj"),
    ),
    forward=forward,
    check=check,
    hf_model_types=("phi3",),
    hf_fixed={"hidden_act": ("silu",)},
)  # fmt: skip
