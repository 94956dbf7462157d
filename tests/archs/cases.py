"""The random models that architectures are compared on, and how each feature is switched off."""

from archs.models import Case, Off, none, ones, zeros
from qtransformers import nn

NO_WINDOW = Off({"sliding_window": 0})
PLAIN_ROPE = Off({"rope_scaling": "none"})
QK_NORMS = {"q norm": Off(weights={"attn_q_norm": ones}), "k norm": Off(weights={"attn_k_norm": ones})}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 8.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1 + i / 8 for i in range(8)],
    "long_factor": [1.5 + 2 * i for i in range(8)],
}
SHARP = {
    "q_proj": 2.0,
    "k_proj": 2.0,
    "qkv": 2.0,
    "c_attn": 2.0,
}  # scores that differ, so that it matters who is seen and where


def without(*attrs: str) -> dict[str, Off]:
    """Each tensor left out, by its name."""
    return {attr: Off(weights={attr: none}) for attr in attrs}


def flat(*attrs: str) -> dict[str, Off]:
    """Each norm without its weights."""
    return {attr: Off(weights={attr: ones}) for attr in attrs}


def one(*names: str) -> dict[str, Off]:
    """Each factor left out."""
    return {name: Off({name: 1.0}) for name in names}


def silu_experts(x, ids, weights, gate, up, down, act, *biases):
    """Without clamps and the one that is added to what a gate lets through."""
    return nn.moe(x, ids, weights, gate, up, down, "silu", *biases)


def softmax_over_all(logits, n_used, **given):
    """Weights that are not divided by their sum."""
    return nn.route(logits, n_used, **{**given, "normalize": False})


GPT_OSS = {
    "sliding_window": 16,
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "swiglu_limit": 7.0,
}
GPT_OSS_FEATURES = {
    **without(
        "attn_q_bias",
        "attn_k_bias",
        "attn_v_bias",
        "attn_output_bias",
        "attn_sinks",
        "ffn_gate_inp_bias",
        "ffn_gate_exps_bias",
        "ffn_up_exps_bias",
        "ffn_down_exps_bias",
    ),
    "window": NO_WINDOW,
    "every second layer": Off({"swa_period": 99}),
    "yarn": PLAIN_ROPE,
    "activation": Off(calls={"moe": silu_experts}),
    "weights of the chosen": Off(calls={"route": softmax_over_all}),
}
GPT_OSS_GAINS = {
    "q_proj": 2.0,
    "k_proj": 2.0,
    "sinks": 8.0,
    "gate_up_proj_bias": 2.0,
    "gate_up_proj": 2.0,
    "router": 2.0,
}


def forgetful(q, k, v, decay, beta, starts, states):
    """What a state has fades by nothing."""
    return nn.gated_delta(q, k, v, decay * 0, beta, starts, states)


def written_in_full(q, k, v, decay, beta, starts, states):
    """A state's correction is complete."""
    return nn.gated_delta(q, k, v, decay, beta * 0 + 1, starts, states)


def memoryless(q, k, v, decay, beta, starts, states):
    """A state begins anew with every forward."""
    return nn.gated_delta(q, k, v, decay, beta, starts, [s * 0 for s in states])


def conv_of_one(x, kernel, starts, pasts):
    """Without the tokens before."""
    return x * kernel[:, -1]


def conv_without_past(x, kernel, starts, pasts):
    """Forwards do not hear of each other."""
    return nn.causal_conv(x, kernel, starts, [p * 0 for p in pasts])


def ungated(x, act, up=None):
    """A gate that is always open."""
    return nn.activate(x, act) if up is None else up


