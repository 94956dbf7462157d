"""AuraFlow: joint blocks of text and image, then single blocks of both, without biases in blocks; norms have no weights.

https://huggingface.co/fal/AuraFlow; queries and keys are normed without weights, so no tensor shows how many heads there are.
The published models have the defaults of the class in diffusers, as scripts/convert_aura_flow_to_diffusers.py says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qtransformers.archs.diffusion.folds import NO_BIAS, NO_WEIGHTS, linear_half, values
from qtransformers.archs.diffusion.hparams import counted, dim, heads, over, pixels, root, rounded_up, setting, sized
from qtransformers.archs.diffusion.parts import ADDED, QKVO, SWAPPED, attention, embedder, gated, linear, parameter
from qtransformers.archs.diffusion.shapes import Shapes
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks
from qtransformers.archs.spec import Problem, TensorSpec

JOINT = {"i": "num_mmdit_layers"}
SINGLE = {"i": "num_single_dit_layers"}
J, S = "joint_transformer_blocks.{i}", "single_transformer_blocks.{i}"
MULTIPLE = 256  # of the inner width of feed-forward layers


def _patch(s: Shapes) -> int | None:
    """Side of a patch: its pixels times channels are columns, channels are 4 in every model of the kind."""
    return root(over(s.size("pos_embed.proj", 1), 4))


HPARAMS = (
    counted("num_mmdit_layers", f"{J}.attn.to_q", minimum=0),
    counted("num_single_dit_layers", f"{S}.attn.to_q", minimum=0),
    setting("num_attention_heads", required=True),
    setting("attention_head_dim", required=True),
    sized("joint_attention_dim", "context_embedder", 1),
    sized("caption_projection_dim", "context_embedder", 0),
    setting("in_channels", 4),
    setting("out_channels", 4),
    setting("patch_size", derive=_patch, maximum=64),
    sized("pos_embed_max_size", "pos_embed.pos_embed", -2, maximum=2**24),
    setting("sample_size", 64),
)  # fmt: skip


def _sizes(c: Mapping[str, Any]) -> dict[str, int]:
    inner = int(2 * 4 * dim(c) / 3)
    return {"dim": dim(c), "ff": rounded_up(inner, MULTIPLE), "patch": pixels(c, "in_channels"), "pixels": pixels(c)}


def _check(c: Mapping[str, Any]) -> Iterator[Problem]:
    yield from heads(c, c["caption_projection_dim"])


def _modulation(ours: str, theirs: str, repeat: Mapping[str, str]) -> TensorSpec:
    return linear(ours, "6*dim", "dim", theirs, bias="never", role="modulation", repeat=repeat)


MLP, KEYS = ("linear_1", "out_projection", "linear_2"), ("c_fc1", "c_proj", "c_fc2")  # gate, down, up
TENSORS = (
    parameter("pos_embed.pos_embed", "1", "pos_embed_max_size", "dim", original="positional_encoding"),
    parameter("register_tokens", "1", "8", "dim", original="register_tokens"),
    linear("pos_embed.proj", "dim", "patch", "init_x_linear", role="embed_in"),
    linear("context_embedder", "caption_projection_dim", "joint_attention_dim", "cond_seq_linear", bias="never", role="embed_in"),
    *embedder("time_step_proj", "256", "dim", "t_embedder.mlp"),
    _modulation(f"{J}.norm1.linear", "double_layers.{i}.modX.1", JOINT),
    _modulation(f"{J}.norm1_context.linear", "double_layers.{i}.modC.1", JOINT),
    *attention(f"{J}.attn", "double_layers.{i}.attn", ("w2q", "w2k", "w2v", "w2o"), QKVO, bias="never", repeat=JOINT),
    *attention(f"{J}.attn", "double_layers.{i}.attn", ("w1q", "w1k", "w1v", "w1o"), ADDED, bias="never", repeat=JOINT),
    *gated(f"{J}.ff", MLP, "double_layers.{i}.mlpX", KEYS, repeat=JOINT),
    *gated(f"{J}.ff_context", MLP, "double_layers.{i}.mlpC", KEYS, repeat=JOINT),
    _modulation(f"{S}.norm1.linear", "single_layers.{i}.modCX.1", SINGLE),
    *attention(f"{S}.attn", "single_layers.{i}.attn", ("w1q", "w1k", "w1v", "w1o"), QKVO, bias="never", repeat=SINGLE),
    *gated(f"{S}.ff", MLP, "single_layers.{i}.mlp", KEYS, repeat=SINGLE),
    linear("norm_out.linear", "2*dim", "dim", f"modF.1{SWAPPED}", bias="never", role="modulation"),
    linear("proj_out", "pixels", "dim", "final_linear", bias="never", role="output"),
)  # fmt: skip

FOLDS = (
    values(J, ("attn.to_v", "attn.add_v_proj"), ("attn.to_out.0", "attn.to_add_out"), JOINT),
    *(linear_half(f"{J}.{ff}.linear_2", f"{J}.{ff}.out_projection", JOINT) for ff in ("ff", "ff_context")),
    values(S, ("attn.to_v",), ("attn.to_out.0",), SINGLE),
    linear_half(f"{S}.ff.linear_2", f"{S}.ff.out_projection", SINGLE),
)

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
    unfolded={"modulation": NO_BIAS, "norm": NO_WEIGHTS},
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
