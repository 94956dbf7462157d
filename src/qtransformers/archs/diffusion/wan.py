"""Wan: video from text and images, blocks of self-attention, cross-attention and feed-forward under one modulation.

https://arxiv.org/abs/2503.20314; patches are cut by a convolution over frames, rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from qtransformers.archs.diffusion.parts import conv, embedder, kernel, linear, norm, over, parameter, setting
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks
from qtransformers.archs.spec import Problem, TensorSpec, When

BLOCK = {"i": "num_layers"}
IMAGE = "condition_embedder.image_embedder"


def _pixels(s: Any) -> int | None:
    """Channels of the output: rows of the last layer over the pixels of a patch."""
    return over(s.size("proj_out", 0), prod(PATCH(s) or (0,)))


PATCH = kernel("patch_embedding", 3)
HPARAMS = (
    setting("patch_size", kind=tuple, derive=PATCH, maximum=64),
    setting("num_attention_heads", required=True, hint="12 in Wan 1.3B, 24 in 5B, 40 in 14B"),
    setting("attention_head_dim", required=True, hint="128 in all published models"),
    setting("in_channels", derive=lambda s: s.size("patch_embedding", 1)),
    setting("out_channels", derive=_pixels),
    setting("text_dim", derive=lambda s: s.size("condition_embedder.text_embedder.linear_1", 1)),
    setting("freq_dim", derive=lambda s: s.size("condition_embedder.time_embedder.linear_1", 1)),
    setting("ffn_dim", derive=lambda s: s.size("blocks.{i}.ffn.net.0.proj", 0)),
    setting("num_layers", derive=lambda s: s.count("blocks.{i}.attn1.to_q"), maximum=1024),
    setting("cross_attn_norm", kind=bool, derive=lambda s: s.has("blocks.{i}.norm2")),
    setting("qk_norm", "rms_norm_across_heads", kind=str),
    setting("eps", 1e-6, kind=float, minimum=0),
    setting("image_dim", nullable=True, derive=lambda s: s.size(f"{IMAGE}.norm1", 0)),
    setting("added_kv_proj_dim", nullable=True, derive=lambda s: s.size("blocks.{i}.attn2.add_k_proj", 1)),
    setting("rope_max_seq_len", 1024),
    setting("pos_embed_seq_len", nullable=True, derive=lambda s: s.size(f"{IMAGE}.pos_embed", -2)),
)  # fmt: skip


def _sizes(c: Mapping[str, Any]) -> dict[str, int]:
    pt, ph, pw = c["patch_size"]
    return {
        "dim": c["num_attention_heads"] * c["attention_head_dim"],
        "pt": pt, "ph": ph, "pw": pw, "pixels": pt * ph * pw * c["out_channels"],
    }  # fmt: skip


def _check(c: Mapping[str, Any]) -> Iterator[Problem]:
    if len(c["patch_size"]) != 3:
        yield Problem(f"patch_size is {list(c['patch_size'])}; expected three numbers, of frames, rows and columns")


def _attention(ours: str, theirs: str) -> Iterator[TensorSpec]:
    for name, key in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o")):
        yield linear(f"{ours}.{name}", "dim", "dim", f"{theirs}.{key}", role="attn", repeat=BLOCK)
    for name in ("norm_q", "norm_k"):
        yield norm(f"{ours}.{name}", "dim", f"{theirs}.{name}", repeat=BLOCK)


def _has(setting: str) -> When:
    return lambda c, i: bool(c[setting])


def _image() -> Iterator[TensorSpec]:
    """What image to video has more: an embedder of the image, and attention to what comes of it."""
    there = _has("image_dim")
    yield norm(f"{IMAGE}.norm1", "image_dim", "img_emb.proj.0", bias="required", when=there)
    yield linear(f"{IMAGE}.ff.net.0.proj", "image_dim", "image_dim", "img_emb.proj.1", when=there)
    yield linear(f"{IMAGE}.ff.net.2", "dim", "image_dim", "img_emb.proj.3", when=there)
    yield norm(f"{IMAGE}.norm2", "dim", "img_emb.proj.4", bias="required", when=there)
    yield parameter(f"{IMAGE}.pos_embed", "1", "pos_embed_seq_len", "image_dim", original="img_emb.emb_pos", when=_has("pos_embed_seq_len"))  # fmt: skip
    for name, key in (("add_k_proj", "k_img"), ("add_v_proj", "v_img")):
        yield linear(f"blocks.{{i}}.attn2.{name}", "dim", "added_kv_proj_dim", f"blocks.{{i}}.cross_attn.{key}", role="attn", repeat=BLOCK, when=_has("added_kv_proj_dim"))  # fmt: skip
    yield norm("blocks.{i}.attn2.norm_added_k", "dim", "blocks.{i}.cross_attn.norm_k_img", repeat=BLOCK, when=_has("added_kv_proj_dim"))  # fmt: skip


TENSORS = (
    conv("patch_embedding", "dim", "in_channels", ("pt", "ph", "pw"), "patch_embedding"),
    *embedder("condition_embedder.time_embedder", "freq_dim", "dim", "time_embedding"),
    linear("condition_embedder.time_proj", "6*dim", "dim", "time_projection.1", role="modulation"),
    *embedder("condition_embedder.text_embedder", "text_dim", "dim", "text_embedding"),
    *_attention("blocks.{i}.attn1", "blocks.{i}.self_attn"),
    *_attention("blocks.{i}.attn2", "blocks.{i}.cross_attn"),
    norm("blocks.{i}.norm2", "dim", "blocks.{i}.norm3", bias="required", repeat=BLOCK, when=_has("cross_attn_norm")),
    linear("blocks.{i}.ffn.net.0.proj", "ffn_dim", "dim", "blocks.{i}.ffn.0", role="dense_ffn", repeat=BLOCK),
    linear("blocks.{i}.ffn.net.2", "dim", "ffn_dim", "blocks.{i}.ffn.2", role="dense_ffn", repeat=BLOCK),
    parameter("blocks.{i}.scale_shift_table", "1", "6", "dim", original="blocks.{i}.modulation", repeat=BLOCK),
    *_image(),
    parameter("scale_shift_table", "1", "2", "dim", original="head.modulation"),
    linear("proj_out", "pixels", "dim", "head.head", role="output"),
)  # fmt: skip


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
