"""LTX-Video: video from text in strongly compressed latents, one token a latent; modulation from tables and one embedding.

https://arxiv.org/abs/2501.00103; queries and keys are normed across heads, so no tensor shows how many heads there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qtransformers.archs.diffusion.parts import embedder, linear, norm, parameter, setting
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks
from qtransformers.archs.spec import TensorSpec

BLOCK = {"i": "num_layers"}
FIRST = "transformer_blocks.{i}"
HPARAMS = (
    setting("in_channels", derive=lambda s: s.size("proj_in", 1)),
    setting("out_channels", derive=lambda s: s.size("proj_out", 0)),
    setting("patch_size", 1),
    setting("patch_size_t", 1),
    setting("num_attention_heads", required=True, hint="32 in all published models"),
    setting("attention_head_dim", required=True, hint="64 in LTX-Video 2B, 128 in 13B"),
    setting("cross_attention_dim", derive=lambda s: s.size(f"{FIRST}.attn2.to_k", 1)),
    setting("num_layers", derive=lambda s: s.count(f"{FIRST}.attn1.to_q"), maximum=1024),
    setting("activation_fn", "gelu-approximate", kind=str),
    setting("qk_norm", "rms_norm_across_heads", kind=str),
    setting("norm_elementwise_affine", kind=bool, derive=lambda s: s.has(f"{FIRST}.norm1")),
    setting("norm_eps", 1e-6, kind=float, minimum=0),
    setting("caption_channels", derive=lambda s: s.size("caption_projection.linear_1", 1)),
    setting("attention_bias", kind=bool, derive=lambda s: s.has(f"{FIRST}.attn1.to_q.bias")),
    setting("attention_out_bias", kind=bool, derive=lambda s: s.has(f"{FIRST}.attn1.to_out.0.bias")),
)  # fmt: skip


def _attention(name: str, width: str) -> Iterator[TensorSpec]:
    path = f"{FIRST}.{name}"
    for own, columns in (("to_q", "dim"), ("to_k", width), ("to_v", width), ("to_out.0", "dim")):
        yield linear(f"{path}.{own}", "dim", columns, f"{path}.{own}", bias="optional", role="attn", repeat=BLOCK)
    for own, key in (("norm_q", "q_norm"), ("norm_k", "k_norm")):
        yield norm(f"{path}.{own}", "dim", f"{path}.{key}", repeat=BLOCK)


def _affine(c: Mapping[str, Any], i: int) -> bool:
    return bool(c["norm_elementwise_affine"])


EMBEDDER = "emb.timestep_embedder"
TENSORS = (
    linear("proj_in", "dim", "in_channels", "patchify_proj", role="embed_in"),
    *embedder(f"time_embed.{EMBEDDER}", "256", "dim", f"adaln_single.{EMBEDDER}", ("linear_1", "linear_2")),
    linear("time_embed.linear", "6*dim", "dim", "adaln_single.linear", role="modulation"),
    *embedder("caption_projection", "caption_channels", "dim", "caption_projection", ("linear_1", "linear_2")),
    norm(f"{FIRST}.norm1", "dim", f"{FIRST}.norm1", repeat=BLOCK, when=_affine),
    *_attention("attn1", "dim"),
    norm(f"{FIRST}.norm2", "dim", f"{FIRST}.norm2", repeat=BLOCK, when=_affine),
    *_attention("attn2", "cross_attention_dim"),
    linear(f"{FIRST}.ff.net.0.proj", "4*dim", "dim", f"{FIRST}.ff.net.0.proj", role="dense_ffn", repeat=BLOCK),
    linear(f"{FIRST}.ff.net.2", "dim", "4*dim", f"{FIRST}.ff.net.2", role="dense_ffn", repeat=BLOCK),
    parameter(f"{FIRST}.scale_shift_table", "6", "dim", original=f"{FIRST}.scale_shift_table", repeat=BLOCK),
    parameter("scale_shift_table", "2", "dim", original="scale_shift_table"),
    linear("proj_out", "out_channels", "dim", "proj_out", role="output"),
)  # fmt: skip

SPEC = DiffusionSpec(
    id="ltxv",
    title="LTX-Video",
    aliases=("ltx", "ltx-video"),
    class_name="LTXVideoTransformer3DModel",
    hparams=HPARAMS,
    sizes=lambda c: {"dim": c["num_attention_heads"] * c["attention_head_dim"]},
    tensors=TENSORS,
    marks={
        "original": (Marks(("patchify_proj.weight", "adaln_single.emb.timestep_embedder.linear_2.weight", "caption_projection.linear_2.weight", "transformer_blocks.0.attn1.q_norm.weight"), none=("audio_patchify_proj.weight",)),),
        "diffusers": (Marks(("proj_in.weight", "time_embed.emb.timestep_embedder.linear_2.weight", "caption_projection.linear_2.weight", "transformer_blocks.0.attn1.norm_q.weight"), none=("audio_proj_in.weight",)),),
    },
    variants={
        "LTX-Video 2B": {"num_layers": 28, "cross_attention_dim": 2048, "num_attention_heads": 32, "attention_head_dim": 64},
        "LTX-Video 13B": {"num_layers": 48, "cross_attention_dim": 4096, "num_attention_heads": 32, "attention_head_dim": 128},
    },
    pipelines=("LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline"),
    paper="https://arxiv.org/abs/2501.00103",
)  # fmt: skip
