"""gpt-oss: experts with clamped SwiGLU, attention sinks, a window in every other layer (OpenAI 2025, arXiv:2508.10925)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.archs import parts
from qtransformers.archs.heads import heads
from qtransformers.archs.parts import EXPERTS, RMS_EPS, SIZES, VOCAB_SIZE, WINDOW, ends, norm, qkv, window_period
from qtransformers.archs.rotary import ROPE_HPARAMS, rotation
from qtransformers.archs.spec import ArchSpec, HParam, Problem, TensorSpec
from qtransformers.cache import Batch, PagedCache
from qtransformers.nn import Rotation, attention, embedding, layers, linear, moe, rms_norm, rope, route


def forward(w: Any, h: Any, batch: Batch, cache: PagedCache) -> Any:
    """Logits `[R, vocab_size]` of the batch's output rows; keys and values of its T tokens enter the cache."""
    turn = rotation(h, interleaved=False)
    x = embedding(batch.tokens, w.token_embd)  # [T, n_embd]
    for i, layer in layers(w, x):
        window = h.sliding_window if (i + 1) % h.swa_period else 0
        x += self_attention(rms_norm(x, layer.attn_norm, h.rms_eps), layer, h, turn, batch, cache, i, window)
        x += experts(rms_norm(x, layer.post_attention_norm, h.rms_eps), layer, h)
    x = rms_norm(x[batch.output_rows], w.output_norm, h.rms_eps)
    return linear(x, w.output)


def self_attention(x: Any, w: Any, h: Any, turn: Rotation, batch: Batch, cache: PagedCache, layer: int, window: int) -> Any:  # fmt: skip
    """Causal grouped-query attention; a logit of each head's own lets it look at nothing."""
    q, k, v = heads(x, w, h)
    q, k = rope(q, batch.positions, *turn), rope(k, batch.positions, *turn)
    y = attention(q, k, v, cache, layer, batch, scale=h.head_dim**-0.5, window=window, sinks=w.attn_sinks)
    return linear(y, w.attn_output, w.attn_output_bias)


def experts(x: Any, w: Any, h: Any) -> Any:
    """Each token through the experts its router likes best, weighted by the softmax over these."""
    ids, weights = route(linear(x, w.ffn_gate_inp, w.ffn_gate_inp_bias), h.n_experts_used, normalize=True)
    return moe(
        x, ids, weights, w.ffn_gate_exps, w.ffn_up_exps, w.ffn_down_exps, "gpt_oss",
        w.ffn_gate_exps_bias, w.ffn_up_exps_bias, w.ffn_down_exps_bias,
    )  # fmt: skip


def check(h: Mapping[str, Any]) -> Iterator[Problem]:
    """What the hyperparameters may not be together."""
    yield from parts.check(h)
    if not h["n_experts"]:
        yield Problem("expert_count is 0; expected at least 1. The file is damaged: convert the model again")
    yield from parts.check_experts(h)


Values = NDArray[np.float32]


def columns(first: int, step: int) -> Callable[[Values, Mapping[str, Any]], Values]:
    """Every `step`-th column of a checkpoint's `[n_experts, in, out]`, as `[n_experts, out, in]`; of a bias `[n_experts, out]`."""

    def change(values: Values, h: Mapping[str, Any]) -> Values:
        kept = values[..., first::step]
        return kept if kept.ndim == 2 else kept.swapaxes(1, 2)

    return change


def _experts(name: str, shape: tuple[str, ...], hf: str, first: int, step: int) -> TensorSpec:
    return TensorSpec(
        f"ffn_{name}_exps", f"blk.{{i}}.ffn_{name}_exps", ("n_experts", *shape), "experts", "required",
        hf=f"model.layers.{{i}}.mlp.experts.{hf}", hf_suffix=("", "_bias"), hf_values=columns(first, step),
        hf_shape=("n_experts", shape[1], f"{step}*{shape[0]}"),
    )  # fmt: skip


SPEC = ArchSpec(
    id="gpt-oss",
    hparams=(
        *(p for p in SIZES if p.name != "n_ff"),
        HParam("n_ff", "expert_feed_forward_length", required=True, minimum=1, hf=("intermediate_size",)),
        RMS_EPS,
        # its authors do not round where YaRN begins and ends, and GGUF files do not say so
        *(replace(p, default=True) if p.name == "rope_unrounded" else p for p in ROPE_HPARAMS),
        WINDOW,
        window_period(2),
        *EXPERTS,
        VOCAB_SIZE,
    ),
    tensors=ends(),
    layer_tensors=(
        norm("attn_norm", "input_layernorm"),
        *qkv("required", "required"),
        TensorSpec("attn_sinks", "blk.{i}.attn_sinks", ("n_heads",), "attn", hf="model.layers.{i}.self_attn.sinks", hf_suffix=("", ".bias")),
        norm("post_attention_norm", "post_attention_layernorm"),
        TensorSpec("ffn_gate_inp", "blk.{i}.ffn_gate_inp", ("n_experts", "n_embd"), "router", "required", hf="model.layers.{i}.mlp.router"),
        _experts("gate", ("n_ff", "n_embd"), "gate_up_proj", 0, 2),
        _experts("up", ("n_ff", "n_embd"), "gate_up_proj", 1, 2),
        _experts("down", ("n_embd", "n_ff"), "down_proj", 0, 1),
    ),
    forward=forward,
    check=check,
    hf_model_types=("gpt_oss",),
    hf_fixed={"hidden_act": ("silu",), "attention_bias": (True,), "swiglu_alpha": (1.702,), "swiglu_limit": (7.0, 7)},
    unfolded=("ffn_down_exps",),  # up is clamped, and one is added
    ignored_keys=("feed_forward_length", "expert_weights_scale"),
)  # fmt: skip
