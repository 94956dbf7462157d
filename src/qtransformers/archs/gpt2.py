"""GPT-2: learned positions, layer norms, biases everywhere (Radford et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from qtransformers.archs import starcoder
from qtransformers.archs.heads import fused_heads
from qtransformers.archs.parts import SIZES, VOCAB_SIZE, check_heads, ends, layer_norm_eps
from qtransformers.archs.spec import ArchSpec, Problem, TensorSpec
from qtransformers.cache import Batch, PagedCache
from qtransformers.nn import attention, embedding, layer_norm, layers, linear


def forward(w: Any, h: Any, batch: Batch, cache: PagedCache) -> Any:
    """Logits `[R, vocab_size]` of the batch's output rows; keys and values of its T tokens enter the cache."""
    x = embedding(batch.tokens, w.token_embd) + embedding(batch.positions, w.position_embd)  # [T, n_embd]
    for i, layer in layers(w, x):
        x += self_attention(layer_norm(x, layer.attn_norm, layer.attn_norm_bias, h.norm_eps), layer, h, batch, cache, i)
        x += starcoder.mlp(layer_norm(x, layer.ffn_norm, layer.ffn_norm_bias, h.norm_eps), layer)
    x = layer_norm(x[batch.output_rows], w.output_norm, w.output_norm_bias, h.norm_eps)
    return linear(x, w.output)


def self_attention(x: Any, w: Any, h: Any, batch: Batch, cache: PagedCache, layer: int) -> Any:
    """Causal attention."""
    q, k, v = fused_heads(x, w, h)
    y = attention(q, k, v, cache, layer, batch, scale=h.head_dim**-0.5)
    return linear(y, w.attn_output, w.attn_output_bias)


def check(h: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong between sizes: three matrices of n_embd rows are one, so heads must divide that."""
    yield from check_heads(h)
    if h["n_heads"] * h["head_dim"] != h["n_embd"] or h["n_kv_heads"] != h["n_heads"]:
        yield Problem(
            f"attention.head_count is {h['n_heads']} with {h['n_kv_heads']} for keys; expected as many of both, dividing embedding_length, {h['n_embd']}"
        )


def n_inner(config: Mapping[str, Any]) -> Any:
    """The width of the feed-forward layer."""
    return config.get("n_inner") or 4 * config["n_embd"]


def transposed(values: Any, h: Any) -> Any:
    """Checkpoints have matrices as (in, out)."""
    return values.T


HF = {"n_layers": ("n_layer",), "context_length": ("n_positions", "n_ctx"), "n_embd": ("n_embd",), "n_ff": (n_inner,), "n_heads": ("n_head",), "n_kv_heads": (), "head_dim": ()}  # fmt: skip


def layer_norm_of(attr: str, hf: str) -> TensorSpec:
    """A layer norm with a bias."""
    return TensorSpec(attr, f"blk.{{i}}.{attr}", ("n_embd",), "norm", "required", hf=f"h.{{i}}.{hf}")


def with_bias(attr: str, shape: tuple[str, ...], role: str, hf: str) -> TensorSpec:
    """A matrix with a bias, which transposing leaves alone."""
    return TensorSpec(
        attr,
        f"blk.{{i}}.{attr}",
        shape,
        role,
        "required",
        hf=f"h.{{i}}.{hf}",
        hf_values=transposed,
        hf_shape=shape[::-1],
    )


SPEC = ArchSpec(
    id="gpt2",
    hparams=(
        *(replace(p, hf=HF[p.name]) if p.name in HF else p for p in SIZES),
        layer_norm_eps("layer_norm_epsilon"),
        VOCAB_SIZE,
    ),
    tensors=(
        *ends("required", "wte", "ln_f"),
        TensorSpec("position_embd", "position_embd", ("context_length", "n_embd"), "position", hf="wpe"),
    ),
    layer_tensors=(
        layer_norm_of("attn_norm", "ln_1"),
        with_bias("attn_qkv", ("3*n_embd", "n_embd"), "attn", "attn.c_attn"),
        with_bias("attn_output", ("n_embd", "n_embd"), "attn", "attn.c_proj"),
        layer_norm_of("ffn_norm", "ln_2"),
        with_bias("ffn_up", ("n_ff", "n_embd"), "dense_ffn", "mlp.c_fc"),
        with_bias("ffn_down", ("n_embd", "n_ff"), "dense_ffn", "mlp.c_proj"),
    ),
    forward=forward,
    check=check,
    hf_model_types=("gpt2",),
    hf_fixed={"activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,)},
    hf_tied=True,
    hf_names=((r"^transformer\.", ""), (r"^h\.\d+\.attn\.(bias|masked_bias)$", "")),
)  # fmt: skip
