"""Qwen3-Next: three of four layers remember a sequence in a state of fixed size (gated DeltaNet, arXiv:2412.06464), the fourth attends behind a gate; every layer a mixture of experts with a shared one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from qtransformers.archs import parts
from qtransformers.archs.gemma import ONE_MORE
from qtransformers.archs.heads import by_head
from qtransformers.archs.parts import (
    EXPERTS,
    RMS_EPS,
    SIZES,
    VOCAB_SIZE,
    ends,
    experts_ffn,
    norm,
    shared_expert_rows,
    window_period,
)
from qtransformers.archs.qwen_moe import (
    N_FF_EXPERT,
    N_FF_SHARED,
    SHARED_GATE,
    gated_shared_expert,
    norm_weights,
    routed,
)
from qtransformers.archs.rotary import ROPE_HPARAMS, rotation
from qtransformers.archs.spec import ArchSpec, HParam, Problem, TensorSpec
from qtransformers.cache import Batch, PagedCache
from qtransformers.nn import (
    Rotation,
    activate,
    attention,
    causal_conv,
    embedding,
    gated_delta,
    layers,
    linear,
    linears,
    rms_norm,
    rope,
    softplus,
    split,
)


def forward(w: Any, h: Any, batch: Batch, cache: PagedCache) -> Any:
    """Logits `[R, vocab_size]` of the batch's output rows; keys, values and states of its T tokens enter the cache."""
    turn = rotation(h, interleaved=False)
    x = embedding(batch.tokens, w.token_embd)  # [T, n_embd]
    with cache.states.of(batch) as states:
        for i, layer in layers(w, x):
            y = rms_norm(x, layer.attn_norm, h.rms_eps)
            n_before = i // h.full_period  # layers with attention
            if recurrent(h, i):
                x += delta_net(y, layer, h, batch, states(i - n_before))
            else:
                x += self_attention(y, layer, h, turn, batch, cache, n_before)
            y = rms_norm(x, layer.post_attention_norm, h.rms_eps)
            x += routed(y, layer, h, partial(gated_shared_expert, y, layer))
    x = rms_norm(x[batch.output_rows], w.output_norm, h.rms_eps)
    return linear(x, w.output)


def delta_net(x: Any, w: Any, h: Any, batch: Batch, states: dict[str, Any]) -> Any:
    """Gated DeltaNet: the state fades, corrects what it has at a key, is read by a query; a short convolution before."""
    qkv, z, ba = linears(x, (w.attn_qkv, w.attn_gate, w.ssm_ba), (None, None, None))
    b, a = (
        part.reshape(len(x), -1) for part in split(ba.reshape(len(x), h.n_state_k, 2, -1), 1, axis=2)
    )  # [T, n_state_v]
    beta, decay = activate(b, "sigmoid"), w.ssm_a * softplus(a + w.ssm_dt)
    qkv = activate(causal_conv(qkv, w.ssm_conv1d, batch.starts, states["conv"]), "silu")
    q, k, v = split(qkv, (h.n_state_k * h.state_dim, 2 * h.n_state_k * h.state_dim))
    q, k, v = by_head(q, h.state_dim), by_head(k, h.state_dim), by_head(v, h.state_dim)
    y = gated_delta(q, k, v, decay, beta, batch.starts, states["delta"])
    y = rms_norm(y, w.ssm_norm, h.rms_eps).reshape(len(x), -1)
    return linear(activate(z, "silu", y), w.ssm_out)


def self_attention(x: Any, w: Any, h: Any, turn: Rotation, batch: Batch, cache: PagedCache, layer: int) -> Any:
    """Causal grouped-query attention, norms of q and k, and a gate for each value that comes out."""
    q, k, v = linears(x, (w.attn_q, w.attn_k, w.attn_v), (None, None, None))
    q, gate = split(by_head(q, 2 * h.head_dim), h.head_dim)
    q, k = rms_norm(q, w.attn_q_norm, h.rms_eps), rms_norm(by_head(k, h.head_dim), w.attn_k_norm, h.rms_eps)
    q, k = rope(q, batch.positions, *turn), rope(k, batch.positions, *turn)
    y = attention(q, k, by_head(v, h.head_dim_v), cache, layer, batch, scale=h.head_dim**-0.5)
    return linear(activate(gate.reshape(y.shape), "sigmoid", y), w.attn_output)


