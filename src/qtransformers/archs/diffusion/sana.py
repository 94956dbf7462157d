"""Sana: linear attention and gated convolutions, so that many tokens are cheap; one table of modulation a block.

https://arxiv.org/abs/2410.10629; Sana 1.5 and Sprint norm queries and keys across heads, Sprint embeds its guidance too.
Variants, sizes of samples and scales of positions: scripts/convert_sana_to_diffusers.py of diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qtransformers.archs.diffusion.folds import Folding, tabled, values
from qtransformers.archs.diffusion.hparams import (
    counted,
    dim,
    heads,
    over,
    patch,
    pixels,
    ratio,
    setting,
    sized,
    told_by,
)
from qtransformers.archs.diffusion.parts import (
    QKVO,
    conv,
    embedder,
    head_norms,
    linear,
    norm,
    off,
    on,
    parameter,
    split,
)
from qtransformers.archs.diffusion.shapes import Shapes
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks
from qtransformers.archs.spec import Problem

BLOCK = {"i": "num_layers"}
FIRST = "transformer_blocks.{i}"
PATCH = patch("patch_embed.proj")
SCALES = {64: 1.0, 128: 2.0}  # of positions, by the size of the latents: smaller models have none


def _channels(s: Shapes) -> int | None:
    return over(s.size("proj_out", 0), (PATCH(s) or 0) ** 2)


HPARAMS = (
    sized("in_channels", "patch_embed.proj", 1),
    setting("out_channels", derive=_channels),
    setting("num_attention_heads", required=True, hint="70 in Sana 1.6B and 4.8B, 36 in 0.6B"),
    setting("attention_head_dim", required=True, hint="32 in all published models"),
    counted("num_layers", f"{FIRST}.scale_shift_table"),
    setting("num_cross_attention_heads", required=True, hint="20 in Sana 1.6B and 4.8B, 16 in 0.6B"),
    setting("cross_attention_head_dim", required=True, hint="112 in Sana 1.6B and 4.8B, 72 in 0.6B"),
    setting("cross_attention_dim", derive=lambda s: s.whole(f"{FIRST}.attn2.to_k", 1)),
    sized("caption_channels", "caption_projection.linear_1", 1),
    setting("mlp_ratio", kind=float, derive=ratio(f"{FIRST}.ff.conv_point", inverse=True), minimum=0, maximum=64),
    told_by("attention_bias", f"{FIRST}.attn1.to_q.bias"),
    setting("sample_size", required=True, hint="16 for pictures of 512 pixels, 32 for 1024, 64 for 2048, 128 for 4096"),
    setting("patch_size", derive=PATCH, maximum=64),
    setting("norm_elementwise_affine", False, kind=bool, choices=(False,)),
    setting("norm_eps", 1e-6, kind=float, minimum=0),
    setting("interpolation_scale", lambda c: SCALES.get(c["sample_size"]), kind=float, nullable=True, minimum=0),
    told_by("guidance_embeds", "time_embed.guidance_embedder.linear_1"),
    setting("qk_norm", kind=str, nullable=True, derive=lambda s: "rms_norm_across_heads" if s.has(f"{FIRST}.attn1.norm_q") else None),
)  # fmt: skip


def _sizes(c: Mapping[str, Any]) -> dict[str, int]:
    return {
        "dim": dim(c),
        "cross": c["num_cross_attention_heads"] * c["cross_attention_head_dim"],
        "ff": int(c["mlp_ratio"] * dim(c)),
        "pixels": pixels(c),
    }


def _check(c: Mapping[str, Any]) -> Iterator[Problem]:
    yield from heads(c, dim(c), named="num_cross_attention_heads", head_dim="cross_attention_head_dim")


GUIDED, NORMED = on("guidance_embeds"), on("qk_norm")
TENSORS = (
    conv("patch_embed.proj", "dim", "in_channels", ("patch_size", "patch_size"), "x_embedder.proj"),
    *embedder("time_embed.emb.timestep_embedder", "256", "dim", "t_embedder.mlp", when=off("guidance_embeds")),
    *embedder("time_embed.timestep_embedder", "256", "dim", "t_embedder.mlp", when=GUIDED),
    *embedder("time_embed.guidance_embedder", "256", "dim", "cfg_embedder.mlp", when=GUIDED),
    linear("time_embed.linear", "6*dim", "dim", "t_block.1", role="modulation"),
    *embedder("caption_projection", "caption_channels", "dim", "y_embedder.y_proj", ("fc1", "fc2")),
    norm("caption_norm", "dim", "attention_y_norm"),
    *split("blocks.{i}.attn.qkv", "dim", dict.fromkeys((f"{FIRST}.attn1.{n}" for n in QKVO[:3]), "dim"), bias="optional", repeat=BLOCK),
    *head_norms(f"{FIRST}.attn1", "dim", "blocks.{i}.attn.", repeat=BLOCK, when=NORMED),
    linear(f"{FIRST}.attn1.to_out.0", "dim", "dim", "blocks.{i}.attn.proj", role="attn", repeat=BLOCK),
    linear(f"{FIRST}.attn2.to_q", "cross", "dim", "blocks.{i}.cross_attn.q_linear", role="attn", repeat=BLOCK),
    *split("blocks.{i}.cross_attn.kv_linear", "cross_attention_dim", dict.fromkeys((f"{FIRST}.attn2.to_k", f"{FIRST}.attn2.to_v"), "cross"), repeat=BLOCK),
    *head_norms(f"{FIRST}.attn2", "cross", "blocks.{i}.cross_attn.", repeat=BLOCK, when=NORMED),
    linear(f"{FIRST}.attn2.to_out.0", "dim", "cross", "blocks.{i}.cross_attn.proj", role="attn", repeat=BLOCK),
    conv(f"{FIRST}.ff.conv_inverted", "2*ff", "dim", (1, 1), "blocks.{i}.mlp.inverted_conv.conv", repeat=BLOCK),
    conv(f"{FIRST}.ff.conv_depth", "2*ff", "1", (3, 3), "blocks.{i}.mlp.depth_conv.conv", repeat=BLOCK),
    conv(f"{FIRST}.ff.conv_point", "dim", "ff", (1, 1), "blocks.{i}.mlp.point_conv.conv", bias="never", repeat=BLOCK),
    parameter(f"{FIRST}.scale_shift_table", "6", "dim", original="blocks.{i}.scale_shift_table", repeat=BLOCK),
    parameter("scale_shift_table", "2", "dim", original="final_layer.scale_shift_table"),
    linear("proj_out", "pixels", "dim", "final_layer.linear", role="output"),
)  # fmt: skip

FOLDS = (
    tabled(
        f"{FIRST}.scale_shift_table",
        "time_embed.linear",
        1,
        0,
        (f"{FIRST}.attn1.{n}" for n in ("to_q", "to_k", "to_v")),
        BLOCK,
    ),
    Folding("norm", ("caption_norm",), (f"{FIRST}.attn2.to_k", f"{FIRST}.attn2.to_v"), "dim", each=BLOCK),
    values(f"{FIRST}.attn1", ("to_v",), ("to_out.0",), BLOCK),
    values(f"{FIRST}.attn2", ("to_v",), ("to_out.0",), BLOCK, "cross"),
)


def _variant(heads: int, cross_heads: int, cross_head_dim: int, **shown: int) -> dict[str, int]:
    told = {
        "num_attention_heads": heads,
        "num_cross_attention_heads": cross_heads,
        "cross_attention_head_dim": cross_head_dim,
    }
    return {**shown, **told, "attention_head_dim": 32}


SPEC = DiffusionSpec(
    id="sana",
    title="Sana",
    class_name="SanaTransformer2DModel",
    hparams=HPARAMS,
    sizes=_sizes,
    check=_check,
    tensors=TENSORS,
    folds=FOLDS,
    packs_convs=True,
    unfolded={"gated": "gated layers have a convolution between them"},
    marks={
        "original": (Marks(("x_embedder.proj.weight", "y_embedder.y_proj.fc1.weight", "blocks.0.mlp.inverted_conv.conv.weight")),),
        "diffusers": (Marks(("patch_embed.proj.weight", "caption_norm.weight", "transformer_blocks.0.ff.conv_inverted.weight")),),
    },
    unused=("pos_embed", r"y_embedder\.y_embedding", r"logvar_linear\.(weight|bias)"),
    beside=("pos_embed", r"y_embedder\.y_embedding"),  # which diffusers' own reader takes out
    variants={
        "Sana 1.6B": _variant(70, 20, 112, num_layers=20, cross_attention_dim=2240),
        "Sana 4.8B": _variant(70, 20, 112, num_layers=60, cross_attention_dim=2240),
        "Sana 0.6B": _variant(36, 16, 72, num_layers=28, cross_attention_dim=1152),
    },
    pipelines=("SanaPipeline", "SanaSprintPipeline"),
    paper="https://arxiv.org/abs/2410.10629",
)  # fmt: skip
