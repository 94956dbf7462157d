"""Flux.1: joint blocks of text and image, then single blocks of both whose attention and feed-forward layers run side by side.

https://github.com/black-forest-labs/flux; dev has guidance, schnell has none, Fill, Depth and Canny take more channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qtransformers.archs.diffusion.folds import NO_WEIGHTS, NOT_LINEAR, modulated, values
from qtransformers.archs.diffusion.hparams import (
    adds_up,
    axes,
    counted,
    dim,
    head_count,
    pixels,
    setting,
    sized,
    told_by,
)
from qtransformers.archs.diffusion.parts import (
    ADDED,
    NORMS,
    QKVO,
    SWAPPED,
    embedder,
    feed_forward,
    head_norms,
    joined_attention,
    linear,
    on,
    split,
)
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks
from qtransformers.archs.spec import Bias, HParam, Problem, TensorSpec

DOUBLE = {"i": "num_layers"}
SINGLE = {"i": "num_single_layers"}
B, S = "transformer_blocks.{i}", "single_transformer_blocks.{i}"
QKV = tuple(f"attn.{name}" for name in QKVO[:3])
KEYS = ("query_norm", "key_norm")
# Some tools write the weights of norms as they write all others
NAMES = ((r"\.(query|key)_norm\.weight$", r".\1_norm.scale"),)


def sizes(c: Mapping[str, Any]) -> dict[str, int]:
    """What symbolic shapes call by a name."""
    return {"dim": dim(c), "ff": 4 * dim(c), "pixels": pixels(c)}


def check(c: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong between settings."""
    yield from adds_up(c, "axes_dims_rope", c["attention_head_dim"])


def shared_settings(*axes_dims: int) -> tuple[HParam, ...]:
    """The settings that all models of the family have."""
    return (
        setting("patch_size", 1, maximum=64),
        sized("in_channels", "x_embedder", 1),
        sized("out_channels", "proj_out", 0),
        counted("num_layers", f"{B}.attn.to_out.0", minimum=0),
        sized("attention_head_dim", f"{B}.attn.norm_q", 0),
        head_count("num_attention_heads", "x_embedder", f"{B}.attn.norm_q"),
        sized("joint_attention_dim", "context_embedder", 1),
        axes("axes_dims_rope", *axes_dims),
    )  # fmt: skip


def inputs(bias: Bias = "required") -> Iterator[TensorSpec]:
    """Where picture and text come in."""
    yield linear("x_embedder", "dim", "in_channels", "img_in", bias=bias, role="embed_in")
    yield linear("context_embedder", "dim", "joint_attention_dim", "txt_in", bias=bias, role="embed_in")


def joint_attention(bias: Bias = "required") -> Iterator[TensorSpec]:
    """Attention of joint blocks: queries, keys and values of either stream are one layer in the original layout."""
    for stream, names, normed in (("img", QKVO, NORMS), ("txt", ADDED, ("norm_added_q", "norm_added_k"))):
        there = f"double_blocks.{{i}}.{stream}_attn"
        yield from joined_attention(f"{B}.attn", f"{there}.qkv", f"{there}.proj", names, bias=bias, repeat=DOUBLE)
        yield from head_norms(f"{B}.attn", "attention_head_dim", f"{there}.norm.", KEYS, normed, suffix=".scale", repeat=DOUBLE)  # fmt: skip


def joint_mlps() -> Iterator[TensorSpec]:
    """Feed-forward layers of joint blocks."""
    for ours, theirs in (("ff", "img_mlp"), ("ff_context", "txt_mlp")):
        yield from feed_forward(f"{B}.{ours}", f"double_blocks.{{i}}.{theirs}", hidden="ff", repeat=DOUBLE)


def single_blocks() -> Iterator[TensorSpec]:
    """Single blocks: one layer in the original layout for queries, keys, values and what the feed-forward layer takes."""
    inputs = dict.fromkeys((f"{S}.{name}" for name in QKV), "dim") | {f"{S}.proj_mlp": "ff"}
    yield from split("single_blocks.{i}.linear1", "dim", inputs, repeat=SINGLE)
    yield linear(f"{S}.proj_out", "dim", "dim+ff", "single_blocks.{i}.linear2", repeat=SINGLE)
    yield from single_norms()


