"""Gemma 2 (soft caps, every other layer a window; arXiv:2408.00118) and Gemma 3 (norms of q and k, two rope bases; arXiv:2503.19786)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from qtransformers.archs.heads import heads
from qtransformers.archs.parts import (
    RMS_EPS,
    SIZES,
    VOCAB_SIZE,
    WINDOW,
    check,
    ends,
    gated_ffn,
    norm,
    qkv,
    scale,
    window_period,
)
from qtransformers.archs.rotary import ROPE_HPARAMS, rope_base_swa, rotation, unstretched
from qtransformers.archs.spec import ArchSpec, HParam
from qtransformers.cache import Batch, PagedCache
from qtransformers.nn import Rotation, attention, embedding, gated, layers, linear, rms_norm, rope, softcap


def forward(w: Any, h: Any, batch: Batch, cache: PagedCache) -> Any:
    """Logits `[R, vocab_size]` of the batch's output rows; keys and values of its T tokens enter the cache."""
    everywhere = rotation(h, interleaved=False)
    nearby = unstretched(h) if "rope_base_swa" in h else everywhere
    x = embedding(batch.tokens, w.token_embd) * h.n_embd**0.5  # [T, n_embd]
    for i, layer in layers(w, x):
        window = h.sliding_window if (i + 1) % h.swa_period else 0
        y = rms_norm(x, layer.attn_norm, h.rms_eps)
        y = self_attention(y, layer, h, nearby if window else everywhere, batch, cache, i, window)
        x += rms_norm(y, layer.post_attention_norm, h.rms_eps)
        y = mlp(rms_norm(x, layer.ffn_norm, h.rms_eps), layer)
        x += rms_norm(y, layer.post_ffw_norm, h.rms_eps)
    x = rms_norm(x[batch.output_rows], w.output_norm, h.rms_eps)
    return softcap(linear(x, w.output), h.final_softcap)


def self_attention(x: Any, w: Any, h: Any, turn: Rotation, batch: Batch, cache: PagedCache, layer: int, window: int) -> Any:  # fmt: skip
    """Causal grouped-query attention; Gemma 3 norms each head of q and k."""
    q, k, v = heads(x, w, h)
    if getattr(w, "attn_q_norm", None) is not None:
        q, k = rms_norm(q, w.attn_q_norm, h.rms_eps), rms_norm(k, w.attn_k_norm, h.rms_eps)
    q, k = rope(q, batch.positions, *turn), rope(k, batch.positions, *turn)
    y = attention(q, k, v, cache, layer, batch, scale=h.attn_scale, window=window, softcap=h.get("attn_softcap", 0.0))
    return linear(y, w.attn_output)


def mlp(x: Any, w: Any) -> Any:
    """GELU-gated feed-forward."""
    return linear(gated(x, w.ffn_gate, w.ffn_up, "gelu"), w.ffn_down)


def query_pre_attn_scalar(config: Mapping[str, Any]) -> Any:
    """What scores are multiplied by; config.json has it to the power of -2."""
    scalar = config.get("query_pre_attn_scalar")
    return scalar**-0.5 if scalar is not None else None


def attn_scale(of_27b: int) -> HParam:
    """GGUF has no key for it: the 27B, known by its layers, goes by the width of a head as if there were no key_length."""
    return HParam(
        "attn_scale", "attention.scale", float, minimum=1e-6, hf=(query_pre_attn_scalar,),
        default=lambda h: (h["n_embd"] // h["n_heads"] if h["n_layers"] == of_27b else h["head_dim"]) ** -0.5,
    )  # fmt: skip


def one_more(values: Any, h: Any) -> Any:
    """Checkpoints have norms about zero, GGUF files about one."""
    return values + 1


def one_less(values: Any, h: Any) -> Any:
    """The other way."""
    return values - 1


ONE_MORE: dict[str, Any] = {"hf_values": one_more, "hf_back": one_less}


def gemma_norm(attr: str, hf: str, size: str = "n_embd") -> Any:
    """A norm whose weight is one more than the checkpoint's."""
    return norm(attr, hf, size, **ONE_MORE)


ENDS = tuple(replace(t, **ONE_MORE) if t.role == "norm" else t for t in ends())
GEMMA2 = ArchSpec(
    id="gemma2",
    hparams=(
        *SIZES,
        RMS_EPS,
        *ROPE_HPARAMS,
        WINDOW,
        window_period(2),
        attn_scale(46),
        scale("attn_softcap", "attn_logit_softcapping", "attn_logit_softcapping", 50.0),
        scale("final_softcap", "final_logit_softcapping", "final_logit_softcapping", 30.0),
        VOCAB_SIZE,
    ),
    tensors=ENDS,
    layer_tensors=(
        gemma_norm("attn_norm", "input_layernorm"),
        *qkv(),
        gemma_norm("post_attention_norm", "post_attention_layernorm"),
        gemma_norm("ffn_norm", "pre_feedforward_layernorm"),
        *gated_ffn(),
        gemma_norm("post_ffw_norm", "post_feedforward_layernorm"),
    ),
    forward=forward,
    check=check,
    hf_model_types=("gemma2",),
    hf_fixed={"hidden_activation": ("gelu_pytorch_tanh",), "attention_bias": (False,), "use_bidirectional_attention": (False,)},
    hf_tied=True,
)  # fmt: skip

GEMMA3 = replace(
    GEMMA2,
    id="gemma3",
    hparams=(
        *SIZES,
        RMS_EPS,
        *ROPE_HPARAMS,
        rope_base_swa(lambda h: 10000.0),
        WINDOW,
        window_period(6),
        attn_scale(62),
        scale("final_softcap", "final_logit_softcapping", "final_logit_softcapping"),
        VOCAB_SIZE,
    ),
    layer_tensors=(
        *GEMMA2.layer_tensors[:5],
        gemma_norm("attn_q_norm", "self_attn.q_norm", "head_dim"),
        gemma_norm("attn_k_norm", "self_attn.k_norm", "head_dim"),
        *GEMMA2.layer_tensors[5:],
    ),
    hf_model_types=("gemma3_text", "gemma3"),
    hf_names=((r"^(model\.)?(vision_tower|multi_modal_projector)\..*", ""), (r"^(model\.)?language_model\.(model\.)?", "model."), (r"^model\.lm_head", "lm_head")),
)  # fmt: skip
