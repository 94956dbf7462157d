"""Text encoders of diffusion models: T5 and UMT5 in llama.cpp's names or those of transformers, CLIP in those of transformers, Qwen2.5-VL in llama.cpp's.

Raffel et al. 2019 (arXiv:1910.10683), Chung et al. 2023 (arXiv:2304.09151), Radford et al. 2021 (arXiv:2103.00020), Bai et al. 2025 (arXiv:2502.13923).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qtransformers.archs.diffusion.hparams import over, setting, sized, told_by
from qtransformers.archs.diffusion.parts import embedding, linear, norm, off, on
from qtransformers.archs.diffusion.spec import DiffusionSpec, Layout, Marks
from qtransformers.archs.spec import Problem, TensorSpec

LAYERS = {"i": "num_layers"}
BLOCK, ENC = "encoder.block.{i}.layer", "enc.blk.{i}"
QUERY, BIAS = f"{BLOCK}.0.SelfAttention.q", f"{BLOCK}.0.SelfAttention.relative_attention_bias"


T5 = DiffusionSpec(
    id="t5encoder",
    title="T5 encoder",
    aliases=("t5", "umt5"),
    class_name="T5EncoderModel",
    hparams=(
        setting("num_layers", derive=lambda s: s.count(QUERY)),
        sized("vocab_size", "shared", 0),
        sized("d_model", "shared", 1),
        sized("num_heads", BIAS, 1),
        sized("relative_attention_num_buckets", BIAS, 0),
        setting("d_kv", derive=lambda s: over(s.size(QUERY, 0), s.size(BIAS, 1))),
        sized("d_ff", f"{BLOCK}.1.DenseReluDense.wo", 1),
        told_by("gated", f"{BLOCK}.1.DenseReluDense.wi_0"),
        setting("feed_forward_proj", lambda c: "gated-gelu" if c["gated"] else "relu", kind=str),
        setting("biases_each_layer", kind=bool, derive=lambda s: s.count(BIAS) > 1),  # UMT5
        setting("relative_attention_max_distance", 128),
    ),
    tensors=(
        embedding("shared", "vocab_size", "d_model", "token_embd"),
        *(linear(f"{BLOCK}.0.SelfAttention.{theirs}", "num_heads*d_kv", "d_model", f"{ENC}.attn_{theirs}", bias="never", role="attn", repeat=LAYERS) for theirs in "qkv"),
        linear(f"{BLOCK}.0.SelfAttention.o", "d_model", "num_heads*d_kv", f"{ENC}.attn_o", bias="never", role="attn", repeat=LAYERS),
        embedding(BIAS, "relative_attention_num_buckets", "num_heads", f"{ENC}.attn_rel_b", repeat=LAYERS, when=lambda c, i: i == 0 or c["biases_each_layer"]),
        norm(f"{BLOCK}.0.layer_norm", "d_model", f"{ENC}.attn_norm", repeat=LAYERS),
        linear(f"{BLOCK}.1.DenseReluDense.wi_0", "d_ff", "d_model", f"{ENC}.ffn_gate", bias="never", role="dense_ffn", repeat=LAYERS, when=on("gated")),
        linear(f"{BLOCK}.1.DenseReluDense.wi_1", "d_ff", "d_model", f"{ENC}.ffn_up", bias="never", role="dense_ffn", repeat=LAYERS, when=on("gated")),
        linear(f"{BLOCK}.1.DenseReluDense.wi", "d_ff", "d_model", f"{ENC}.ffn_up", bias="never", role="dense_ffn", repeat=LAYERS, when=off("gated")),
        linear(f"{BLOCK}.1.DenseReluDense.wo", "d_model", "d_ff", f"{ENC}.ffn_down", bias="never", role="dense_ffn", repeat=LAYERS),
        norm(f"{BLOCK}.1.layer_norm", "d_model", f"{ENC}.ffn_norm", repeat=LAYERS),
        norm("encoder.final_layer_norm", "d_model", "enc.output_norm"),
    ),
    marks={
        "original": (Marks(("enc.blk.0.attn_rel_b.weight", "enc.output_norm.weight")),),
        "diffusers": (Marks(("shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight")),),
    },
    unused=(r"dec\..*", r"decoder\..*", r"(output|lm_head)\.weight", r"encoder\.embed_tokens\.weight"),
)  # fmt: skip


def _clip_check(c: Mapping[str, Any]) -> Iterator[Problem]:
    if c["hidden_size"] % c["num_attention_heads"]:
        yield Problem(
            f"hidden_size {c['hidden_size']} is no multiple of num_attention_heads {c['num_attention_heads']}"
        )


def _clip(id: str, title: str, class_name: str, prefix: str, projection: bool) -> DiffusionSpec:
    """CLIP's text part; with the projection of its pooled state transformers puts a prefix before its names."""
    layer = prefix + "encoder.layers.{i}"
    repeat = {"i": "num_hidden_layers"}
    older = "" if projection else "text_model."  # than transformers 5

    def in_layer(make: Callable[..., TensorSpec], name: str, *shape: str, **more: Any) -> TensorSpec:
        return make(f"{layer}.{name}", *shape, f"{older}{layer}.{name}", repeat=repeat, **more)

    def square(name: str) -> TensorSpec:
        return in_layer(linear, f"self_attn.{name}", "hidden_size", "hidden_size", role="attn")

    def once(make: Callable[..., TensorSpec], name: str, *shape: str, **more: Any) -> TensorSpec:
        return make(prefix + name, *shape, older + prefix + name, **more)

    positions, project = "embeddings.position_embedding.weight", "text_projection.weight"
    marks: dict[Layout, tuple[Marks, ...]] = (
        {"diffusers": (Marks((prefix + positions, project)),)}
        if projection
        else {"original": (Marks((older + positions,), none=(project,)),), "diffusers": (Marks((positions,)),)}
    )
    return DiffusionSpec(
        id=id,
        title=title,
        class_name=class_name,
        hparams=(
            setting("num_hidden_layers", derive=lambda s: s.count(f"{layer}.mlp.fc1")),
            sized("vocab_size", f"{prefix}embeddings.token_embedding", 0),
            sized("hidden_size", f"{prefix}embeddings.token_embedding", 1),
            sized("max_position_embeddings", f"{prefix}embeddings.position_embedding", 0),
            sized("intermediate_size", f"{layer}.mlp.fc1", 0),
            *((sized("projection_dim", "text_projection", 0),) if projection else ()),
            setting("num_attention_heads", required=True),
            setting("hidden_act", kind=str, required=True),
        ),
        check=_clip_check,
        tensors=(
            once(embedding, "embeddings.token_embedding", "vocab_size", "hidden_size"),
            once(embedding, "embeddings.position_embedding", "max_position_embeddings", "hidden_size"),
            *map(square, ("q_proj", "k_proj", "v_proj", "out_proj")),
            in_layer(norm, "layer_norm1", "hidden_size", bias="required"),
            in_layer(norm, "layer_norm2", "hidden_size", bias="required"),
            in_layer(linear, "mlp.fc1", "intermediate_size", "hidden_size", role="dense_ffn"),
            in_layer(linear, "mlp.fc2", "hidden_size", "intermediate_size", role="dense_ffn"),
            once(norm, "final_layer_norm", "hidden_size", bias="required"),
            *((linear("text_projection", "projection_dim", "hidden_size", "text_projection", bias="never", role="output"),) if projection else ()),
        ),
        marks=marks,
        unused=(r".*embeddings\.position_ids", r"logit_scale"),
        variants={
            "OpenAI CLIP ViT-L/14": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "hidden_act": "quick_gelu"},
            "OpenCLIP ViT-bigG/14": {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "hidden_act": "gelu"},
        },
    )  # fmt: skip


