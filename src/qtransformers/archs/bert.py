"""Encoders: BERT (arXiv:1810.04805) and Nomic BERT (arXiv:2402.01613), which has rope for positions and SwiGLU.

Attention looks both ways, and norms come after the sums. What a text's hidden states become is `embed.pool`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from qtransformers.archs import parts
from qtransformers.archs.parts import SIZES, VOCAB_SIZE, layer_norm_eps
from qtransformers.archs.rotary import ROPE_HPARAMS, check_rope, rotation
from qtransformers.archs.spec import ArchSpec, Bias, HParam, Problem, TensorSpec
from qtransformers.cache import Batch
from qtransformers.nn import Rotation, activate, attention, embedding, gated, layer_norm, linear, linears, rope


def forward(w: Any, h: Any, batch: Batch, cache: Any = None) -> Any:
    """Hidden states `[T, n_embd]` of every token; each sees its whole text, which must be in the batch. Nothing is cached."""
    x = embedding(batch.tokens, w.token_embd)
    if w.token_types is not None:
        x += embedding(batch.tokens * 0, w.token_types)  # all is the first of two texts
    turn = None
    if getattr(w, "position_embd", None) is not None:
        x += embedding(batch.positions, w.position_embd)
    else:
        turn = rotation(h, interleaved=False)
    x = layer_norm(x, w.token_embd_norm, w.token_embd_norm_bias, h.norm_eps)
    for layer in w.layers:
        x += self_attention(x, layer, h, turn, batch)
        x = layer_norm(x, layer.attn_output_norm, layer.attn_output_norm_bias, h.norm_eps)
        x += mlp(x, layer)
        x = layer_norm(x, layer.layer_output_norm, layer.layer_output_norm_bias, h.norm_eps)
    return x


def self_attention(x: Any, w: Any, h: Any, turn: Rotation | None, batch: Batch) -> Any:
    """Attention within each text, `[T, n_embd]` to `[T, n_embd]`."""
    if hasattr(w, "attn_qkv"):
        qkv = linear(x, w.attn_qkv, w.attn_qkv_bias).reshape(len(x), 3, h.n_heads, h.head_dim)
        q, k, v = (qkv[:, i].copy() for i in range(3))
    else:
        qkv = linears(x, (w.attn_q, w.attn_k, w.attn_v), (w.attn_q_bias, w.attn_k_bias, w.attn_v_bias))
        q, k, v = (t.reshape(len(x), h.n_heads, h.head_dim) for t in qkv)
    if turn is not None:
        q, k = rope(q, batch.positions, *turn), rope(k, batch.positions, *turn)
    y = attention(q, k, v, None, 0, batch, scale=h.head_dim**-0.5, causal=False)
    return linear(y, w.attn_output, w.attn_output_bias)


def mlp(x: Any, w: Any) -> Any:
    """Two products with GELU between, or SwiGLU where there is a gate."""
    if hasattr(w, "ffn_gate"):
        return linear(gated(x, w.ffn_gate, w.ffn_up), w.ffn_down)
    return linear(activate(linear(x, w.ffn_up, w.ffn_up_bias), "gelu_erf"), w.ffn_down, w.ffn_down_bias)


def check(h: Mapping[str, Any]) -> Iterator[Problem]:
    """What the hyperparameters may not be together."""
    if h["n_embd"] % h["n_heads"]:
        yield Problem(
            f"embedding_length is {h['n_embd']}, no multiple of attention.head_count, {h['n_heads']}. "
            "The file is damaged: convert the model again"
        )
    yield from parts.check_heads(h)


def check_rotated(h: Mapping[str, Any]) -> Iterator[Problem]:
    """The same, of an encoder with rope."""
    yield from check(h)
    yield from check_rope(h)


def _tensor(attr: str, shape: tuple[str, ...], role: str, bias: Bias, hf: str, **more: Any) -> TensorSpec:
    return TensorSpec(attr, f"blk.{{i}}.{attr}", shape, role, bias, hf=hf, **more)


# Of the file's metadata: attention looks both ways, and how a text's hidden states become one
ENCODER_HPARAMS = (
    HParam("causal", "attention.causal", bool, default=False, choices=(False,), hf=("is_decoder",)),
    HParam("pooling", "pooling_type", default=0, choices=(0, 1, 2, 3), hf=("pooling_type",), agree="free"),
    HParam("n_token_types", "token_type_count", default=0, minimum=0, hf=("type_vocab_size",), rows_of="token_types", agree="at_most"),
    VOCAB_SIZE,
)  # fmt: skip
HEADS = ("^(cls|pooler|classifier|lm_head)\\..*$", "")  # what other tasks put on top

BERT = ArchSpec(
    id="bert",
    kind="encoder",
    hparams=(*SIZES, layer_norm_eps("layer_norm_eps"), *ENCODER_HPARAMS),
    tensors=(
        TensorSpec("token_embd", "token_embd", ("vocab_size", "n_embd"), "embed", hf="embeddings.word_embeddings"),
        TensorSpec("token_types", "token_types", ("n_token_types", "n_embd"), "position", on_absent="none", hf="embeddings.token_type_embeddings"),
        TensorSpec("position_embd", "position_embd", ("context_length", "n_embd"), "position", hf="embeddings.position_embeddings"),
        TensorSpec("token_embd_norm", "token_embd_norm", ("n_embd",), "norm", "required", hf="embeddings.LayerNorm"),
    ),
    layer_tensors=(
        *(
            _tensor(f"attn_{x[0]}", ("n_embd", "n_embd"), "attn", "required", f"encoder.layer.{{i}}.attention.self.{x}")
            for x in ("query", "key", "value")
        ),
        _tensor("attn_output", ("n_embd", "n_embd"), "attn", "required", "encoder.layer.{i}.attention.output.dense"),
        _tensor("attn_output_norm", ("n_embd",), "norm", "required", "encoder.layer.{i}.attention.output.LayerNorm"),
        _tensor("ffn_up", ("n_ff", "n_embd"), "dense_ffn", "required", "encoder.layer.{i}.intermediate.dense"),
        _tensor("ffn_down", ("n_embd", "n_ff"), "dense_ffn", "required", "encoder.layer.{i}.output.dense"),
        _tensor("layer_output_norm", ("n_embd",), "norm", "required", "encoder.layer.{i}.output.LayerNorm"),
    ),
    forward=forward,
    check=check,
    hf_model_types=("bert",),
    hf_fixed={"hidden_act": ("gelu",), "position_embedding_type": ("absolute",)},
    hf_names=((r"^bert\.", ""), (r"\.gamma$", ".weight"), (r"\.beta$", ".bias"), (r"^embeddings\.position_ids$", ""), HEADS),
)  # fmt: skip


def nomic_context(config: Mapping[str, Any]) -> Any:
    """Tokens the model was trained for, of more that its rope could count."""
    n = config.get("max_position_embeddings", config.get("n_positions"))
    return min(n, config.get("max_trained_positions", 2048)) if "n_positions" in config else n


_NOMIC_NAMES = {
    "n_layers": "n_layer", "n_embd": "n_embd", "n_ff": "n_inner", "n_heads": "n_head",
    "norm_eps": "layer_norm_epsilon", "rope_base": "rotary_emb_base",
}  # fmt: skip


def _nomic(p: HParam) -> HParam:
    """A row with the key of the model's own config.json too, which is not that of transformers."""
    if p.name == "context_length":
        return replace(p, hf=(nomic_context,))
    if p.name == "rope_base":
        p = replace(p, default=1000.0)
    return replace(p, hf=(*p.hf[:-1], _NOMIC_NAMES[p.name], *p.hf[-1:])) if p.name in _NOMIC_NAMES else p