def recurrent(h: Mapping[str, Any], layer: int) -> bool:
    """Whether a layer has a state and no attention."""
    return bool((layer + 1) % h["full_period"])


def attends(h: Mapping[str, Any], layer: int) -> bool:
    """Whether it has attention."""
    return not recurrent(h, layer)


def states(h: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """What the layers remember of a sequence: the last tokens before the convolution, and a matrix for each head."""
    n = h["n_layers"] - h["n_layers"] // h["full_period"]
    channels = 2 * h["n_state_k"] * h["state_dim"] + h["n_inner"]
    return {
        "conv": (n, h["n_conv"] - 1, channels),
        "delta": (n, h["n_state_v"], h["state_dim"], h["state_dim"]),
    }


def check(h: Mapping[str, Any]) -> Iterator[Problem]:
    """What the hyperparameters may not be together."""
    yield from parts.check(h)
    yield from parts.check_experts(h)
    if not h["n_experts"]:
        yield Problem("expert_count is 0; expected at least 1. The file is damaged: convert the model again")
    if h["n_state_v"] % h["n_state_k"]:
        yield Problem(f"ssm.time_step_rank is {h['n_state_v']}, no multiple of ssm.group_count, {h['n_state_k']}")
    if h["n_inner"] != h["n_state_v"] * h["state_dim"]:
        yield Problem(
            f"ssm.inner_size is {h['n_inner']}; expected ssm.time_step_rank times ssm.state_size, {h['n_state_v'] * h['state_dim']}"
        )


def minus_exp(values: Any, h: Mapping[str, Any]) -> Any:
    """How fast heads forget, of which checkpoints have the logarithm."""
    return -np.exp(values)


def log_minus(values: Any, h: Mapping[str, Any]) -> Any:
    """The other way."""
    return np.log(-values)


def by_kind(values: Any, h: Mapping[str, Any]) -> tuple[Any, Any]:
    """Rows of q, k and v, and of z, which checkpoints have by head of k."""
    d, d_v = h["state_dim"], h["n_inner"] // h["n_state_k"]
    q, k, v, z = np.split(values.reshape(h["n_state_k"], 2 * d + 2 * d_v, -1), (d, 2 * d, 2 * d + d_v), axis=1)
    n_in = values.shape[1]
    return np.concatenate([part.reshape(-1, n_in) for part in (q, k, v)]), z.reshape(-1, n_in)


QKVZ = ("2*n_state_k*state_dim+2*n_inner", "n_embd")  # one matrix of a checkpoint


def value_dim(config: Mapping[str, Any]) -> Any:
    """Values of all heads."""
    return config["linear_value_head_dim"] * config["linear_num_value_heads"]


def _tensor(attr: str, shape: tuple[str, ...], role: str, hf: str, **more: Any) -> TensorSpec:
    return TensorSpec(attr, f"blk.{{i}}.{attr}", shape, role, hf=f"model.layers.{{i}}.{hf}" if hf else "", **more)


def _delta(attr: str, shape: tuple[str, ...], role: str, hf: str, **more: Any) -> TensorSpec:
    return _tensor(attr, shape, role, f"linear_attn.{hf}", when=recurrent, **more)


SPEC = ArchSpec(
    id="qwen3next",
    hparams=(
        *SIZES,
        RMS_EPS,
        *(replace(p, default=lambda h: max(2, h["head_dim"] // 4)) if p.name == "rope_dim" else p for p in ROPE_HPARAMS),
        replace(window_period(4), name="full_period", key="full_attention_interval"),
        HParam("n_conv", "ssm.conv_kernel", required=True, minimum=2, maximum=64, hf=("linear_conv_kernel_dim",)),
        HParam("state_dim", "ssm.state_size", required=True, minimum=1, maximum=4096, hf=("linear_key_head_dim",)),
        HParam("n_state_k", "ssm.group_count", required=True, minimum=1, maximum=4096, hf=("linear_num_key_heads",)),
        HParam("n_state_v", "ssm.time_step_rank", required=True, minimum=1, maximum=4096, hf=("linear_num_value_heads",)),
        HParam("n_inner", "ssm.inner_size", required=True, minimum=1, maximum=1 << 20, hf=(value_dim,)),
        *EXPERTS,
        N_FF_EXPERT,
        N_FF_SHARED,
        norm_weights(True),
        VOCAB_SIZE,
    ),
    tensors=tuple(replace(t, **ONE_MORE) if t.attr == "output_norm" else t for t in ends()),
    layer_tensors=(
        norm("attn_norm", "input_layernorm", **ONE_MORE),
        _tensor("attn_q", ("2*n_heads*head_dim", "n_embd"), "attn", "self_attn.q_proj", when=attends),
        _tensor("attn_k", ("n_kv_heads*head_dim", "n_embd"), "attn", "self_attn.k_proj", when=attends),
        _tensor("attn_v", ("n_kv_heads*head_dim_v", "n_embd"), "attn", "self_attn.v_proj", when=attends),
        norm("attn_q_norm", "self_attn.q_norm", "head_dim", **ONE_MORE, when=attends),
        norm("attn_k_norm", "self_attn.k_norm", "head_dim", **ONE_MORE, when=attends),
        _tensor("attn_output", ("n_embd", "n_heads*head_dim_v"), "attn", "self_attn.o_proj", when=attends),
        _delta("attn_qkv", ("2*n_state_k*state_dim+n_inner", "n_embd"), "attn", "in_proj_qkvz", hf_values=lambda x, h: by_kind(x, h)[0], hf_shape=QKVZ),
        _delta("attn_gate", ("n_inner", "n_embd"), "attn", "in_proj_qkvz", hf_values=lambda x, h: by_kind(x, h)[1], hf_shape=QKVZ),
        _delta("ssm_ba", ("2*n_state_v", "n_embd"), "attn", "in_proj_ba"),
        _delta("ssm_conv1d", ("2*n_state_k*state_dim+n_inner", "n_conv"), "state", "conv1d", hf_values=lambda x, h: x.reshape(len(x), -1), hf_shape=("2*n_state_k*state_dim+n_inner", "1", "n_conv")),
        _delta("ssm_dt", ("n_state_v",), "state", "dt", suffix=".bias", hf_suffix=("_bias", "")),
        _delta("ssm_a", ("n_state_v",), "state", "A", suffix="", hf_suffix=("_log", ""), hf_values=minus_exp, hf_back=log_minus),
        _delta("ssm_norm", ("state_dim",), "norm", "norm"),
        _delta("ssm_out", ("n_embd", "n_inner"), "attn", "out_proj"),
        norm("post_attention_norm", "post_attention_layernorm", **ONE_MORE),
        *experts_ffn(n_ff="n_ff_expert"),
        SHARED_GATE,
        *shared_expert_rows("model.layers.{i}.mlp.shared_expert", "n_ff_shared"),
    ),
    forward=forward,
    check=check,
    caches=attends,
    states=states,
    hf_model_types=("qwen3_next",),
    hf_fixed={"hidden_act": ("silu",), "attention_bias": (False,), "decoder_sparse_step": (1,), "mlp_only_layers": ([],)},
    hf_names=((r"^mtp\..*$", ""),),  # a head that guesses further tokens
    ignored_keys=("attention.recurrent_layers",),  # the interval says it too, and a layer's tensors
)  # fmt: skip
