"""LTX-Video: video from text in strongly compressed latents, one token a latent; modulation from tables and one embedding.

https://arxiv.org/abs/2501.00103; queries and keys are normed across heads, so no tensor shows how many heads there are.
The 2B model has the defaults of the class in diffusers; the 13B one what loaders of its single file write out.
"""

from __future__ import annotations

from collections.abc import Iterator

from qtransformers.archs.diffusion.folds import NO_WEIGHTS, NOT_LINEAR, tabled, values
from qtransformers.archs.diffusion.hparams import counted, dim, setting, sized, told_by
from qtransformers.archs.diffusion.parts import (
    attention,
    embedder,
    feed_forward,
    head_norms,
    linear,
    norm,
    on,
    parameter,
)
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks
from qtransformers.archs.spec import TensorSpec

BLOCK = {"i": "num_layers"}
FIRST = "transformer_blocks.{i}"
HPARAMS = (
    sized("in_channels", "proj_in", 1),
    sized("out_channels", "proj_out", 0),
    setting("patch_size", 1),
    setting("patch_size_t", 1),
    setting("num_attention_heads", required=True, hint="32 in all published models"),
    setting("attention_head_dim", required=True, hint="64 in LTX-Video 2B, 128 in 13B"),
    sized("cross_attention_dim", f"{FIRST}.attn2.to_k", 1),
    counted("num_layers", f"{FIRST}.attn1.to_q"),
    setting("activation_fn", "gelu-approximate", kind=str),
    setting("qk_norm", "rms_norm_across_heads", kind=str),
    told_by("norm_elementwise_affine", f"{FIRST}.norm1"),
    setting("norm_eps", 1e-6, kind=float, minimum=0),
    sized("caption_channels", "caption_projection.linear_1", 1),
    told_by("attention_bias", f"{FIRST}.attn1.to_q.bias"),
    told_by("attention_out_bias", f"{FIRST}.attn1.to_out.0.bias"),
)  # fmt: skip


def _attention(name: str, context: str) -> Iterator[TensorSpec]:
    path = f"{FIRST}.{name}"
    yield from attention(path, path, context=context, bias="optional", repeat=BLOCK)
    yield from head_norms(path, "dim", f"{path}.", repeat=BLOCK)


AFFINE = on("norm_elementwise_affine")
EMBEDDER = "emb.timestep_embedder"
TENSORS = (
    linear("proj_in", "dim", "in_channels", "patchify_proj", role="embed_in"),
    *embedder(f"time_embed.{EMBEDDER}", "256", "dim", f"adaln_single.{EMBEDDER}", ("linear_1", "linear_2")),
    linear("time_embed.linear", "6*dim", "dim", "adaln_single.linear", role="modulation"),
    *embedder("caption_projection", "caption_channels", "dim", "caption_projection", ("linear_1", "linear_2")),
    norm(f"{FIRST}.norm1", "dim", f"{FIRST}.norm1", repeat=BLOCK, when=AFFINE),
    *_attention("attn1", "dim"),
    norm(f"{FIRST}.norm2", "dim", f"{FIRST}.norm2", repeat=BLOCK, when=AFFINE),
    *_attention("attn2", "cross_attention_dim"),
    *feed_forward(f"{FIRST}.ff", f"{FIRST}.ff", ("net.0.proj", "net.2"), repeat=BLOCK),
    parameter(f"{FIRST}.scale_shift_table", "6", "dim", original=f"{FIRST}.scale_shift_table", repeat=BLOCK),
    parameter("scale_shift_table", "2", "dim", original="scale_shift_table"),
    linear("proj_out", "out_channels", "dim", "proj_out", role="output"),
)  # fmt: skip

TABLE, TIME = f"{FIRST}.scale_shift_table", "time_embed.linear"
FOLDS = (
    tabled(TABLE, TIME, 1, 0, (f"{FIRST}.attn1.{name}" for name in ("to_q", "to_k", "to_v")), BLOCK),
    tabled(TABLE, TIME, 4, 3, (f"{FIRST}.ff.net.0.proj",), BLOCK),
    *(values(f"{FIRST}.attn{n}", ("to_v",), ("to_out.0",), BLOCK) for n in (1, 2)),
)

SPEC = DiffusionSpec(
    id="ltxv",
    title="LTX-Video",
    aliases=("ltx", "ltx-video"),
    class_name="LTXVideoTransformer3DModel",
    hparams=HPARAMS,
    sizes=lambda c: {"dim": dim(c)},
    tensors=TENSORS,
    folds=FOLDS,
    unfolded={"norm": NO_WEIGHTS, "gated": NOT_LINEAR},
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