NOMIC_BERT = replace(
    BERT,
    id="nomic-bert",
    hparams=tuple(_nomic(p) for p in (*SIZES, layer_norm_eps("layer_norm_eps"), *ROPE_HPARAMS, *ENCODER_HPARAMS)),
    tensors=(
        TensorSpec("token_embd", "token_embd", ("vocab_size", "n_embd"), "embed", hf="embeddings.word_embeddings"),
        TensorSpec("token_types", "token_types", ("n_token_types", "n_embd"), "position", on_absent="none", hf="embeddings.token_type_embeddings"),
        TensorSpec("token_embd_norm", "token_embd_norm", ("n_embd",), "norm", "required", hf="emb_ln"),
    ),
    layer_tensors=(
        _tensor("attn_qkv", ("3*n_embd", "n_embd"), "attn", "never", "encoder.layers.{i}.attn.Wqkv"),
        _tensor("attn_output", ("n_embd", "n_embd"), "attn", "never", "encoder.layers.{i}.attn.out_proj"),
        _tensor("attn_output_norm", ("n_embd",), "norm", "required", "encoder.layers.{i}.norm1"),
        _tensor("ffn_gate", ("n_ff", "n_embd"), "dense_ffn", "never", "encoder.layers.{i}.mlp.fc12"),
        _tensor("ffn_up", ("n_ff", "n_embd"), "dense_ffn", "never", "encoder.layers.{i}.mlp.fc11"),
        _tensor("ffn_down", ("n_embd", "n_ff"), "dense_ffn", "never", "encoder.layers.{i}.mlp.fc2"),
        _tensor("layer_output_norm", ("n_embd",), "norm", "required", "encoder.layers.{i}.norm2"),
    ),
    check=check_rotated,
    hf_model_types=("nomic_bert",),
    hf_fixed={
        "hidden_act": ("silu",), "activation_function": ("swiglu",), "prenorm": (False,), "rotary_emb_fraction": (1.0, 1),
        "rotary_emb_interleaved": (False,), "qkv_proj_bias": (False,), "mlp_fc1_bias": (False,), "mlp_fc2_bias": (False,),
        "moe_every_n_layers": (0,), "rotary_scaling_factor": (),
    },
    hf_names=((r"^bert\.", ""), HEADS),
)  # fmt: skip
