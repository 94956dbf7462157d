"""Wan: video from text and images, blocks of self-attention, cross-attention and feed-forward under one modulation.

https://arxiv.org/abs/2503.20314; patches are cut by a convolution over frames, rows and columns.
Variants: wan/configs of the published code (2.1 and 2.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from qtransformers.archs.diffusion.folds import NOT_LINEAR, normed, tabled, values
from qtransformers.archs.diffusion.hparams import as_many, counted, dim, kernel, over, setting, sized, told_by
from qtransformers.archs.diffusion.parts import (
    NORMS,
    attention,
    conv,
    embedder,
    feed_forward,
    head_norms,
    linear,
    norm,
    on,
    parameter,
)
from qtransformers.archs.diffusion.shapes import Shapes
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks
from qtransformers.archs.spec import Problem, TensorSpec

BLOCK = {"i": "num_layers"}
IMAGE = "condition_embedder.image_embedder"


def _channels(s: Shapes) -> int | None:
    """Channels of the output: rows of the last layer over the pixels of a patch."""
    return over(s.size("proj_out", 0), prod(PATCH(s) or (0,)))


PATCH = kernel("patch_embedding", 3)
HPARAMS = (
    setting("patch_size", kind=tuple, derive=PATCH, maximum=64),
    setting("num_attention_heads", required=True, hint="12 in Wan 1.3B, 24 in 5B, 40 in 14B"),
    setting("attention_head_dim", required=True, hint="128 in all published models"),
    sized("in_channels", "patch_embedding", 1),
    setting("out_channels", derive=_channels),
    sized("text_dim", "condition_embedder.text_embedder.linear_1", 1),
    sized("freq_dim", "condition_embedder.time_embedder.linear_1", 1),
    sized("ffn_dim", "blocks.{i}.ffn.net.0.proj", 0),
    counted("num_layers", "blocks.{i}.attn1.to_q"),
    told_by("cross_attn_norm", "blocks.{i}.norm2"),
    setting("qk_norm", "rms_norm_across_heads", kind=str),
    setting("eps", 1e-6, kind=float, minimum=0),
    sized("image_dim", f"{IMAGE}.norm1", 0, nullable=True),
    sized("added_kv_proj_dim", "blocks.{i}.attn2.add_k_proj", 1, nullable=True),
    setting("rope_max_seq_len", 1024),
    sized("pos_embed_seq_len", f"{IMAGE}.pos_embed", -2, nullable=True),
)  # fmt: skip


def _sizes(c: Mapping[str, Any]) -> dict[str, int]:
    pt, ph, pw = c["patch_size"]
    return {"dim": dim(c), "pt": pt, "ph": ph, "pw": pw, "pixels": pt * ph * pw * c["out_channels"]}


def _check(c: Mapping[str, Any]) -> Iterator[Problem]:
    yield from as_many(c, "patch_size", 3, "of frames, rows and columns")


def _attention(ours: str, theirs: str) -> Iterator[TensorSpec]:
    yield from attention(ours, theirs, ("q", "k", "v", "o"), repeat=BLOCK)
    yield from head_norms(ours, "dim", f"{theirs}.", NORMS, repeat=BLOCK)


def _image() -> Iterator[TensorSpec]:
    """What image to video has more: an embedder of the image, and attention to what comes of it."""
    there, added = on("image_dim"), on("added_kv_proj_dim")
    yield norm(f"{IMAGE}.norm1", "image_dim", "img_emb.proj.0", bias="required", when=there)
    yield linear(f"{IMAGE}.ff.net.0.proj", "image_dim", "image_dim", "img_emb.proj.1", when=there)
    yield linear(f"{IMAGE}.ff.net.2", "dim", "image_dim", "img_emb.proj.3", when=there)
    yield norm(f"{IMAGE}.norm2", "dim", "img_emb.proj.4", bias="required", when=there)
    yield parameter(f"{IMAGE}.pos_embed", "1", "pos_embed_seq_len", "image_dim", original="img_emb.emb_pos", when=on("pos_embed_seq_len"))  # fmt: skip
    for name, key in (("add_k_proj", "k_img"), ("add_v_proj", "v_img")):
        yield linear(f"blocks.{{i}}.attn2.{name}", "dim", "added_kv_proj_dim", f"blocks.{{i}}.cross_attn.{key}", role="attn", repeat=BLOCK, when=added)  # fmt: skip
    yield norm("blocks.{i}.attn2.norm_added_k", "dim", "blocks.{i}.cross_attn.norm_k_img", repeat=BLOCK, when=added)  # fmt: skip


TENSORS = (
    conv("patch_embedding", "dim", "in_channels", ("pt", "ph", "pw"), "patch_embedding"),
    *embedder("condition_embedder.time_embedder", "freq_dim", "dim", "time_embedding"),
    linear("condition_embedder.time_proj", "6*dim", "dim", "time_projection.1", role="modulation"),
    *embedder("condition_embedder.text_embedder", "text_dim", "dim", "text_embedding"),
    *_attention("blocks.{i}.attn1", "blocks.{i}.self_attn"),
    *_attention("blocks.{i}.attn2", "blocks.{i}.cross_attn"),
    norm("blocks.{i}.norm2", "dim", "blocks.{i}.norm3", bias="required", repeat=BLOCK, when=on("cross_attn_norm")),
    *feed_forward("blocks.{i}.ffn", "blocks.{i}.ffn", hidden="ffn_dim", repeat=BLOCK),
    parameter("blocks.{i}.scale_shift_table", "1", "6", "dim", original="blocks.{i}.modulation", repeat=BLOCK),
    *_image(),
    parameter("scale_shift_table", "1", "2", "dim", original="head.modulation"),
    linear("proj_out", "pixels", "dim", "head.head", role="output"),
)  # fmt: skip


B, TABLE, TIME = "blocks.{i}", "blocks.{i}.scale_shift_table", "condition_embedder.time_proj"
FOLDS = (
    tabled(TABLE, TIME, 1, 0, (f"{B}.attn1.{name}" for name in ("to_q", "to_k", "to_v")), BLOCK),
    tabled(TABLE, TIME, 4, 3, (f"{B}.ffn.net.0.proj",), BLOCK),
    normed(f"{B}.norm2", (f"{B}.attn2.to_q",), BLOCK, when=on("cross_attn_norm")),
    values(B, ("attn1.to_v",), ("attn1.to_out.0",), BLOCK),
    values(B, ("attn2.to_v", "attn2.add_v_proj?"), ("attn2.to_out.0",), BLOCK),
    normed(f"{IMAGE}.norm1", (f"{IMAGE}.ff.net.0.proj",), n="image_dim", when=on("image_dim")),
)


def _variant(heads: int, **shown: Any) -> dict[str, Any]:
    return {**shown, "num_attention_heads": heads, "attention_head_dim": 128}


SPEC = DiffusionSpec(
    id="wan",
    title="Wan",
    class_name="WanTransformer3DModel",
    hparams=HPARAMS,
    sizes=_sizes,
    check=_check,
    tensors=TENSORS,
    folds=FOLDS,
    unfolded={"gated": NOT_LINEAR},
    marks={
        "original": (Marks(("blocks.0.self_attn.norm_q.weight", "text_embedding.2.weight", "head.modulation"), none=("vace_blocks.0.before_proj.weight", "face_adapter.fuser_blocks.0.q_norm.weight")),),
        "diffusers": (Marks(("blocks.0.attn1.norm_q.weight", "condition_embedder.text_embedder.linear_2.weight", "patch_embedding.weight"), none=("vace_patch_embedding.weight", "motion_encoder.conv_in.weight")),),
    },
    unused=(r"blocks\.\d+\.attn2\.norm_added_q\.weight", r"blocks\.\d+\.cross_attn\.norm_q_img\.weight"),
    variants={
        "Wan 2.1 1.3B": _variant(12, ffn_dim=8960, num_layers=30),
        "Wan 2.1 and 2.2 14B": _variant(40, ffn_dim=13824, num_layers=40),
        "Wan 2.2 5B": _variant(24, ffn_dim=14336, num_layers=30),
    },
    pipelines=("WanPipeline", "WanImageToVideoPipeline"),
    paper="https://arxiv.org/abs/2503.20314",
)  # fmt: skip
