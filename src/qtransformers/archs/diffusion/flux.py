"""Flux.1: joint blocks of text and image, then single blocks of both whose attention and feed-forward layers run side by side.

https://github.com/black-forest-labs/flux; dev has guidance, schnell has none, Fill, Depth and Canny take more channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qtransformers.archs.diffusion.folds import Folding, modulated
from qtransformers.archs.diffusion.parts import adds_up, axes, heads, linear, norm, over, setting, split
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks
from qtransformers.archs.spec import HParam, Problem, TensorSpec

DOUBLE = {"i": "num_layers"}
SINGLE = {"i": "num_single_layers"}
QKV = {"attn.to_q": "dim", "attn.to_k": "dim", "attn.to_v": "dim"}
ADDED = {"attn.add_q_proj": "dim", "attn.add_k_proj": "dim", "attn.add_v_proj": "dim"}
# Some tools write the weights of norms as they write all others
NAMES = ((r"\.(query|key)_norm\.weight$", r".\1_norm.scale"),)


def sizes(c: Mapping[str, Any]) -> dict[str, int]:
    """What symbolic shapes call by a name."""
    dim = c["num_attention_heads"] * c["attention_head_dim"]
    return {"dim": dim, "ff": 4 * dim, "pixels": c["patch_size"] ** 2 * c["out_channels"]}


def check(c: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong between settings."""
    yield from adds_up(c, "axes_dims_rope", c["attention_head_dim"])
    yield from heads(c, c["num_attention_heads"] * c["attention_head_dim"])


def shared_settings(*axes_dims: int) -> tuple[HParam, ...]:
    """The settings that all models of the family have."""
    return (
        setting("patch_size", 1, maximum=64),
        setting("in_channels", derive=lambda s: s.size("x_embedder", 1)),
        setting("out_channels", derive=lambda s: s.size("proj_out", 0)),
        setting("num_layers", derive=lambda s: s.count("transformer_blocks.{i}.attn.to_out.0"), minimum=0, maximum=1024),
        setting("attention_head_dim", derive=lambda s: s.size("transformer_blocks.{i}.attn.norm_q", 0)),
        setting("num_attention_heads", derive=lambda s: over(s.size("x_embedder", 0), s.size("transformer_blocks.{i}.attn.norm_q", 0))),
        setting("joint_attention_dim", derive=lambda s: s.size("context_embedder", 1)),
        axes("axes_dims_rope", *axes_dims),
    )  # fmt: skip


def joint_attention(bias: str = "required") -> Iterator[TensorSpec]:
    """Attention of joint blocks: queries, keys and values of either stream are one layer in the original layout."""
    for stream, names, normed in (("img", QKV, ("norm_q", "norm_k")), ("txt", ADDED, ("norm_added_q", "norm_added_k"))):
        there = f"double_blocks.{{i}}.{stream}_attn"
        out = "to_out.0" if stream == "img" else "to_add_out"
        named = {f"transformer_blocks.{{i}}.{name}": size for name, size in names.items()}
        yield from split(f"{there}.qkv", "dim", named, bias=bias, repeat=DOUBLE)  # type: ignore[arg-type]
        yield linear(f"transformer_blocks.{{i}}.attn.{out}", "dim", "dim", f"{there}.proj", bias=bias, role="attn", repeat=DOUBLE)  # type: ignore[arg-type]  # fmt: skip
        for name, key in zip(normed, ("query_norm", "key_norm"), strict=True):
            yield norm(f"transformer_blocks.{{i}}.attn.{name}", "attention_head_dim", f"{there}.norm.{key}", suffix=".scale", repeat=DOUBLE)  # fmt: skip


def joint_mlps() -> Iterator[TensorSpec]:
    """Feed-forward layers of joint blocks."""
    for ours, theirs in (("ff", "img_mlp"), ("ff_context", "txt_mlp")):
        yield linear(f"transformer_blocks.{{i}}.{ours}.net.0.proj", "ff", "dim", f"double_blocks.{{i}}.{theirs}.0", role="dense_ffn", repeat=DOUBLE)  # fmt: skip
        yield linear(f"transformer_blocks.{{i}}.{ours}.net.2", "dim", "ff", f"double_blocks.{{i}}.{theirs}.2", role="dense_ffn", repeat=DOUBLE)  # fmt: skip


def single_blocks() -> Iterator[TensorSpec]:
    """Single blocks: one layer in the original layout for queries, keys, values and what the feed-forward layer takes."""
    inputs = {**QKV, "proj_mlp": "ff"}
    named = {f"single_transformer_blocks.{{i}}.{name}": size for name, size in inputs.items()}
    yield from split("single_blocks.{i}.linear1", "dim", named, repeat=SINGLE)
    yield linear("single_transformer_blocks.{i}.proj_out", "dim", "dim+ff", "single_blocks.{i}.linear2", repeat=SINGLE)
    yield from single_norms()