def single_norms() -> Iterator[TensorSpec]:
    """Norms of queries and keys of single blocks."""
    yield from head_norms(f"{S}.attn", "attention_head_dim", "single_blocks.{i}.norm.", KEYS, suffix=".scale", repeat=SINGLE)  # fmt: skip


def outputs(bias: Bias = "required") -> Iterator[TensorSpec]:
    """Where the picture goes out."""
    yield linear("norm_out.linear", "2*dim", "dim", f"final_layer.adaLN_modulation.1{SWAPPED}", bias=bias, role="modulation")  # fmt: skip
    yield linear("proj_out", "pixels", "dim", "final_layer.linear", bias=bias, role="output")


LAYERS = ("in_layer", "out_layer")  # of embedders in the original layout
TENSORS = (
    *inputs(),
    *embedder("time_text_embed.timestep_embedder", "256", "dim", "time_in", LAYERS),
    *embedder("time_text_embed.guidance_embedder", "256", "dim", "guidance_in", LAYERS, when=on("guidance_embeds")),
    *embedder("time_text_embed.text_embedder", "pooled_projection_dim", "dim", "vector_in", LAYERS),
    linear(f"{B}.norm1.linear", "6*dim", "dim", "double_blocks.{i}.img_mod.lin", role="modulation", repeat=DOUBLE),
    linear(f"{B}.norm1_context.linear", "6*dim", "dim", "double_blocks.{i}.txt_mod.lin", role="modulation", repeat=DOUBLE),
    *joint_attention(),
    *joint_mlps(),
    linear(f"{S}.norm.linear", "3*dim", "dim", "single_blocks.{i}.modulation.lin", role="modulation", repeat=SINGLE),
    *single_blocks(),
    *outputs(),
)  # fmt: skip

JOINT_VALUES = values(B, ("attn.to_v", "attn.add_v_proj"), ("attn.to_out.0", "attn.to_add_out"), DOUBLE)
VALUES = (JOINT_VALUES, values(S, ("attn.to_v",), ("proj_out[0:dim]",), SINGLE))
FOLDS = (
    modulated(f"{B}.norm1.linear", 1, 0, (f"{B}.{name}" for name in QKV), DOUBLE),
    modulated(f"{B}.norm1.linear", 4, 3, (f"{B}.ff.net.0.proj",), DOUBLE),
    modulated(f"{B}.norm1_context.linear", 1, 0, (f"{B}.attn.{name}" for name in ADDED[:3]), DOUBLE),
    modulated(f"{B}.norm1_context.linear", 4, 3, (f"{B}.ff_context.net.0.proj",), DOUBLE),
    modulated(f"{S}.norm.linear", 1, 0, (f"{S}.{name}" for name in (*QKV, "proj_mlp")), SINGLE),
    *VALUES,
)

SPEC = DiffusionSpec(
    id="flux",
    title="Flux.1",
    class_name="FluxTransformer2DModel",
    hparams=(
        *shared_settings(16, 56, 56),
        counted("num_single_layers", f"{S}.proj_out", minimum=0),
        sized("pooled_projection_dim", "time_text_embed.text_embedder.linear_1", 1),
        told_by("guidance_embeds", "time_text_embed.guidance_embedder.linear_1"),
    ),
    sizes=sizes,
    check=check,
    tensors=TENSORS,
    folds=FOLDS,
    unfolded={"norm": NO_WEIGHTS, "gated": NOT_LINEAR},
    marks={
        "original": (Marks(("double_blocks.0.img_attn.proj.weight", "vector_in.in_layer.weight")),),
        "diffusers": (Marks(("single_transformer_blocks.0.proj_mlp.weight", "time_text_embed.text_embedder.linear_1.weight"), none=("x_embedder.proj.weight",)),),
    },
    original_names=NAMES,
    pipelines=("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxFillPipeline", "FluxControlPipeline", "FluxKontextPipeline"),
    paper="https://github.com/black-forest-labs/flux",
)  # fmt: skip