QWEN3NEXT = {
    "num_hidden_layers": 6,
    "full_attention_interval": 3,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
}
QWEN3NEXT_FEATURES = {
    **QK_NORMS,
    "partial rotation": Off({"rope_dim": 16}),
    "fading": Off(calls={"gated_delta": forgetful}),
    "strength of writing": Off(calls={"gated_delta": written_in_full}),
    "state between forwards": Off(calls={"gated_delta": memoryless}),
    "convolution": Off(calls={"causal_conv": conv_of_one}),
    "its past": Off(calls={"causal_conv": conv_without_past}),
    "gates of outputs": Off(calls={"activate": ungated}),
    "time step": Off(weights={"ssm_dt": zeros}),
    "norm of outputs": Off(weights={"ssm_norm": ones}),
    "shared expert": Off(weights={"ffn_down_shexp": zeros}),
    "its gate": Off(weights={"ffn_gate_inp_shexp": zeros}),
    "weights sum to one": Off({"norm_weights": False}),
}

QKV_BIASES = ("attn_q_bias", "attn_k_bias", "attn_v_bias")
MOE = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
MLA = {
    "num_key_value_heads": 4,
    "head_dim": 16,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "kv_lora_rank": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}
MSCALE = {**YARN, "mscale": 0.7, "mscale_all_dim": 0.7}
SHARED = Off(weights={"ffn_down_shexp": zeros})

