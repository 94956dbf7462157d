"""StarCoder2: layer norms and biases everywhere, a plain GELU feed-forward (arXiv:2402.19173)."""

from __future__ import annotations

from typing import Any

from qtransformers.archs.heads import heads
from qtransformers.archs.parts import SIZES, VOCAB_SIZE, WINDOW, check, ends, layer_norm_eps, norm, qkv
from qtransformers.archs.rotary import ROPE_HPARAMS, rotation
from qtransformers.archs.spec import ArchSpec, TensorSpec
from qtransformers.cache import Batch, PagedCache
from qtransformers.nn import Rotation, activate, attention, embedding, layer_norm, layers, linear, rope


def forward(w: Any, h: Any, batch: Batch, cache: PagedCache) -> Any:
    """Logits `[R, vocab_size]` of the batch's output rows; keys and values of its T tokens enter the cache."""
    turn = rotation(h, interleaved=False)
    x = embedding(batch.tokens, w.token_embd)  # [T, n_embd]
    for i, layer in layers(w, x):
        y = layer_norm(x, layer.attn_norm, layer.attn_norm_bias, h.norm_eps)
        x += self_attention(y, layer, h, turn, batch, cache, i)
        x += mlp(layer_norm(x, layer.ffn_norm, layer.ffn_norm_bias, h.norm_eps), layer)
    x = layer_norm(x[batch.output_rows], w.output_norm, w.output_norm_bias, h.norm_eps)
    return linear(x, w.output)


def self_attention(x: Any, w: Any, h: Any, turn: Rotation, batch: Batch, cache: PagedCache, layer: int) -> Any:
    """Causal grouped-query attention within a window."""
    q, k, v = heads(x, w, h)
    q, k = rope(q, batch.positions, *turn), rope(k, batch.positions, *turn)
    y = attention(q, k, v, cache, layer, batch, scale=h.head_dim**-0.5, window=h.sliding_window)
    return linear(y, w.attn_output, w.attn_output_bias)


def mlp(x: Any, w: Any) -> Any:
    """Feed-forward with GELU between."""
    return linear(activate(linear(x, w.ffn_up, w.ffn_up_bias), "gelu"), w.ffn_down, w.ffn_down_bias)


SPEC = ArchSpec(
    id="starcoder2",
    hparams=(*SIZES, layer_norm_eps("norm_epsilon"), *ROPE_HPARAMS, WINDOW, VOCAB_SIZE),
    tensors=ends("required"),
    layer_tensors=(
        norm("attn_norm", "input_layernorm", bias="required"),
        *qkv("optional", "optional", hf_bias="use_bias"),
        norm("ffn_norm", "post_attention_layernorm", bias="required"),
        TensorSpec("ffn_up", "blk.{i}.ffn_up", ("n_ff", "n_embd"), "dense_ffn", "optional", hf="model.layers.{i}.mlp.c_fc", hf_bias="use_bias"),
        TensorSpec("ffn_down", "blk.{i}.ffn_down", ("n_embd", "n_ff"), "dense_ffn", "optional", hf="model.layers.{i}.mlp.c_proj", hf_bias="use_bias"),
    ),
    forward=forward,
    check=check,
    hf_model_types=("starcoder2",),
    hf_fixed={"hidden_act": ("gelu_pytorch_tanh",)},
    hf_tied=True,
)  # fmt: skip
