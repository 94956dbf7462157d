"""DeepSeek V2, V3 and R1: keys and values from one small vector a token (MLA), many small experts (arXiv:2405.04434, 2412.19437).

Files of today keep the matrices that make keys and values of a head apart (`attn_k_b`, `attn_v_b`), so that queries are
taken to the small vectors, which are what the cache holds. Older ones have one matrix (`attn_kv_b`) and expanded heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from qtransformers.archs import llama
from qtransformers.archs.heads import by_head
from qtransformers.archs.parts import (
    EXPERTS,
    RMS_EPS,
    SIZES,
    VOCAB_SIZE,
    check_experts,
    check_heads,
    ends,
    experts_ffn,
    gated_ffn,
    norm,
    shared_expert,
    shared_expert_rows,
)
from qtransformers.archs.rotary import ROPE_HPARAMS, attention_factor, check_rope, magnitude, rope_type, rotation, said
from qtransformers.archs.spec import ArchSpec, HParam, Problem, TensorSpec
from qtransformers.cache import Batch, PagedCache
from qtransformers.nn import (
    Rotation,
    attention,
    embedding,
    join,
    layers,
    linear,
    moe,
    per_head,
    repeat,
    rms_norm,
    rope,
    route,
    split,
)
from qtransformers.nn.rope import yarn_magnitude


def forward(w: Any, h: Any, batch: Batch, cache: PagedCache) -> Any:
    """Logits `[R, vocab_size]` of the batch's output rows; keys and values of its T tokens enter the cache."""
    turn = rotation(h, interleaved=True)._replace(magnitude=rope_magnitude(h))
    x = embedding(batch.tokens, w.token_embd)  # [T, n_embd]
    for i, layer in layers(w, x):
        x += self_attention(rms_norm(x, layer.attn_norm, h.rms_eps), layer, h, turn, batch, cache, i)
        y = rms_norm(x, layer.ffn_norm, h.rms_eps)
        x += experts(y, layer, h) if i >= h.n_dense_layers else llama.mlp(y, layer)
    x = rms_norm(x[batch.output_rows], w.output_norm, h.rms_eps)
    return linear(x, w.output)


def self_attention(x: Any, w: Any, h: Any, turn: Rotation, batch: Batch, cache: PagedCache, layer: int) -> Any:
    """Multi-head latent attention: the last `rope_dim` values of queries and keys tell positions, the others do not."""
    q = linear(rms_norm(linear(x, w.attn_q_a), w.attn_q_a_norm, h.rms_eps), w.attn_q_b) if h.q_lora else linear(x, w.attn_q)  # fmt: skip
    q, q_rope = split(by_head(q, h.head_dim_mla), h.head_dim_mla - h.rope_dim)
    latent, k_rope = split(linear(x, w.attn_kv_a_mqa)[:, None], h.kv_lora)
    latent = rms_norm(latent, w.attn_kv_a_norm, h.rms_eps)  # [T, 1, kv_lora]
    q_rope, k_rope = rope(q_rope, batch.positions, *turn), rope(k_rope, batch.positions, *turn)
    if is_latent(h):
        q, k, v = per_head(q, w.attn_k_b), latent, latent
    else:
        k, v = split(by_head(linear(latent[:, 0], w.attn_kv_b), q.shape[-1] + h.head_dim_v_mla), q.shape[-1])
        k_rope = repeat(k_rope, h.n_heads, 1)
    q, k = join(q, q_rope), join(k, k_rope)
    y = attention(q, k, v, cache, layer, batch, scale=score_scale(h))
    if is_latent(h):
        y = per_head(by_head(y, h.kv_lora), w.attn_v_b).reshape(len(x), -1)
    return linear(y, w.attn_output)


def experts(x: Any, w: Any, h: Any) -> Any:
    """Each token through its chosen experts and the shared ones."""
    v3 = h.gating == SIGMOID
    ids, weights = route(
        linear(x, w.ffn_gate_inp), h.n_experts_used, gate="sigmoid" if v3 else "softmax", bias=w.exp_probs_b,
        n_groups=h.n_groups, n_groups_used=h.n_groups_used, group_top=2 if v3 else 1, normalize=h.norm_weights, scale=h.weights_scale or 1.0,
    )  # fmt: skip
    beside = partial(shared_expert, x, w) if h.n_shared else None
    return moe(x, ids, weights, w.ffn_gate_exps, w.ffn_up_exps, w.ffn_down_exps, beside=beside)


def is_latent(h: Any) -> bool:
    """Whether keys and values are kept as the vectors they are made from."""
    return bool(h["head_dim_mla"] != h["head_dim"])


def rope_magnitude(h: Any) -> float:
    """What rotated values grow by. A `yarn_log_multiplier` says that scores grow instead."""
    return float(h.rope_attn_factor) if h.rope_log_multiplier else magnitude(h)


def score_scale(h: Any) -> float:
    """What scores are multiplied by: under YaRN more, by a tenth of whose multiplier GGUF files speak."""
    grown = yarn_magnitude(h.rope_factor, 10 * h.rope_log_multiplier) if h.rope_scaling == "yarn" else 1.0
    return float(h.head_dim_mla**-0.5 * grown**2)


