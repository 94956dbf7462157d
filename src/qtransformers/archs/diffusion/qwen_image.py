"""Qwen-Image: joint blocks of text and image, sixty of them; published in the layout of diffusers.

https://arxiv.org/abs/2508.02324; Edit has the same tensors, Layered one more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qtransformers.archs.diffusion.folds import NO_WEIGHTS, NOT_LINEAR, Folding, modulated, values
from qtransformers.archs.diffusion.hparams import (
    adds_up,
    axes,
    counted,
    dim,
    head_count,
    over,
    pixels,
    setting,
    sized,
)
from qtransformers.archs.diffusion.parts import (
    ADDED,
    NORMS,
    QKVO,
    attention,
    embedder,
    embedding,
    feed_forward,
    head_norms,
    linear,
    norm,
    on,
)
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks
from qtransformers.archs.spec import Problem, TensorSpec

BLOCKS = {"i": "num_layers"}
BLOCK = "transformer_blocks.{i}"
ZERO = "__index_timestep_zero__"  # a tool's mark of Edit-2511: nothing is in it


def _check(c: Mapping[str, Any]) -> Iterator[Problem]:
    yield from adds_up(c, "axes_dims_rope", c["attention_head_dim"])
    if c["use_layer3d_rope"] and not c["use_additional_t_cond"]:
        yield Problem("use_layer3d_rope is True and use_additional_t_cond False; expected both, as in Qwen-Image-Layered, or none")  # fmt: skip


def _stream(stream: str, layers: tuple[str, ...], norms: tuple[str, ...]) -> Iterator[TensorSpec]:
    """What a block has for one of its streams."""
    yield linear(f"{BLOCK}.{stream}_mod.1", "6*dim", "dim", role="modulation", repeat=BLOCKS)
    yield from attention(f"{BLOCK}.attn", names=layers, repeat=BLOCKS)
    yield from head_norms(f"{BLOCK}.attn", "attention_head_dim", names=norms, repeat=BLOCKS)
    yield from feed_forward(f"{BLOCK}.{stream}_mlp", repeat=BLOCKS)


TENSORS = (
    linear("img_in", "dim", "in_channels", role="embed_in"),
    norm("txt_norm", "joint_attention_dim"),
    linear("txt_in", "dim", "joint_attention_dim", role="embed_in"),
    *embedder("time_text_embed.timestep_embedder", "256", "dim"),
    embedding("time_text_embed.addition_t_embedding", "2", "dim", when=on("use_additional_t_cond")),
    *_stream("img", QKVO, NORMS),
    *_stream("txt", ADDED, ("norm_added_q", "norm_added_k")),
    linear("norm_out.linear", "2*dim", "dim", role="modulation"),
    linear("proj_out", "pixels", "dim", role="output"),
)


def _modulated(stream: str, layers: tuple[str, ...]) -> Iterator[Folding]:
    yield modulated(f"{BLOCK}.{stream}_mod.1", 1, 0, (f"{BLOCK}.attn.{name}" for name in layers), BLOCKS)
    yield modulated(f"{BLOCK}.{stream}_mod.1", 4, 3, (f"{BLOCK}.{stream}_mlp.net.0.proj",), BLOCKS)


FOLDS = (
    *_modulated("img", QKVO[:3]),
    *_modulated("txt", ADDED[:3]),
    values(BLOCK, ("attn.to_v", "attn.add_v_proj"), ("attn.to_out.0", "attn.to_add_out"), BLOCKS),
)

SPEC = DiffusionSpec(
    id="qwen_image",
    title="Qwen-Image",
    class_name="QwenImageTransformer2DModel",
    hparams=(
        setting("patch_size", 2, maximum=64),
        sized("in_channels", "img_in", 1),
        setting("out_channels", derive=lambda s: over(s.size("proj_out", 0), 4)),
        counted("num_layers", f"{BLOCK}.attn.to_q"),
        sized("attention_head_dim", f"{BLOCK}.attn.norm_q", 0),
        head_count("num_attention_heads", "img_in", f"{BLOCK}.attn.norm_q"),
        sized("joint_attention_dim", "txt_in", 1),
        setting("guidance_embeds", False, kind=bool),
        axes("axes_dims_rope", 16, 56, 56),
        setting("zero_cond_t", kind=bool, required=True, derive=lambda s: s.has(ZERO) or None, hint="true for Qwen-Image-Edit-2511, false for Qwen-Image and Edit before"),
        setting("use_additional_t_cond", kind=bool, required=True, derive=lambda s: s.has("time_text_embed.addition_t_embedding") or None, hint="true for Qwen-Image-Layered, false for all others"),
        setting("use_layer3d_rope", lambda c: c["use_additional_t_cond"], kind=bool),
    ),
    sizes=lambda c: {"dim": dim(c), "pixels": pixels(c)},
    check=_check,
    tensors=TENSORS,
    folds=FOLDS,
    unfolded={"norm": NO_WEIGHTS, "gated": NOT_LINEAR},
    marks={"diffusers": (Marks(("transformer_blocks.0.img_mod.1.weight", "transformer_blocks.0.attn.add_q_proj.weight", "txt_norm.weight")),)},
    unused=(ZERO,),
    pipelines=("QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline", "QwenImageEditPipeline", "QwenImageEditPlusPipeline"),
    paper="https://arxiv.org/abs/2508.02324",
)  # fmt: skip
