"""AuraFlow: joint blocks of text and image, then single blocks of both, without biases in blocks; norms have no weights.

https://huggingface.co/fal/AuraFlow; queries and keys are normed without weights, so no tensor shows how many heads there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isqrt
from typing import Any

from qtransformers.archs.diffusion.folds import Folding
from qtransformers.archs.diffusion.parts import linear, over, parameter, setting
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks
from qtransformers.archs.spec import Problem, TensorSpec

JOINT = {"i": "num_mmdit_layers"}
SINGLE = {"i": "num_single_dit_layers"}
MULTIPLE = 256  # of the inner width of feed-forward layers


def _patch(s: Any) -> int | None:
    """Side of a patch: its pixels times channels are columns, channels are 4 in every model of the kind."""
    area = over(s.size("pos_embed.proj", 1), 4)
    return isqrt(area) if area and isqrt(area) ** 2 == area else None


HPARAMS = (
    setting("num_mmdit_layers", derive=lambda s: s.count("joint_transformer_blocks.{i}.attn.to_q"), minimum=0, maximum=1024),
    setting("num_single_dit_layers", derive=lambda s: s.count("single_transformer_blocks.{i}.attn.to_q"), minimum=0, maximum=1024),
    setting("num_attention_heads", required=True),
    setting("attention_head_dim", required=True),
    setting("joint_attention_dim", derive=lambda s: s.size("context_embedder", 1)),
    setting("caption_projection_dim", derive=lambda s: s.size("context_embedder", 0)),
    setting("in_channels", 4),
    setting("out_channels", 4),
    setting("patch_size", derive=_patch, maximum=64),
    setting("pos_embed_max_size", derive=lambda s: s.size("pos_embed.pos_embed", -2), maximum=2**24),
    setting("sample_size", 64),
)  # fmt: skip


def _sizes(c: Mapping[str, Any]) -> dict[str, int]:
    dim = c["num_attention_heads"] * c["attention_head_dim"]
    inner = int(2 * 4 * dim / 3)
    return {
        "dim": dim,
        "ff": -(-inner // MULTIPLE) * MULTIPLE,
        "patch": c["patch_size"] ** 2 * c["in_channels"],
        "pixels": c["patch_size"] ** 2 * c["out_channels"],
    }


def _check(c: Mapping[str, Any]) -> Iterator[Problem]:
    if c["caption_projection_dim"] != c["num_attention_heads"] * c["attention_head_dim"]:
        yield Problem(f"num_attention_heads {c['num_attention_heads']} x attention_head_dim {c['attention_head_dim']} is {c['num_attention_heads'] * c['attention_head_dim']}; expected caption_projection_dim {c['caption_projection_dim']}")  # fmt: skip


def _attention(ours: str, theirs: str, names: tuple[str, ...], keys: tuple[str, ...], repeat: Mapping[str, str]) -> Iterator[TensorSpec]:  # fmt: skip
    for name, key in zip(names, keys, strict=True):
        yield linear(f"{ours}.{name}", "dim", "dim", f"{theirs}.{key}", bias="never", role="attn", repeat=repeat)


def _mlp(ours: str, theirs: str, repeat: Mapping[str, str]) -> Iterator[TensorSpec]:
    for name, key, shape in (("linear_1", "c_fc1", ("ff", "dim")), ("linear_2", "c_fc2", ("ff", "dim")), ("out_projection", "c_proj", ("dim", "ff"))):  # fmt: skip
        yield linear(f"{ours}.{name}", *shape, f"{theirs}.{key}", bias="never", role="dense_ffn", repeat=repeat)


def _modulation(ours: str, theirs: str, repeat: Mapping[str, str]) -> TensorSpec:
    return linear(ours, "6*dim", "dim", theirs, bias="never", role="modulation", repeat=repeat)


QKVO = ("to_q", "to_k", "to_v", "to_out.0")
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
TENSORS = (
    parameter("pos_embed.pos_embed", "1", "pos_embed_max_size", "dim", original="positional_encoding"),
    parameter("register_tokens", "1", "8", "dim", original="register_tokens"),
    linear("pos_embed.proj", "dim", "patch", "init_x_linear", role="embed_in"),
    linear("context_embedder", "caption_projection_dim", "joint_attention_dim", "cond_seq_linear", bias="never", role="embed_in"),
    linear("time_step_proj.linear_1", "dim", "256", "t_embedder.mlp.0", role="modulation"),
    linear("time_step_proj.linear_2", "dim", "dim", "t_embedder.mlp.2", role="modulation"),
    _modulation("joint_transformer_blocks.{i}.norm1.linear", "double_layers.{i}.modX.1", JOINT),
    _modulation("joint_transformer_blocks.{i}.norm1_context.linear", "double_layers.{i}.modC.1", JOINT),
    *_attention("joint_transformer_blocks.{i}.attn", "double_layers.{i}.attn", QKVO, ("w2q", "w2k", "w2v", "w2o"), JOINT),
    *_attention("joint_transformer_blocks.{i}.attn", "double_layers.{i}.attn", ADDED, ("w1q", "w1k", "w1v", "w1o"), JOINT),
    *_mlp("joint_transformer_blocks.{i}.ff", "double_layers.{i}.mlpX", JOINT),
    *_mlp("joint_transformer_blocks.{i}.ff_context", "double_layers.{i}.mlpC", JOINT),
    _modulation("single_transformer_blocks.{i}.norm1.linear", "single_layers.{i}.modCX.1", SINGLE),
    *_attention("single_transformer_blocks.{i}.attn", "single_layers.{i}.attn", QKVO, ("w1q", "w1k", "w1v", "w1o"), SINGLE),
    *_mlp("single_transformer_blocks.{i}.ff", "single_layers.{i}.mlp", SINGLE),
    linear("norm_out.linear", "2*dim", "dim", "modF.1[dim:2*dim,0:dim]", bias="never", role="modulation"),
    linear("proj_out", "pixels", "dim", "final_linear", bias="never", role="output"),
)  # fmt: skip

J, S = "joint_transformer_blocks.{i}", "single_transformer_blocks.{i}"
FOLDS = (  # the modulation has no bias, so that none goes there
    Folding((f"{J}.attn.to_v", f"{J}.attn.add_v_proj"), (f"{J}.attn.to_out.0", f"{J}.attn.to_add_out"), "dim", ("i", "num_mmdit_layers")),
    *(Folding((f"{J}.{ff}.linear_2",), (f"{J}.{ff}.out_projection",), "ff", ("i", "num_mmdit_layers")) for ff in ("ff", "ff_context")),
    Folding((f"{S}.attn.to_v",), (f"{S}.attn.to_out.0",), "dim", ("i", "num_single_dit_layers")),
    Folding((f"{S}.ff.linear_2",), (f"{S}.ff.out_projection",), "ff", ("i", "num_single_dit_layers")),
)  # fmt: skip

SPEC = DiffusionSpec(
    id="aura",
    title="AuraFlow",
    aliases=("auraflow",),
    class_name="AuraFlowTransformer2DModel",
    hparams=HPARAMS,
    sizes=_sizes,
    check=_check,
    tensors=TENSORS,
    folds=FOLDS,
    marks={
        "original": (Marks(("cond_seq_linear.weight", "init_x_linear.weight")), Marks(("double_layers.3.modX.1.weight",))),
        "diffusers": (Marks(("context_embedder.weight", "register_tokens", "time_step_proj.linear_1.weight")),),
    },
    variants={
        "AuraFlow 0.1 to 0.3": {
            "num_mmdit_layers": 4, "num_single_dit_layers": 32, "joint_attention_dim": 2048, "caption_projection_dim": 3072,
            "num_attention_heads": 12, "attention_head_dim": 256,
        },
    },
    pipelines=("AuraFlowPipeline",),
    base="fal/AuraFlow-v0.3",
    paper="https://blog.fal.ai/auraflow/",
)  # fmt: skip
