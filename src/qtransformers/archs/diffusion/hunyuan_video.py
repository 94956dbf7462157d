"""HunyuanVideo: joint blocks of video and text, then single blocks of both; text goes through a refiner of its own first.

https://arxiv.org/abs/2412.03603; the original layout keeps queries, keys, values (and the first half of a single block's
feed-forward) in one matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from qtransformers.archs.diffusion.folds import NOT_LINEAR, modulated, normed, values
from qtransformers.archs.diffusion.hparams import (
    adds_up,
    axes,
    counted,
    dim,
    head_count,
    kernel,
    over,
    ratio,
    setting,
    sized,
    told_by,
)
from qtransformers.archs.diffusion.parts import (
    ADDED,
    NORMS,
    QKVO,
    SWAPPED,
    conv,
    embedder,
    feed_forward,
    head_norms,
    joined_attention,
    linear,
    norm,
    on,
    split,
)
from qtransformers.archs.diffusion.shapes import Shapes
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks
from qtransformers.archs.spec import Problem, TensorSpec

JOINT = {"i": "num_layers"}
SINGLE = {"i": "num_single_layers"}
REFINER = {"i": "num_refiner_layers"}
B, S = "transformer_blocks.{i}", "single_transformer_blocks.{i}"
PATCH = kernel("x_embedder.proj", 3)
KINDS = ("latent_concat", "token_replace")


def _condition(s: Shapes) -> str | None:
    """The first way to give an image has it in channels of its own: 16 of latents, 16 of the image, one mask."""
    return "latent_concat" if s.size("x_embedder.proj", 1) == 33 else None


HPARAMS = (
    sized("in_channels", "x_embedder.proj", 1),
    setting("out_channels", derive=lambda s: over(s.size("proj_out", 0), prod(PATCH(s) or (0,)))),
    sized("attention_head_dim", f"{B}.attn.norm_q", 0),
    head_count("num_attention_heads", "x_embedder.proj", f"{B}.attn.norm_q"),
    counted("num_layers", f"{B}.attn.norm_q"),
    counted("num_single_layers", f"{S}.attn.norm_q", minimum=0),
    counted("num_refiner_layers", "context_embedder.token_refiner.refiner_blocks.{i}.norm1"),
    setting("mlp_ratio", kind=float, derive=ratio(f"{B}.ff.net.0.proj"), minimum=0, maximum=64),
    setting("patch_size", derive=lambda s: (PATCH(s) or (None,))[-1], maximum=64),
    setting("patch_size_t", derive=lambda s: (PATCH(s) or (None,))[0], maximum=64),
    setting("qk_norm", "rms_norm", kind=str),
    told_by("guidance_embeds", "time_text_embed.guidance_embedder.linear_1"),
    sized("text_embed_dim", "context_embedder.proj_in", 1),
    sized("pooled_projection_dim", "time_text_embed.text_embedder.linear_1", 1),
    setting("rope_theta", 256.0, kind=float),
    axes("rope_axes_dim", 16, 56, 56),
    setting("image_condition_type", kind=str, nullable=True, derive=_condition, choices=KINDS),
)  # fmt: skip


def _sizes(c: Mapping[str, Any]) -> dict[str, int]:
    area = c["patch_size_t"] * c["patch_size"] ** 2
    return {"dim": dim(c), "ff": int(dim(c) * c["mlp_ratio"]), "pixels": area * c["out_channels"]}


def _check(c: Mapping[str, Any]) -> Iterator[Problem]:
    yield from adds_up(c, "rope_axes_dim", c["attention_head_dim"])


def _joint(
    modulation: str, ff: str, theirs: str, names: tuple[str, ...], norms: tuple[str, str]
) -> Iterator[TensorSpec]:
    """One stream of a joint block."""
    yield linear(f"{B}.{modulation}.linear", "6*dim", "dim", f"{theirs}_mod.linear", role="modulation", repeat=JOINT)
    yield from joined_attention(f"{B}.attn", f"{theirs}_attn_qkv", f"{theirs}_attn_proj", names, repeat=JOINT)
    yield from head_norms(f"{B}.attn", "attention_head_dim", f"{theirs}_attn_", names=norms, repeat=JOINT)
    yield from feed_forward(f"{B}.{ff}", f"{theirs}_mlp", ("fc1", "fc2"), hidden="ff", repeat=JOINT)


def _single(theirs: str) -> Iterator[TensorSpec]:
    inputs = dict.fromkeys((f"{S}.attn.{name}" for name in QKVO[:3]), "dim") | {f"{S}.proj_mlp": "ff"}
    yield linear(f"{S}.norm.linear", "3*dim", "dim", f"{theirs}.modulation.linear", role="modulation", repeat=SINGLE)
    yield from split(f"{theirs}.linear1", "dim", inputs, repeat=SINGLE)
    yield from head_norms(f"{S}.attn", "attention_head_dim", f"{theirs}.", repeat=SINGLE)
    yield linear(f"{S}.proj_out", "dim", "dim+ff", f"{theirs}.linear2", role="dense_ffn", repeat=SINGLE)


def _refiner(ours: str, theirs: str) -> Iterator[TensorSpec]:
    block, key = f"{ours}.token_refiner.refiner_blocks.{{i}}", f"{theirs}.individual_token_refiner.blocks.{{i}}"
    yield from embedder(f"{ours}.time_text_embed.timestep_embedder", "256", "dim", f"{theirs}.t_embedder.mlp")
    yield from embedder(f"{ours}.time_text_embed.text_embedder", "text_embed_dim", "dim", f"{theirs}.c_embedder", ("linear_1", "linear_2"))  # fmt: skip
    yield linear(f"{ours}.proj_in", "dim", "text_embed_dim", f"{theirs}.input_embedder", role="embed_in")
    for name in ("norm1", "norm2"):
        yield norm(f"{block}.{name}", "dim", f"{key}.{name}", bias="required", repeat=REFINER)
    yield from joined_attention(f"{block}.attn", f"{key}.self_attn_qkv", f"{key}.self_attn_proj", repeat=REFINER)
    yield from feed_forward(f"{block}.ff", f"{key}.mlp", ("fc1", "fc2"), repeat=REFINER)
    yield linear(f"{block}.norm_out.linear", "2*dim", "dim", f"{key}.adaLN_modulation.1", role="modulation", repeat=REFINER)  # fmt: skip


TENSORS = (
    conv("x_embedder.proj", "dim", "in_channels", ("patch_size_t", "patch_size", "patch_size"), "img_in.proj"),
    *_refiner("context_embedder", "txt_in"),
    *embedder("time_text_embed.timestep_embedder", "256", "dim", "time_in.mlp"),
    *embedder("time_text_embed.text_embedder", "pooled_projection_dim", "dim", "vector_in", ("in_layer", "out_layer")),
    *embedder("time_text_embed.guidance_embedder", "256", "dim", "guidance_in.mlp", when=on("guidance_embeds")),
    *_joint("norm1", "ff", "double_blocks.{i}.img", QKVO, NORMS),
    *_joint("norm1_context", "ff_context", "double_blocks.{i}.txt", ADDED, ("norm_added_q", "norm_added_k")),
    *_single("single_blocks.{i}"),
    linear("norm_out.linear", "2*dim", "dim", f"final_layer.adaLN_modulation.1{SWAPPED}", role="modulation"),
    linear("proj_out", "pixels", "dim", "final_layer.linear", role="output"),
)  # fmt: skip

T, S, R = "transformer_blocks.{i}", "single_transformer_blocks.{i}", "context_embedder.token_refiner.refiner_blocks.{i}"
FOLDS = (
    modulated(f"{T}.norm1.linear", 1, 0, (f"{T}.attn.{name}" for name in QKVO[:3]), JOINT),
    modulated(f"{T}.norm1.linear", 4, 3, (f"{T}.ff.net.0.proj",), JOINT),
    modulated(f"{T}.norm1_context.linear", 1, 0, (f"{T}.attn.{name}" for name in ADDED[:3]), JOINT),
    modulated(f"{T}.norm1_context.linear", 4, 3, (f"{T}.ff_context.net.0.proj",), JOINT),
    values(T, ("attn.to_v", "attn.add_v_proj"), ("attn.to_out.0", "attn.to_add_out"), JOINT),
    modulated(f"{S}.norm.linear", 1, 0, (*(f"{S}.attn.{name}" for name in QKVO[:3]), f"{S}.proj_mlp"), SINGLE),
    values(S, ("attn.to_v",), ("proj_out[0:dim]",), SINGLE),
    normed(f"{R}.norm1", (f"{R}.attn.{name}" for name in QKVO[:3]), REFINER),
    normed(f"{R}.norm2", (f"{R}.ff.net.0.proj",), REFINER),
    values(R, ("attn.to_v",), ("attn.to_out.0",), REFINER),
)

SPEC = DiffusionSpec(
    id="hyvid",
    title="HunyuanVideo",
    aliases=("hunyuan_video",),
    class_name="HunyuanVideoTransformer3DModel",
    hparams=HPARAMS,
    sizes=_sizes,
    check=_check,
    tensors=TENSORS,
    folds=FOLDS,
    unfolded={"gated": NOT_LINEAR},
    marks={
        "original": (Marks(("double_blocks.0.img_attn_proj.weight", "txt_in.individual_token_refiner.blocks.0.self_attn_qkv.weight", "vector_in.in_layer.weight")),),
        "diffusers": (Marks(("x_embedder.proj.weight", "context_embedder.token_refiner.refiner_blocks.0.attn.to_q.weight", "time_text_embed.text_embedder.linear_1.weight"), none=("clean_x_embedder.proj.weight", "image_projection.up.weight")),),
    },
    pipelines=("HunyuanVideoPipeline", "HunyuanVideoImageToVideoPipeline"),
    paper="https://arxiv.org/abs/2412.03603",
)  # fmt: skip