CASES = {
    "llama-linear": Case("llama", "Llama", {"rope_parameters": LINEAR}, {"linear": PLAIN_ROPE}, gains=SHARP),
    "llama-llama3": Case("llama", "Llama", {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}, {**without("rope_freqs", *QKV_BIASES, "attn_output_bias", "ffn_gate_bias", "ffn_up_bias", "ffn_down_bias")}, gains=SHARP),
    "llama-yarn": Case("llama", "Llama", {"rope_parameters": {**YARN, "beta_fast": 16.0}}, {"yarn": PLAIN_ROPE, **one("rope_factor")}, gains=SHARP),
    "mistral": Case("llama", "Mistral", {"sliding_window": 16}, {"window": NO_WINDOW}, gains=SHARP, golden=False),
    "qwen2": Case("qwen2", "Qwen2", {}, without(*QKV_BIASES), gains=SHARP),
    "qwen2-yarn": Case("qwen2", "Qwen2", {"rope_parameters": YARN}, {"yarn": PLAIN_ROPE}, gains=SHARP),
    "qwen3": Case("qwen3", "Qwen3", {"head_dim": 24}, QK_NORMS),
    "qwen3-yarn": Case("qwen3", "Qwen3", {"rope_parameters": {**YARN, "attention_factor": 1.4}}, {**QK_NORMS, "yarn": PLAIN_ROPE, **one("rope_attn_factor")}),
    "gemma2": Case("gemma2", "Gemma2", {"sliding_window": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 16}, {"window": NO_WINDOW, "attn softcap": Off({"attn_softcap": 0.0}), "final softcap": Off({"final_softcap": 0.0}), **flat("post_attention_norm", "post_ffw_norm")}, gains={**SHARP, "embed": 0.3, "zero": 1.0}),
    "gemma2-scale": Case("gemma2", "Gemma2", {"query_pre_attn_scalar": 5, "head_dim": 32}, {"scale": Off({"attn_scale": 32**-0.5})}, gains={**SHARP, "embed": 0.3, "zero": 1.0}, golden=False),
    "gemma3": Case("gemma3", "Gemma3Text", {"sliding_window": 16, "num_hidden_layers": 7, "query_pre_attn_scalar": 16, "rope_parameters": {"full_attention": {**LINEAR, "rope_theta": 1e5}, "sliding_attention": {"rope_type": "default", "rope_theta": 1e3}}}, {"window": NO_WINDOW, "period": Off({"swa_period": 99}), "linear": PLAIN_ROPE, "base of windows": Off({"rope_base_swa": 1e5}), **QK_NORMS}, gains={"q_norm": 4.0, "k_norm": 4.0, "embed": 0.3, "zero": 1.0}, class_name="Gemma3ForCausalLM"),
    "gemma3-softcap": Case("gemma3", "Gemma3Text", {"sliding_window": 16, "final_logit_softcapping": 3.0}, {"final softcap": Off({"final_softcap": 0.0})}, gains={"q_norm": 4.0, "k_norm": 4.0, "embed": 0.3, "zero": 1.0}, class_name="Gemma3ForCausalLM", golden=False),
    "phi3": Case("phi3", "Phi3", {"max_position_embeddings": 512, "original_max_position_embeddings": 64, "rope_parameters": LONGROPE}, {"longrope": PLAIN_ROPE, "long factors": Off({"rope_original": 4096}), **one("rope_attn_factor")}, lengths=(65, 150), gains=SHARP),
    "phi3-short": Case("phi3", "Phi3", {"original_max_position_embeddings": 256, "rope_parameters": {**LONGROPE, "original_max_position_embeddings": 256}}, {"longrope": PLAIN_ROPE, "short factors": Off({"rope_original": 1})}, lengths=(5, 150), context_length=256, gains=SHARP),
    "phi3-window": Case("phi3", "Phi3", {"sliding_window": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}}, {"window": NO_WINDOW, "partial rotation": Off({"rope_dim": 16})}, gains=SHARP, golden=False),
    "ministral3": Case("mistral3", "Ministral3", {"rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5}, "sliding_window": None}, {"yarn": PLAIN_ROPE, "magnitude": Off({"rope_attn_factor": 1.0}), "growing queries": Off({"temperature_scale": 0.0})}, gains=SHARP),
    "ministral3-window": Case("mistral3", "Ministral3", {"rope_parameters": {**LLAMA3, "llama_4_scaling_beta": 0.0}, "sliding_window": 16}, {"window": NO_WINDOW, **without("rope_freqs")}, gains=SHARP, golden=False),
    "glm4": Case("glm4", "Glm4", {"attention_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}}, {**without(*QKV_BIASES), **flat("post_attention_norm", "post_ffw_norm"), "partial rotation": Off({"rope_dim": 16})}, gains=SHARP),
    "granite": Case("granite", "Granite", {"embedding_multiplier": 3.0, "residual_multiplier": 0.6, "attention_multiplier": 0.6, "logits_scaling": 1.7}, {**one("embedding_scale", "residual_scale", "logit_scale"), "attn scale": Off({"attn_scale": 0.0})}),
    "olmo2": Case("olmo2", "Olmo2", {}, {**QK_NORMS, **flat("post_attention_norm", "post_ffw_norm")}),
    "olmo3": Case("olmo2", "Olmo3", {"num_hidden_layers": 5, "sliding_window": 16, "rope_parameters": {"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0}}}, {"window": NO_WINDOW, "every fourth layer": Off({"swa_period": 99}), "yarn": PLAIN_ROPE}, gains=SHARP, golden=False),
    "command-r": Case("command-r", "Cohere", {"logit_scale": 0.5}, one("logit_scale"), gains=SHARP),
    "command-r-plus": Case("command-r", "Cohere", {"use_qk_norm": True, "logit_scale": 0.5}, {**one("logit_scale"), **QK_NORMS}, gains={"q_norm": 2.0}, golden=False),
    "starcoder2": Case("starcoder2", "Starcoder2", {"use_bias": True}, without(*QKV_BIASES, "attn_output_bias", "ffn_up_bias", "ffn_down_bias", "attn_norm_bias", "ffn_norm_bias", "output_norm_bias"), gains=SHARP),
    "starcoder2-window": Case("starcoder2", "Starcoder2", {"use_bias": False, "sliding_window": 16, "num_key_value_heads": 1}, {"window": NO_WINDOW}, gains=SHARP, golden=False),
    "gpt2": Case("gpt2", "GPT2", {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512}, {**without("attn_qkv_bias", "attn_output_bias", "ffn_up_bias", "ffn_down_bias", "attn_norm_bias", "ffn_norm_bias", "output_norm_bias"), "positions": Off(weights={"position_embd": zeros})}, gains=SHARP, class_name="GPT2LMHeadModel", defaults=False),
    "stablelm": Case("stablelm", "StableLm", {"use_qkv_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.25}}, {**without(*QKV_BIASES, "attn_norm_bias", "ffn_norm_bias", "output_norm_bias"), "partial rotation": Off({"rope_dim": 16})}, gains=SHARP),
    "stablelm-12b": Case("stablelm", "StableLm", {"use_qkv_bias": False, "qk_layernorm": True, "use_parallel_residual": True}, QK_NORMS),
    "gpt-oss": Case("gpt-oss", "GptOss", {**GPT_OSS, "rope_parameters": {**YARN, "beta_fast": 16.0, "truncate": True}}, GPT_OSS_FEATURES, gains=GPT_OSS_GAINS),
    "gpt-oss-unrounded": Case("gpt-oss", "GptOss", {**GPT_OSS, "rope_parameters": {**YARN, "beta_fast": 16.0, "truncate": False}}, {"between pairs": Off({"rope_unrounded": False})}, gains=GPT_OSS_GAINS, golden=False),
    "mixtral": Case("llama", "Mixtral", {"num_local_experts": 8, "num_experts_per_tok": 3}, {"fewer experts": Off({"n_experts_used": 2})}),
    "mixtral-window": Case("llama", "Mixtral", {"num_local_experts": 8, "num_experts_per_tok": 3, "sliding_window": 16}, {"window": NO_WINDOW}, gains=SHARP, golden=False),
    "qwen2moe": Case("qwen2moe", "Qwen2Moe", {**MOE, "shared_expert_intermediate_size": 48, "norm_topk_prob": False}, {**without(*QKV_BIASES), "shared expert": SHARED, "its gate": Off(weights={"ffn_gate_inp_shexp": zeros}), "weights as they are": Off({"norm_weights": True})}, gains=SHARP),
    "qwen3moe": Case("qwen3moe", "Qwen3Moe", {**MOE, "norm_topk_prob": True}, {**QK_NORMS, "weights sum to one": Off({"norm_weights": False})}),
    "deepseek-v2-lite": Case("deepseek2", "DeepseekV2", {**MLA, "num_hidden_layers": 26, "q_lora_rank": None, "topk_method": "greedy", "routed_scaling_factor": 1.5, "rope_parameters": MSCALE}, {"shared experts": SHARED, "yarn": PLAIN_ROPE, "sharper scores": Off({"rope_log_multiplier": 1e-9}), **one("weights_scale")}),
    "deepseek-v2": Case("deepseek2", "DeepseekV2", {**MLA, "q_lora_rank": 24, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 4.0, "rope_parameters": {**YARN, "mscale": 1.3, "mscale_all_dim": 0.7}}, {"shared experts": SHARED, "groups": Off({"n_groups": 1, "n_groups_used": 1}), "magnitude": Off({"rope_attn_factor": 1.0}), "q norm": Off(weights={"attn_q_a_norm": ones}), **one("weights_scale")}, golden=False),
    "deepseek-v3": Case("deepseek2", "DeepseekV3", {**MLA, "q_lora_rank": 24, "n_group": 4, "topk_group": 2, "norm_topk_prob": True, "routed_scaling_factor": 2.5, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}}, {"shared experts": SHARED, "bias of the choice": Off(weights={"exp_probs_b": none}), "groups": Off({"n_groups": 1, "n_groups_used": 1}), "sigmoid": Off({"gating": 1}), "weights sum to one": Off({"norm_weights": False}), "yarn": PLAIN_ROPE, "kv norm": Off(weights={"attn_kv_a_norm": ones}), **one("weights_scale")}, gains={"embed": 0.5}),
    "qwen3next": Case("qwen3next", "Qwen3Next", QWEN3NEXT, QWEN3NEXT_FEATURES, gains={"q_proj": 2.0, "k_proj": 2.0, "A_log": 8.0, "dt_bias": 4.0, "zero": 1.0}),
}  # fmt: skip