def mscale_all_dim(config: Mapping[str, Any]) -> Any:
    """A tenth of it, as GGUF has it."""
    found = said(config).get("mscale_all_dim")
    return 0.1 * found if found and rope_type(config) == "yarn" else None


def rest_of_attention_factor(config: Mapping[str, Any]) -> Any:
    """The growth of rotated values beside what the file's other keys say."""
    rest = attention_factor(config)
    if rest is None or mscale_all_dim(config) is None:
        return rest
    return rest * yarn_magnitude(said(config)["factor"])


def latent_key(config: Mapping[str, Any]) -> Any:
    """Values of a key as the cache holds it."""
    return config["kv_lora_rank"] + config["qk_rope_head_dim"]


def qk_head_dim(config: Mapping[str, Any]) -> Any:
    """Values of a key as scores see it."""
    return config["qk_nope_head_dim"] + config["qk_rope_head_dim"]


def one(config: Mapping[str, Any]) -> Any:
    """All heads read the same vectors."""
    return 1


def scoring_func(config: Mapping[str, Any]) -> Any:
    """How a router's logits become weights."""
    v3 = config.get("model_type") == "deepseek_v3" or config.get("scoring_func") == "sigmoid"
    return SIGMOID if v3 else SOFTMAX


def n_group(config: Mapping[str, Any]) -> Any:
    """Groups of experts, of which only some are open to a token."""
    return None if config.get("topk_method") == "greedy" else config.get("n_group")


def topk_group(config: Mapping[str, Any]) -> Any:
    """How many groups are open."""
    return None if config.get("topk_method") == "greedy" else config.get("topk_group")


def norm_topk_prob(config: Mapping[str, Any]) -> Any:
    """Whether weights of the chosen sum to one, which V2 never did."""
    return config.get("norm_topk_prob") if scoring_func(config) == SIGMOID else False


def _kv_b(values: Any, h: Any) -> Any:
    return values.reshape(h["n_heads"], h["head_dim_mla"] - h["rope_dim"] + h["head_dim_v_mla"], h["kv_lora"])


def keys(values: Any, h: Any) -> Any:
    """Of the matrix of keys and values the keys', (in, out) by head."""
    return _kv_b(values, h)[:, : h["head_dim_mla"] - h["rope_dim"]].swapaxes(1, 2)


def head_values(values: Any, h: Any) -> Any:
    """Of the matrix of keys and values the values', (out, in) by head."""
    return _kv_b(values, h)[:, h["head_dim_mla"] - h["rope_dim"] :]


def check(h: Mapping[str, Any]) -> Iterator[Problem]:
    """What the hyperparameters may not be together."""
    yield from check_heads(h)
    yield from check_rope({**h, "head_dim": h["head_dim_mla"] - 1})
    yield from check_experts(h)
    sizes = (
        (1, h["kv_lora"] + h["rope_dim"], h["kv_lora"])
        if is_latent(h)
        else (h["n_heads"], h["head_dim_mla"], h["head_dim_v_mla"])
    )
    found = (h["n_kv_heads"], h["head_dim"], h["head_dim_v"])
    if found != sizes:
        yield Problem(f"attention.head_count_kv, key_length and value_length are {found}; expected {sizes}")
    if h["n_experts"] and (h["n_experts"] % h["n_groups"] or not 1 <= h["n_groups_used"] <= h["n_groups"]):
        yield Problem(
            f"expert_group_count is {h['n_groups']}, expert_group_used_count {h['n_groups_used']}; expected a divisor of expert_count, {h['n_experts']}, and no more than that"
        )
    if h["n_dense_layers"] < h["n_layers"] and not h["n_experts"]:
        yield Problem(f"expert_count is 0, but layers from {h['n_dense_layers']} on have experts")


def _q_lora(h: Any, i: int) -> bool:
    return bool(h["q_lora"])


def _no_q_lora(h: Any, i: int) -> bool:
    return not h["q_lora"]


def _latent(h: Any, i: int) -> bool:
    return is_latent(h)


def _expanded(h: Any, i: int) -> bool:
    return not is_latent(h)


def _dense(h: Any, i: int) -> bool:
    return bool(i < h["n_dense_layers"])


def _sparse(h: Any, i: int) -> bool:
    return bool(i >= h["n_dense_layers"])


def _shared(h: Any, i: int) -> bool:
    return _sparse(h, i) and bool(h["n_shared"])


