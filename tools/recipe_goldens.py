"""What llama-quantize's dry run chooses for tests/convert/test_recipes.py, in two steps:

    PYTHONPATH=src:tests python tools/recipe_goldens.py make FOLDER                                (with the dev extra)
    PYTHONPATH=tests python tools/recipe_goldens.py run FOLDER tests/data/goldens/recipes.json   (with llama-cpp-python; made with 0.3.36)

The files have the shapes of well-known models and no data: holes of the size of their tensors.
"""

import ctypes
import json
import re
import sys
from pathlib import Path

import numpy as np

LLAMA = {
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
QWEN = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "rope_theta": 1e6}


def sizes(n_layers, n_embd, n_ff, heads, kv_heads, vocab, **more):
    return {
        "num_hidden_layers": n_layers, "hidden_size": n_embd, "intermediate_size": n_ff, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "vocab_size": vocab, **more,
    }  # fmt: skip


MODELS = {
    "Llama-3-8B": LLAMA | sizes(32, 4096, 14336, 32, 8, 128256),
    "Llama-2-7B": LLAMA | sizes(32, 4096, 11008, 32, 32, 32000),
    "Llama-3-70B": LLAMA | sizes(80, 8192, 28672, 64, 8, 128256),
    "Llama-3.2-1B": LLAMA | sizes(16, 2048, 8192, 32, 8, 128256, tie_word_embeddings=True),
    "Mixtral-8x7B": LLAMA | sizes(32, 4096, 14336, 32, 8, 32000, model_type="mixtral", num_local_experts=8, num_experts_per_tok=2),
    "Qwen2.5-0.5B": QWEN | sizes(24, 896, 4864, 14, 2, 151936, model_type="qwen2", tie_word_embeddings=True),
    "Qwen2.5-72B": QWEN | sizes(80, 8192, 29568, 64, 8, 152064, model_type="qwen2"),
    "Qwen3-30B-A3B": QWEN | sizes(48, 2048, 6144, 32, 4, 151936, model_type="qwen3_moe", head_dim=128, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=True),
    "Qwen1.5-MoE-A2.7B": QWEN | sizes(24, 2048, 5632, 16, 16, 151936, model_type="qwen2_moe", num_experts=60, num_experts_per_tok=4, moe_intermediate_size=1408, shared_expert_intermediate_size=5632, norm_topk_prob=False),
    "Gemma-2-9B": sizes(42, 3584, 14336, 16, 8, 256000, model_type="gemma2", head_dim=256, hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6, max_position_embeddings=8192, query_pre_attn_scalar=256, sliding_window=4096, attn_logit_softcapping=50.0, final_logit_softcapping=30.0),
    "Gemma-3-1B": sizes(26, 1152, 6912, 4, 1, 262144, model_type="gemma3_text", head_dim=256, hidden_activation="gelu_pytorch_tanh", rms_norm_eps=1e-6, max_position_embeddings=32768, query_pre_attn_scalar=256, sliding_window=512, rope_theta=1e6, rope_local_base_freq=1e4),
    "Phi-3-mini": sizes(32, 3072, 8192, 32, 32, 32064, model_type="phi3", hidden_act="silu", rms_norm_eps=1e-5, max_position_embeddings=4096, original_max_position_embeddings=4096, tie_word_embeddings=False),
    "DeepSeek-V2-Lite": sizes(27, 2048, 10944, 16, 16, 102400, model_type="deepseek_v2", hidden_act="silu", rms_norm_eps=1e-6, max_position_embeddings=163840, kv_lora_rank=512, q_lora_rank=None, qk_rope_head_dim=64, qk_nope_head_dim=128, v_head_dim=128, n_routed_experts=64, num_experts_per_tok=6, moe_intermediate_size=1408, n_shared_experts=2, first_k_dense_replace=1, topk_method="greedy", routed_scaling_factor=1.0, n_group=1, topk_group=1, norm_topk_prob=False, scoring_func="softmax", tie_word_embeddings=False),
    "gpt-oss-20b": sizes(24, 2880, 2880, 64, 8, 201088, model_type="gpt_oss", head_dim=64, hidden_act="silu", attention_bias=True, rms_norm_eps=1e-5, max_position_embeddings=131072, num_local_experts=32, num_experts_per_tok=4, sliding_window=128, swiglu_limit=7.0, tie_word_embeddings=False),
    "GPT-2": {"model_type": "gpt2", "n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "n_ctx": 1024, "n_inner": None, "vocab_size": 50257, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5},
    "StarCoder2-3B": sizes(30, 3072, 12288, 24, 2, 49152, model_type="starcoder2", hidden_act="gelu_pytorch_tanh", norm_epsilon=1e-5, max_position_embeddings=16384, use_bias=True, sliding_window=4096, tie_word_embeddings=True),
    "Command-R": sizes(40, 8192, 22528, 64, 64, 256000, model_type="cohere", hidden_act="silu", layer_norm_eps=1e-5, max_position_embeddings=8192, logit_scale=0.0625),
    "Qwen3-Next-80B": QWEN | sizes(48, 2048, 5120, 16, 2, 151936, model_type="qwen3_next", head_dim=256, num_experts=512, num_experts_per_tok=10, moe_intermediate_size=512, shared_expert_intermediate_size=512, linear_conv_kernel_dim=4, linear_key_head_dim=128, linear_value_head_dim=128, linear_num_key_heads=16, linear_num_value_heads=32, full_attention_interval=4, decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=True, attention_bias=False, partial_rotary_factor=0.25, tie_word_embeddings=False),
    "GLM-4-9B": sizes(40, 4096, 13696, 32, 2, 151552, model_type="glm4", hidden_act="silu", rms_norm_eps=1e-5, max_position_embeddings=32768, head_dim=128, attention_bias=True, partial_rotary_factor=0.5, tie_word_embeddings=False),
    "OLMo-2-7B": sizes(32, 4096, 11008, 32, 32, 100352, model_type="olmo2", hidden_act="silu", rms_norm_eps=1e-6, max_position_embeddings=4096, rope_theta=5e5, tie_word_embeddings=False),
    "BERT-base": sizes(12, 768, 3072, 12, 12, 30522, model_type="bert", hidden_act="gelu", layer_norm_eps=1e-12, max_position_embeddings=512, type_vocab_size=2),
}  # fmt: skip
# Of an architecture that is not ours
FALCON = {
    "metadata": {
        "general.architecture": "falcon", "falcon.block_count": 32, "falcon.context_length": 2048, "falcon.embedding_length": 4544,
        "falcon.feed_forward_length": 18176, "falcon.attention.head_count": 71, "falcon.attention.head_count_kv": 1, "falcon.attention.layer_norm_epsilon": 1e-5,
    },
    "layer": {"attn_qkv": (4672, 4544), "attn_output": (4544, 4544), "ffn_up": (18176, 4544), "ffn_down": (4544, 18176), "attn_norm": (4544,)},
    "shapes": {"token_embd.weight": (65024, 4544), "output.weight": (65024, 4544), "output_norm.weight": (4544,)},
}  # fmt: skip


def described(config):
    """Metadata and shapes of a model by its config.json."""
    from qtransformers.archs import SPECS
    from qtransformers.convert.checkpoints import hparam_metadata
    from qtransformers.load.config import hparams_from_config

    spec = next(s for s in SPECS.values() if config["model_type"] in s.hf_model_types)
    hparams = hparams_from_config(spec, config, "config.json")
    tied = config.get("tie_word_embeddings", spec.hf_tied)
    shapes = {
        slot.name: slot.shape(hparams)
        for slot in spec.slots(hparams)
        if slot.presence == "required"
        or (slot.spec.on_absent.startswith("tie:") and slot.part == "weight" and not tied)
    }
    return {"general.architecture": spec.id, **hparam_metadata(spec, hparams)}, shapes


def make(folder: Path) -> None:
    from qtransformers.convert.recipes import RECIPES, policies
    from qtransformers.gguf.encode import TensorSpec, plan_file
    from qtransformers.types import BY_NAME

    folder.mkdir(exist_ok=True)
    (folder / "types").write_text(json.dumps({name: (recipe.id, recipe.base) for name, recipe in RECIPES.items()}))
    models = {name: described(config) for name, config in MODELS.items()}
    layers = {f"blk.{i}.{n}.weight": shape for i in range(32) for n, shape in FALCON["layer"].items()}
    models["Falcon-7B"] = (FALCON["metadata"], {**FALCON["shapes"], **layers})
    for name, (metadata, shapes) in models.items():
        metadata = {
            k: np.uint32(v) if type(v) is int else np.float32(v) if type(v) is float else v for k, v in metadata.items()
        }
        policy_of = policies(shapes, metadata["general.architecture"])
        specs = [
            TensorSpec(n, tuple(s), BY_NAME["F32" if policy_of[n] == "keep" else "F16"]) for n, s in shapes.items()
        ]
        plan = plan_file(metadata, specs, 32, name)
        with (folder / f"{name}.gguf").open("wb") as f:
            f.write(plan.header)
            f.truncate(plan.nbytes)
        said = {k: v.item() if hasattr(v, "item") else v for k, v in metadata.items()}
        (folder / f"{name}.json").write_text(json.dumps({"metadata": said, "shapes": shapes}))


class Params(ctypes.Structure):
    _fields_ = (
        ("nthread", ctypes.c_int32), ("ftype", ctypes.c_int), ("output_tensor_type", ctypes.c_int), ("token_embedding_type", ctypes.c_int),
        *((flag, ctypes.c_bool) for flag in ("allow_requantize", "quantize_output_tensor", "only_copy", "pure", "keep_split", "dry_run")),
        *((pointer, ctypes.c_void_p) for pointer in ("imatrix", "kv_overrides", "tt_overrides", "prune_layers")),
        ("max_buf_size", ctypes.c_size_t),
    )  # fmt: skip


class Entry(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


LINE = re.compile(r"\] +(\S+) +- \[[^]]*\], type = +(\w+), (?:size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((\w+)\))?)")


def run(folder: Path, output: Path) -> None:
    import llama_cpp

    from convert.packing import packed, shapes_packed

    lib = ctypes.CDLL(llama_cpp.llama_cpp._lib._name)
    lib.llama_model_quantize_default_params.restype = Params
    log: list[str] = []
    callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(
        lambda level, text, _: log.append(text.decode())
    )
    lib.llama_log_set(callback, None)
    one = (ctypes.c_float * 1)(1.0)
    entries = (Entry * 2)(Entry(b"x", ctypes.cast(one, ctypes.c_void_p), 1), Entry(None, None, 0))

    def chosen(path: Path, file_type: int, importance: bool) -> dict[str, str] | None:
        params = lib.llama_model_quantize_default_params()
        params.ftype, params.dry_run, params.nthread = file_type, True, 1
        params.imatrix = ctypes.cast(entries, ctypes.c_void_p) if importance else None
        log.clear()
        if lib.llama_model_quantize(str(path).encode(), b"/dev/null", ctypes.byref(params)):
            if "no tensor type fallback" in "".join(log):
                return None  # llama.cpp knows nothing to take instead
            raise SystemExit("".join(log))
        return {name: (new or old).upper() for name, old, new in LINE.findall("".join(log))}

    file_types = json.loads((folder / "types").read_text())
    goldens = {}
    for path in sorted(folder.glob("*.gguf")):
        said = json.loads(path.with_suffix(".json").read_text())
        types: dict[str, dict[str, str]] = {}
        for name, (file_type, base) in file_types.items():
            plain, weighted = (chosen(path, file_type, importance) for importance in (False, True))
            if plain is None or weighted is None:
                continue
            assert plain.keys() == said["shapes"].keys() == weighted.keys(), path
            of_file = {name: plain, f"{name} importance": weighted} if weighted != plain else {name: plain}
            for key, found in of_file.items():  # without vectors, and without what has the file's own type
                types[key] = packed({n: t for n, t in found.items() if t != base and len(said["shapes"][n]) > 1})
        keys = ("architecture", "block_count", "expert_count", "head_count", "head_count_kv")
        metadata = {k: v for k, v in said["metadata"].items() if k.rpartition(".")[2] in keys}
        goldens[path.stem] = {
            "metadata": metadata,
            "shapes": shapes_packed({n: s for n, s in said["shapes"].items() if len(s) > 1}),
            "types": types,
        }
        print(path.stem, len(said["shapes"]))
    output.write_text(
        json.dumps(goldens, separators=(",", ":")).replace('"},"', '"},\n"').replace('}},"', '}},\n"') + "\n"
    )


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    else:
        run(Path(sys.argv[2]), Path(sys.argv[3]))
