"""Qwen2-MoE (a shared expert behind a gate) and Qwen3-MoE (weights of the chosen experts sum to one)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from qtransformers.archs import qwen
from qtransformers.archs.parts import (
    EXPERTS,
    RMS_EPS,
    SIZES,
    VOCAB_SIZE,
    check_mixture,
    ends,
    experts_ffn,
    norm,
    qkv,
    shared_expert,
    shared_expert_rows,
)
from qtransformers.archs.rotary import ROPE_HPARAMS, rotation
from qtransformers.archs.spec import ArchSpec, HParam, TensorSpec
from qtransformers.cache import Batch, PagedCache
from qtransformers.nn import activate, embedding, layers, linear, moe, rms_norm, route


def forward(w: Any, h: Any, batch: Batch, cache: PagedCache) -> Any:
    """Logits `[R, vocab_size]` of the batch's output rows; keys and values of its T tokens enter the cache."""
    turn = rotation(h, interleaved=False)
    x = embedding(batch.tokens, w.token_embd)  # [T, n_embd]
    for i, layer in layers(w, x):
        x += qwen.self_attention(rms_norm(x, layer.attn_norm, h.rms_eps), layer, h, turn, batch, cache, i)
        y = rms_norm(x, layer.ffn_norm, h.rms_eps)
        x += routed(y, layer, h, partial(gated_shared_expert, y, layer) if "n_ff_shared" in h else None)
    x = rms_norm(x[batch.output_rows], w.output_norm, h.rms_eps)
    return linear(x, w.output)


def routed(x: Any, w: Any, h: Any, beside: Callable[[], Any] | None = None) -> Any:
    """Each token through the experts its router likes best, and what `beside()` adds."""
    ids, weights = route(linear(x, w.ffn_gate_inp), h.n_experts_used, normalize=h.norm_weights)
    return moe(x, ids, weights, w.ffn_gate_exps, w.ffn_up_exps, w.ffn_down_exps, beside=beside)


def gated_shared_expert(x: Any, w: Any) -> Any:
    """The expert of every token, as far as its gate opens."""
    opening = activate((x @ w.ffn_gate_inp_shexp)[:, None], "sigmoid")  # [T, 1]
    return opening * shared_expert(x, w)


def as_vector(values: Any, h: Any) -> Any:
    """A matrix of one row as a vector."""
    return values.reshape(-1)


N_FF_EXPERT = HParam(
    "n_ff_expert", "expert_feed_forward_length", minimum=1, hf=("moe_intermediate_size",),
    default=lambda h: max(1, h["n_ff"] // max(1, h["n_experts_used"])),
)  # fmt: skip
N_FF_SHARED = HParam(
    "n_ff_shared", "expert_shared_feed_forward_length", minimum=1, hf=("shared_expert_intermediate_size",),
    default=lambda h: h["n_ff"],
)  # fmt: skip
SHARED_GATE = TensorSpec("ffn_gate_inp_shexp", "blk.{i}.ffn_gate_inp_shexp", ("n_embd",), "router", hf="model.layers.{i}.mlp.shared_expert_gate", hf_values=as_vector, hf_shape=("1", "n_embd"))  # fmt: skip
SPARSE = {
    "hidden_act": ("silu",),
    "use_sliding_window": (False,),
    "decoder_sparse_step": (1,),
    "mlp_only_layers": ([],),
}


def norm_weights(default: bool) -> HParam:
    """Whether the weights of the chosen experts sum to one; GGUF files leave it to the architecture."""
    return HParam("norm_weights", "expert_weights_norm", bool, default=default, hf=("norm_topk_prob",))


def experts_of(*extra: TensorSpec) -> tuple[TensorSpec, ...]:
    """A layer's rows behind attention."""
    return (norm("ffn_norm", "post_attention_layernorm"), *experts_ffn(n_ff="n_ff_expert"), *extra)


QWEN2MOE = ArchSpec(
    id="qwen2moe",
    hparams=(
        *SIZES,
        RMS_EPS,
        *ROPE_HPARAMS,
        *EXPERTS,
        N_FF_EXPERT,
        N_FF_SHARED,
        norm_weights(False),
        VOCAB_SIZE,
    ),
    tensors=ends(),
    layer_tensors=(
        norm("attn_norm", "input_layernorm"),
        *qkv("required"),
        *experts_of(
            SHARED_GATE,
            *shared_expert_rows("model.layers.{i}.mlp.shared_expert", "n_ff_shared"),
        ),
    ),
    forward=forward,
    check=check_mixture,
    hf_model_types=("qwen2_moe",),
    hf_fixed={**SPARSE, "norm_topk_prob": (False,)},
)  # fmt: skip

QWEN3MOE = replace(
    QWEN2MOE,
    id="qwen3moe",
    hparams=(*SIZES, RMS_EPS, *ROPE_HPARAMS, *EXPERTS, N_FF_EXPERT, norm_weights(True), VOCAB_SIZE),
    layer_tensors=(norm("attn_norm", "input_layernorm"), *qkv(), *qwen.QK_NORMS, *experts_of()),
    hf_model_types=("qwen3_moe",),
    hf_fixed={**SPARSE, "norm_topk_prob": (True,), "attention_bias": (False,)},
)
