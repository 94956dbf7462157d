"""Sana: linear attention and gated convolutions, so that many tokens are cheap; one table of modulation a block.

https://arxiv.org/abs/2410.10629; Sana 1.5 and Sprint norm queries and keys across heads, Sprint embeds its guidance too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qtransformers.archs.diffusion.parts import (
    conv,
    embedder,
    heads,
    kernel,
    linear,
    norm,
    over,
    parameter,
    ratio,
    setting,
    split,
)
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks
from qtransformers.archs.spec import Problem, TensorSpec, When

BLOCK = {"i": "num_layers"}
FIRST = "transformer_blocks.{i}"
SCALES = {64: 1.0, 128: 2.0}  # of positions, by the size of the latents: smaller models have none


def _patch(s: Any) -> int | None:
    return (kernel("patch_embed.proj", 2)(s) or (None,))[0]


def _pixels(s: Any) -> int | None:
    return over(s.size("proj_out", 0), (_patch(s) or 0) ** 2)


HPARAMS = (
    setting("in_channels", derive=lambda s: s.size("patch_embed.proj", 1)),
    setting("out_channels", derive=_pixels),
    setting("num_attention_heads", required=True, hint="70 in Sana 1.6B and 4.8B, 36 in 0.6B"),
    setting("attention_head_dim", required=True, hint="32 in all published models"),
    setting("num_layers", derive=lambda s: s.count(f"{FIRST}.scale_shift_table"), maximum=1024),
    setting("num_cross_attention_heads", required=True, hint="20 in Sana 1.6B and 4.8B, 16 in 0.6B"),
    setting("cross_attention_head_dim", required=True, hint="112 in Sana 1.6B and 4.8B, 72 in 0.6B"),
    setting("cross_attention_dim", derive=lambda s: s.whole(f"{FIRST}.attn2.to_k", 1)),
    setting("caption_channels", derive=lambda s: s.size("caption_projection.linear_1", 1)),
    setting("mlp_ratio", kind=float, derive=ratio(f"{FIRST}.ff.conv_point", inverse=True), minimum=0, maximum=64),
    setting("attention_bias", kind=bool, derive=lambda s: s.has(f"{FIRST}.attn1.to_q.bias")),
    setting("sample_size", required=True, hint="16 for pictures of 512 pixels, 32 for 1024, 64 for 2048, 128 for 4096"),
    setting("patch_size", derive=_patch, maximum=64),
    setting("norm_elementwise_affine", False, kind=bool, choices=(False,)),
    setting("norm_eps", 1e-6, kind=float, minimum=0),
    setting("interpolation_scale", lambda c: SCALES.get(c["sample_size"]), kind=float, nullable=True, minimum=0),
    setting("guidance_embeds", kind=bool, derive=lambda s: s.has("time_embed.guidance_embedder.linear_1")),
    setting("qk_norm", kind=str, nullable=True, derive=lambda s: "rms_norm_across_heads" if s.has(f"{FIRST}.attn1.norm_q") else None),
)  # fmt: skip


def _sizes(c: Mapping[str, Any]) -> dict[str, int]:
    dim = c["num_attention_heads"] * c["attention_head_dim"]
    return {
        "dim": dim,
        "cross": c["num_cross_attention_heads"] * c["cross_attention_head_dim"],
        "ff": int(c["mlp_ratio"] * dim),
        "pixels": c["patch_size"] ** 2 * c["out_channels"],
    }


def _check(c: Mapping[str, Any]) -> Iterator[Problem]:
    dim = c["num_attention_heads"] * c["attention_head_dim"]
    yield from heads(c, dim, named="num_cross_attention_heads", head_dim="cross_attention_head_dim")


_normed: When = lambda c, i: c["qk_norm"] is not None  # noqa: E731
_guided: When = lambda c, i: bool(c["guidance_embeds"])  # noqa: E731
_plain: When = lambda c, i: not c["guidance_embeds"]  # noqa: E731


def _norms(ours: str, theirs: str, dim: str) -> Iterator[TensorSpec]:
    for own, key in (("norm_q", "q_norm"), ("norm_k", "k_norm")):
        yield norm(f"{ours}.{own}", dim, f"{theirs}.{key}", repeat=BLOCK, when=_normed)


TENSORS = (
    conv("patch_embed.proj", "dim", "in_channels", ("patch_size", "patch_size"), "x_embedder.proj"),
    *embedder("time_embed.emb.timestep_embedder", "256", "dim", "t_embedder.mlp", when=_plain),
    *embedder("time_embed.timestep_embedder", "256", "dim", "t_embedder.mlp", when=_guided),
    *embedder("time_embed.guidance_embedder", "256", "dim", "cfg_embedder.mlp", when=_guided),
    linear("time_embed.linear", "6*dim", "dim", "t_block.1", role="modulation"),
    *embedder("caption_projection", "caption_channels", "dim", "y_embedder.y_proj", ("fc1", "fc2")),
    norm("caption_norm", "dim", "attention_y_norm"),
    *split("blocks.{i}.attn.qkv", "dim", {f"{FIRST}.attn1.{n}": "dim" for n in ("to_q", "to_k", "to_v")}, bias="optional", repeat=BLOCK),
    *_norms(f"{FIRST}.attn1", "blocks.{i}.attn", "dim"),
    linear(f"{FIRST}.attn1.to_out.0", "dim", "dim", "blocks.{i}.attn.proj", role="attn", repeat=BLOCK),
    linear(f"{FIRST}.attn2.to_q", "cross", "dim", "blocks.{i}.cross_attn.q_linear", role="attn", repeat=BLOCK),
    *split("blocks.{i}.cross_attn.kv_linear", "cross_attention_dim", {f"{FIRST}.attn2.{n}": "cross" for n in ("to_k", "to_v")}, repeat=BLOCK),
    *_norms(f"{FIRST}.attn2", "blocks.{i}.cross_attn", "cross"),
    linear(f"{FIRST}.attn2.to_out.0", "dim", "cross", "blocks.{i}.cross_attn.proj", role="attn", repeat=BLOCK),
    conv(f"{FIRST}.ff.conv_inverted", "2*ff", "dim", (1, 1), "blocks.{i}.mlp.inverted_conv.conv", repeat=BLOCK),
    conv(f"{FIRST}.ff.conv_depth", "2*ff", "1", (3, 3), "blocks.{i}.mlp.depth_conv.conv", repeat=BLOCK),
    conv(f"{FIRST}.ff.conv_point", "dim", "ff", (1, 1), "blocks.{i}.mlp.point_conv.conv", bias="never", repeat=BLOCK),
    parameter(f"{FIRST}.scale_shift_table", "6", "dim", original="blocks.{i}.scale_shift_table", repeat=BLOCK),
    parameter("scale_shift_table", "2", "dim", original="final_layer.scale_shift_table"),
    linear("proj_out", "pixels", "dim", "final_layer.linear", role="output"),
)  # fmt: skip

LARGE = {
    "num_attention_heads": 70,
    "attention_head_dim": 32,
    "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112,
}
SMALL = {
    "num_attention_heads": 36,
    "attention_head_dim": 32,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
}
SPEC = DiffusionSpec(
    id="sana",
    title="Sana",
    class_name="SanaTransformer2DModel",
    hparams=HPARAMS,
    sizes=_sizes,
    check=_check,
    tensors=TENSORS,
    marks={
        "original": (Marks(("x_embedder.proj.weight", "y_embedder.y_proj.fc1.weight", "blocks.0.mlp.inverted_conv.conv.weight")),),
        "diffusers": (Marks(("patch_embed.proj.weight", "caption_norm.weight", "transformer_blocks.0.ff.conv_inverted.weight")),),
    },
    unused=("pos_embed", r"y_embedder\.y_embedding", r"logvar_linear\.(weight|bias)"),
    variants={
        "Sana 1.6B": {"num_layers": 20, "cross_attention_dim": 2240, **LARGE},
        "Sana 4.8B": {"num_layers": 60, "cross_attention_dim": 2240, **LARGE},
        "Sana 0.6B": {"num_layers": 28, "cross_attention_dim": 1152, **SMALL},
    },
    pipelines=("SanaPipeline", "SanaSprintPipeline"),
    paper="https://arxiv.org/abs/2410.10629",
)  # fmt: skip
