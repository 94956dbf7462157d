"""DeepSeek-V3 as a header without weights: the real shapes, quantised as Q5_K_M does it."""

from gguf_files import entry, file, info
from qtransformers.types import BY_NAME

N_LAYERS, N_DENSE, WIDTH, HEADS, EXPERTS = 61, 3, 7168, 128, 256
KEYS = (
    ("general.architecture", "str", "deepseek2"), ("deepseek2.block_count", "u32", N_LAYERS), ("deepseek2.context_length", "u32", 163840),
    ("deepseek2.embedding_length", "u32", WIDTH), ("deepseek2.feed_forward_length", "u32", 18432), ("deepseek2.attention.head_count", "u32", HEADS),
    ("deepseek2.attention.head_count_kv", "u32", 1), ("deepseek2.attention.layer_norm_rms_epsilon", "f32", 1e-6),
    ("deepseek2.attention.q_lora_rank", "u32", 1536), ("deepseek2.attention.kv_lora_rank", "u32", 512), ("deepseek2.attention.key_length", "u32", 576),
    ("deepseek2.attention.value_length", "u32", 512), ("deepseek2.attention.key_length_mla", "u32", 192), ("deepseek2.attention.value_length_mla", "u32", 128), ("deepseek2.rope.dimension_count", "u32", 64), ("deepseek2.rope.freq_base", "f32", 1e4),
    ("deepseek2.rope.scaling.type", "str", "yarn"), ("deepseek2.rope.scaling.factor", "f32", 40.0),
    ("deepseek2.rope.scaling.original_context_length", "u32", 4096), ("deepseek2.rope.scaling.yarn_log_multiplier", "f32", 0.1),
    ("deepseek2.leading_dense_block_count", "u32", N_DENSE), ("deepseek2.expert_count", "u32", EXPERTS), ("deepseek2.expert_used_count", "u32", 8),
    ("deepseek2.expert_shared_count", "u32", 1), ("deepseek2.expert_feed_forward_length", "u32", 2048), ("deepseek2.expert_weights_scale", "f32", 2.5),
    ("deepseek2.expert_weights_norm", "bool", True), ("deepseek2.expert_gating_func", "u32", 2), ("deepseek2.expert_group_count", "u32", 8),
    ("deepseek2.expert_group_used_count", "u32", 4), ("deepseek2.vocab_size", "u32", 129280),
)  # fmt: skip


def tensors():
    """Name, shape (out, in) and type of each."""
    yield "token_embd.weight", (129280, WIDTH), "Q5_K"
    for i in range(N_LAYERS):
        better = "Q6_K" if i < 61 // 8 or i >= 7 * 61 // 8 or (i - 61 // 8) % 3 == 2 else "Q5_K"
        rows = [
            ("attn_norm", (WIDTH,), "F32"), ("attn_q_a", (1536, WIDTH), "Q5_K"), ("attn_q_a_norm", (1536,), "F32"),
            ("attn_q_b", (HEADS * 192, 1536), "Q5_K"), ("attn_kv_a_mqa", (576, WIDTH), "Q5_K"), ("attn_kv_a_norm", (512,), "F32"),
            ("attn_k_b", (HEADS, 512, 128), "Q8_0"), ("attn_v_b", (HEADS, 128, 512), "Q5_K"), ("attn_output", (WIDTH, HEADS * 128), "Q5_K"), ("ffn_norm", (WIDTH,), "F32"),
        ]  # fmt: skip
        if i < N_DENSE:
            rows += [("ffn_gate", (18432, WIDTH), "Q5_K"), ("ffn_up", (18432, WIDTH), "Q5_K"), ("ffn_down", (WIDTH, 18432), better)]  # fmt: skip
        else:
            rows += [
                ("ffn_gate_inp", (EXPERTS, WIDTH), "F32"), ("ffn_gate_exps", (EXPERTS, 2048, WIDTH), "Q5_K"),
                ("ffn_up_exps", (EXPERTS, 2048, WIDTH), "Q5_K"), ("ffn_down_exps", (EXPERTS, WIDTH, 2048), better),
                ("ffn_gate_shexp", (2048, WIDTH), "Q5_K"), ("ffn_up_shexp", (2048, WIDTH), "Q5_K"), ("ffn_down_shexp", (WIDTH, 2048), better),
            ]  # fmt: skip
            yield f"blk.{i}.exp_probs_b.bias", (EXPERTS,), "F32"
        yield from ((f"blk.{i}.{name}.weight", shape, kind) for name, shape, kind in rows)
    yield "output_norm.weight", (WIDTH,), "F32"
    yield "output.weight", (129280, WIDTH), "Q6_K"


def header():
    """The header's bytes, and the size of the whole file."""
    infos, offset = [], 0
    for name, shape, kind in tensors():
        row = BY_NAME[kind]
        infos.append(info(name, shape[::-1], row.id, offset))
        n = 1
        for d in shape:
            n *= d
        offset += -(-row.row_bytes(n) // 32) * 32
    raw = file([entry(*key) for key in KEYS], infos)
    return raw, len(raw) + offset


def sparse(path):
    """A file of 443 GiB that takes a few KB of disk."""
    raw, size = header()
    with open(path, "wb") as f:
        f.write(raw)
        f.truncate(size)
    return path