SOFTMAX, SIGMOID = 1, 2
ATTN = "model.layers.{i}.self_attn"
OVERRIDES: dict[str, dict[str, Any]] = {
    "n_kv_heads": {"hf": (one,)},
    "head_dim": {"hf": (latent_key,)},
    "head_dim_v": {"hf": ("kv_lora_rank",)},
    "rope_dim": {"hf": ("qk_rope_head_dim",), "required": True, "default": None},
    "rope_log_multiplier": {"hf": (mscale_all_dim,)},
    "rope_attn_factor": {"hf": (rest_of_attention_factor,)},
}
HPARAMS = (
    *(replace(p, **OVERRIDES.get(p.name, {})) for p in (*SIZES, RMS_EPS, *ROPE_HPARAMS)),
    HParam("q_lora", "attention.q_lora_rank", default=0, minimum=0, hf=("q_lora_rank",)),
    HParam("kv_lora", "attention.kv_lora_rank", required=True, minimum=1, hf=("kv_lora_rank",)),
    HParam("head_dim_mla", "attention.key_length_mla", default=lambda h: h["head_dim"], minimum=2, hf=(qk_head_dim,)),
    HParam("head_dim_v_mla", "attention.value_length_mla", default=lambda h: h["head_dim_v"], minimum=1, hf=("v_head_dim",)),
    *EXPERTS,
    HParam("n_dense_layers", "leading_dense_block_count", default=0, minimum=0, hf=("first_k_dense_replace",)),
    HParam("n_ff_expert", "expert_feed_forward_length", required=True, minimum=1, hf=("moe_intermediate_size",)),
    HParam("n_shared", "expert_shared_count", default=0, minimum=0, maximum=1024, hf=("n_shared_experts",)),
    HParam("weights_scale", "expert_weights_scale", float, default=1.0, minimum=0, hf=("routed_scaling_factor",)),
    HParam("norm_weights", "expert_weights_norm", bool, default=False, hf=(norm_topk_prob,)),
    HParam("gating", "expert_gating_func", default=SOFTMAX, choices=(SOFTMAX, SIGMOID), hf=(scoring_func,)),
    HParam("n_groups", "expert_group_count", default=1, minimum=1, hf=(n_group,)),
    HParam("n_groups_used", "expert_group_used_count", default=lambda h: h["n_groups"], minimum=1, hf=(topk_group,)),
    VOCAB_SIZE,
)  # fmt: skip

# Keys and values of all heads, one matrix of a checkpoint
KV_B = ("n_heads*head_dim_mla-n_heads*rope_dim+n_heads*head_dim_v_mla", "kv_lora")

SPEC = ArchSpec(
    id="deepseek2",
    hparams=HPARAMS,
    tensors=ends(),
    layer_tensors=(
        norm("attn_norm", "input_layernorm"),
        TensorSpec("attn_q", "blk.{i}.attn_q", ("n_heads*head_dim_mla", "n_embd"), "attn", hf=f"{ATTN}.q_proj", when=_no_q_lora),
        TensorSpec("attn_q_a", "blk.{i}.attn_q_a", ("q_lora", "n_embd"), "attn", hf=f"{ATTN}.q_a_proj", when=_q_lora),
        norm("attn_q_a_norm", "self_attn.q_a_layernorm", "q_lora", when=_q_lora),
        TensorSpec("attn_q_b", "blk.{i}.attn_q_b", ("n_heads*head_dim_mla", "q_lora"), "attn", hf=f"{ATTN}.q_b_proj", when=_q_lora),
        TensorSpec("attn_kv_a_mqa", "blk.{i}.attn_kv_a_mqa", ("kv_lora+rope_dim", "n_embd"), "attn", hf=f"{ATTN}.kv_a_proj_with_mqa"),
        norm("attn_kv_a_norm", "self_attn.kv_a_layernorm", "kv_lora"),
        TensorSpec("attn_k_b", "blk.{i}.attn_k_b", ("n_heads", "kv_lora", "head_dim_mla-rope_dim"), "attn", hf=f"{ATTN}.kv_b_proj", hf_values=keys, hf_shape=KV_B, when=_latent),
        TensorSpec("attn_v_b", "blk.{i}.attn_v_b", ("n_heads", "head_dim_v_mla", "kv_lora"), "attn", hf=f"{ATTN}.kv_b_proj", hf_values=head_values, hf_shape=KV_B, when=_latent),
        TensorSpec("attn_kv_b", "blk.{i}.attn_kv_b", ("n_heads*head_dim_mla-n_heads*rope_dim+n_heads*head_dim_v_mla", "kv_lora"), "attn", hf=f"{ATTN}.kv_b_proj", when=_expanded),
        TensorSpec("attn_output", "blk.{i}.attn_output", ("n_embd", "n_heads*head_dim_v_mla"), "attn", hf=f"{ATTN}.o_proj"),
        norm("ffn_norm", "post_attention_layernorm"),
        *gated_ffn(when=_dense),
        *experts_ffn(n_ff="n_ff_expert", when=_sparse),
        TensorSpec("exp_probs_b", "blk.{i}.exp_probs_b", ("n_experts",), "router", on_absent="none", suffix=".bias", hf="model.layers.{i}.mlp.gate.e_score_correction", hf_suffix=("_bias", ""), when=_sparse),
        *shared_expert_rows("model.layers.{i}.mlp.shared_experts", "n_shared*n_ff_expert", when=_shared),
    ),
    forward=forward,
    check=check,
    hf_model_types=("deepseek_v2", "deepseek_v3"),
    hf_fixed={"hidden_act": ("silu",), "attention_bias": (False,), "topk_method": ("greedy", "group_limited_greedy", "noaux_tc"), "moe_layer_freq": (1,), "rope_interleave": (True,)},
)  # fmt: skip
