"""Qwen-Image: joint blocks of text and image, sixty of them; published in the layout of diffusers.

https://arxiv.org/abs/2508.02324; Edit has the same tensors, Layered one more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qtransformers.archs.diffusion.parts import adds_up, axes, embedding, heads, linear, norm, over, setting
from qtransformers.archs.diffusion.shapes import Shapes
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks
from qtransformers.archs.spec import Problem, TensorSpec

BLOCKS = {"i": "num_layers"}
BLOCK = "transformer_blocks.{i}"
ZERO = "__index_timestep_zero__"  # a tool's mark of Edit-2511: nothing is in it


def _heads(s: Shapes) -> int | None:
    return over(s.size("img_in", 0), s.size(f"{BLOCK}.attn.norm_q", 0))


def _check(c: Mapping[str, Any]) -> Iterator[Problem]:
    yield from heads(c, c["num_attention_heads"] * c["attention_head_dim"])
    yield from adds_up(c, "axes_dims_rope", c["attention_head_dim"])


def _stream(stream: str, layers: tuple[str, ...], norms: tuple[str, ...]) -> Iterator[TensorSpec]:
    """What a block has for one of its streams."""
    yield linear(f"{BLOCK}.{stream}_mod.1", "6*dim", "dim", role="modulation", repeat=BLOCKS)
    for name in layers:
        yield linear(f"{BLOCK}.attn.{name}", "dim", "dim", role="attn", repeat=BLOCKS)
    for name in norms:
        yield norm(f"{BLOCK}.attn.{name}", "attention_head_dim", repeat=BLOCKS)
    yield linear(f"{BLOCK}.{stream}_mlp.net.0.proj", "4*dim", "dim", role="dense_ffn", repeat=BLOCKS)
    yield linear(f"{BLOCK}.{stream}_mlp.net.2", "dim", "4*dim", role="dense_ffn", repeat=BLOCKS)


TENSORS = (
    linear("img_in", "dim", "in_channels", role="embed_in"),
    norm("txt_norm", "joint_attention_dim"),
    linear("txt_in", "dim", "joint_attention_dim", role="embed_in"),
    linear("time_text_embed.timestep_embedder.linear_1", "dim", "256", role="modulation"),
    linear("time_text_embed.timestep_embedder.linear_2", "dim", "dim", role="modulation"),
    embedding("time_text_embed.addition_t_embedding", "2", "dim", when=lambda c, i: c["use_additional_t_cond"]),
    *_stream("img", ("to_q", "to_k", "to_v", "to_out.0"), ("norm_q", "norm_k")),
    *_stream("txt", ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"), ("norm_added_q", "norm_added_k")),
    linear("norm_out.linear", "2*dim", "dim", role="modulation"),
    linear("proj_out", "pixels", "dim", role="output"),
)

SPEC = DiffusionSpec(
    id="qwen_image",
    title="Qwen-Image",
    class_name="QwenImageTransformer2DModel",
    hparams=(
        setting("patch_size", 2, maximum=64),
        setting("in_channels", derive=lambda s: s.size("img_in", 1)),
        setting("out_channels", derive=lambda s: over(s.size("proj_out", 0), 4)),
        setting("num_layers", derive=lambda s: s.count(f"{BLOCK}.attn.to_q"), maximum=1024),
        setting("attention_head_dim", derive=lambda s: s.size(f"{BLOCK}.attn.norm_q", 0)),
        setting("num_attention_heads", derive=_heads),
        setting("joint_attention_dim", derive=lambda s: s.size("txt_in", 1)),
        setting("guidance_embeds", False, kind=bool),
        axes("axes_dims_rope", 16, 56, 56),
        setting("zero_cond_t", kind=bool, required=True, derive=lambda s: s.has(ZERO) or None, hint="true for Qwen-Image-Edit-2511, false for Qwen-Image and Edit before"),
        setting("use_additional_t_cond", kind=bool, derive=lambda s: s.has("time_text_embed.addition_t_embedding")),
        setting("use_layer3d_rope", lambda c: c["use_additional_t_cond"], kind=bool),
    ),
    sizes=lambda c: {"dim": c["num_attention_heads"] * c["attention_head_dim"], "pixels": c["patch_size"] ** 2 * c["out_channels"]},
    check=_check,
    tensors=TENSORS,
    marks={"diffusers": (Marks(("transformer_blocks.0.img_mod.1.weight", "transformer_blocks.0.attn.add_q_proj.weight", "txt_norm.weight")),)},
    unused=(ZERO,),
    pipelines=("QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline", "QwenImageEditPipeline", "QwenImageEditPlusPipeline"),
    paper="https://arxiv.org/abs/2508.02324",
)  # fmt: skip