CLIP = _clip("clip_text", "CLIP text encoder", "CLIPTextModel", "", False)
CLIP_PROJECTED = _clip(
    "clip_text_projected", "CLIP text encoder with projection", "CLIPTextModelWithProjection", "text_model.", True
)


def _qwen_check(c: Mapping[str, Any]) -> Iterator[Problem]:
    n, groups = c["num_attention_heads"], c["num_key_value_heads"]
    if c["hidden_size"] % n or n % groups or c["kv_size"] * n != c["hidden_size"] * groups:
        yield Problem(f"num_attention_heads {n} and num_key_value_heads {groups} do not fit hidden_size {c['hidden_size']} and {c['kv_size']} rows of keys")  # fmt: skip
    if len(c["mrope_section"]) != 3 or sum(c["mrope_section"]) * 2 * n != c["hidden_size"]:
        yield Problem(f"mrope_section is {list(c['mrope_section'])}; expected three numbers that add up to half a head")


QWEN_LAYER, BLK = "layers.{i}", "blk.{i}"
QWEN_LAYERS = {"i": "num_hidden_layers"}
# What Qwen-Image reads prompts with. Its class for pictures is another, and needs the vision part that such files lack
QWEN2_VL = DiffusionSpec(
    id="qwen2vl",
    title="Qwen2.5-VL text part",
    class_name="Qwen2_5_VLTextModel",
    hparams=(
        setting("num_hidden_layers", derive=lambda s: s.count(f"{QWEN_LAYER}.self_attn.q_proj")),
        sized("vocab_size", "embed_tokens", 0),
        sized("hidden_size", "embed_tokens", 1),
        sized("intermediate_size", f"{QWEN_LAYER}.mlp.gate_proj", 0),
        sized("kv_size", f"{QWEN_LAYER}.self_attn.k_proj", 0),
        setting("num_attention_heads", required=True),
        setting("num_key_value_heads", lambda c: c["kv_size"] * c["num_attention_heads"] // c["hidden_size"]),
        setting("rms_norm_eps", 1e-6, kind=float, minimum=0, maximum=1),
        setting("rope_theta", 1e6, kind=float, maximum=1e9),
        setting("mrope_section", lambda c: (16, 24, 24) if c["hidden_size"] == 128 * c["num_attention_heads"] else None, kind=tuple),
        setting("hidden_act", "silu", kind=str, choices=("silu",)),
        setting("use_sliding_window", False, kind=bool, choices=(False,)),
    ),
    check=_qwen_check,
    tensors=(
        embedding("embed_tokens", "vocab_size", "hidden_size", "token_embd"),
        norm(f"{QWEN_LAYER}.input_layernorm", "hidden_size", f"{BLK}.attn_norm", repeat=QWEN_LAYERS),
        *(linear(f"{QWEN_LAYER}.self_attn.{n}_proj", size, "hidden_size", f"{BLK}.attn_{n}", role="attn", repeat=QWEN_LAYERS) for n, size in (("q", "hidden_size"), ("k", "kv_size"), ("v", "kv_size"))),
        linear(f"{QWEN_LAYER}.self_attn.o_proj", "hidden_size", "hidden_size", f"{BLK}.attn_output", bias="never", role="attn", repeat=QWEN_LAYERS),
        norm(f"{QWEN_LAYER}.post_attention_layernorm", "hidden_size", f"{BLK}.ffn_norm", repeat=QWEN_LAYERS),
        *(linear(f"{QWEN_LAYER}.mlp.{n}_proj", "intermediate_size", "hidden_size", f"{BLK}.ffn_{n}", bias="never", role="dense_ffn", repeat=QWEN_LAYERS) for n in ("gate", "up")),
        linear(f"{QWEN_LAYER}.mlp.down_proj", "hidden_size", "intermediate_size", f"{BLK}.ffn_down", bias="never", role="dense_ffn", repeat=QWEN_LAYERS),
        norm("norm", "hidden_size", "output_norm"),
    ),
    marks={"original": (Marks(("token_embd.weight", "blk.0.attn_q.bias", "blk.0.attn_k.bias", "blk.0.ffn_gate.weight"), none=("blk.0.attn_q_norm.weight", "blk.0.attn_output.bias")),)},
    keys={
        "num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon", "rope_theta": "rope.freq_base",
    },
    variants={"Qwen2.5-VL 7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28}},
    unused=(r"output\.weight",),
)  # fmt: skip
ENCODERS = (T5, CLIP_PROJECTED, CLIP, QWEN2_VL)