def single_norms() -> Iterator[TensorSpec]:
    """Norms of queries and keys of single blocks."""
    for name, key in (("norm_q", "query_norm"), ("norm_k", "key_norm")):
        yield norm(f"single_transformer_blocks.{{i}}.attn.{name}", "attention_head_dim", f"single_blocks.{{i}}.norm.{key}", suffix=".scale", repeat=SINGLE)  # fmt: skip


def _guided(c: Mapping[str, Any], layer: int) -> bool:
    return bool(c["guidance_embeds"])


TENSORS = (
    linear("x_embedder", "dim", "in_channels", "img_in", role="embed_in"),
    linear("context_embedder", "dim", "joint_attention_dim", "txt_in", role="embed_in"),
    linear("time_text_embed.timestep_embedder.linear_1", "dim", "256", "time_in.in_layer", role="modulation"),
    linear("time_text_embed.timestep_embedder.linear_2", "dim", "dim", "time_in.out_layer", role="modulation"),
    linear("time_text_embed.guidance_embedder.linear_1", "dim", "256", "guidance_in.in_layer", role="modulation", when=_guided),
    linear("time_text_embed.guidance_embedder.linear_2", "dim", "dim", "guidance_in.out_layer", role="modulation", when=_guided),
    linear("time_text_embed.text_embedder.linear_1", "dim", "pooled_projection_dim", "vector_in.in_layer", role="modulation"),
    linear("time_text_embed.text_embedder.linear_2", "dim", "dim", "vector_in.out_layer", role="modulation"),
    linear("transformer_blocks.{i}.norm1.linear", "6*dim", "dim", "double_blocks.{i}.img_mod.lin", role="modulation", repeat=DOUBLE),
    linear("transformer_blocks.{i}.norm1_context.linear", "6*dim", "dim", "double_blocks.{i}.txt_mod.lin", role="modulation", repeat=DOUBLE),
    *joint_attention(),
    *joint_mlps(),
    linear("single_transformer_blocks.{i}.norm.linear", "3*dim", "dim", "single_blocks.{i}.modulation.lin", role="modulation", repeat=SINGLE),
    *single_blocks(),
    linear("norm_out.linear", "2*dim", "dim", "final_layer.adaLN_modulation.1[dim:2*dim,0:dim]", role="modulation"),
    linear("proj_out", "pixels", "dim", "final_layer.linear", role="output"),
)  # fmt: skip

B, S = "transformer_blocks.{i}", "single_transformer_blocks.{i}"
IN_DOUBLE, IN_SINGLE = ("i", "num_layers"), ("i", "num_single_layers")
VALUES = Folding((f"{B}.attn.to_v", f"{B}.attn.add_v_proj"), (f"{B}.attn.to_out.0", f"{B}.attn.to_add_out"), "dim", IN_DOUBLE)  # fmt: skip
FOLDS = (
    modulated(f"{B}.norm1.linear", 1, 0, tuple(f"{B}.{name}" for name in QKV), IN_DOUBLE),
    modulated(f"{B}.norm1.linear", 4, 3, (f"{B}.ff.net.0.proj",), IN_DOUBLE),
    modulated(f"{B}.norm1_context.linear", 1, 0, tuple(f"{B}.{name}" for name in ADDED), IN_DOUBLE),
    modulated(f"{B}.norm1_context.linear", 4, 3, (f"{B}.ff_context.net.0.proj",), IN_DOUBLE),
    VALUES,
    modulated(f"{S}.norm.linear", 1, 0, tuple(f"{S}.{name}" for name in (*QKV, "proj_mlp")), IN_SINGLE),
    Folding((f"{S}.attn.to_v",), (f"{S}.proj_out[0:dim]",), "dim", IN_SINGLE),
)

SPEC = DiffusionSpec(
    id="flux",
    title="Flux.1",
    class_name="FluxTransformer2DModel",
    hparams=(
        *shared_settings(16, 56, 56),
        setting("num_single_layers", derive=lambda s: s.count("single_transformer_blocks.{i}.proj_out"), minimum=0, maximum=1024),
        setting("pooled_projection_dim", derive=lambda s: s.size("time_text_embed.text_embedder.linear_1", 1)),
        setting("guidance_embeds", kind=bool, derive=lambda s: s.has("time_text_embed.guidance_embedder.linear_1")),
    ),
    sizes=sizes,
    check=check,
    tensors=TENSORS,
    folds=FOLDS,
    marks={
        "original": (Marks(("double_blocks.0.img_attn.proj.weight", "vector_in.in_layer.weight")),),
        "diffusers": (Marks(("single_transformer_blocks.0.proj_mlp.weight", "time_text_embed.text_embedder.linear_1.weight"), none=("x_embedder.proj.weight",)),),
    },
    original_names=NAMES,
    pipelines=("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxFillPipeline", "FluxControlPipeline", "FluxKontextPipeline"),
    paper="https://github.com/black-forest-labs/flux",
)  # fmt: skip
