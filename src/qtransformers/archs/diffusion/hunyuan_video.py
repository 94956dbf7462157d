"""HunyuanVideo: joint blocks of video and text, then single blocks of both; text goes through a refiner of its own first.

https://arxiv.org/abs/2412.03603; the original layout keeps queries, keys, values (and the first half of a single block's
feed-forward) in one matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from qtransformers.archs.diffusion.parts import (
    adds_up,
    axes,
    conv,
    embedder,
    kernel,
    linear,
    norm,
    over,
    ratio,
    setting,
    split,
)
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks
from qtransformers.archs.spec import Problem, TensorSpec, When

JOINT = {"i": "num_layers"}
SINGLE = {"i": "num_single_layers"}
REFINER = {"i": "num_refiner_layers"}
PATCH = kernel("x_embedder.proj", 3)
KINDS = ("latent_concat", "token_replace")


def _condition(s: Any) -> str | None:
    """The first way to give an image has it in channels of its own: 16 of latents, 16 of the image, one mask."""
    return "latent_concat" if s.size("x_embedder.proj", 1) == 33 else None


HPARAMS = (
    setting("in_channels", derive=lambda s: s.size("x_embedder.proj", 1)),
    setting("out_channels", derive=lambda s: over(s.size("proj_out", 0), prod(PATCH(s) or (0,)))),
    setting("attention_head_dim", derive=lambda s: s.size("transformer_blocks.{i}.attn.norm_q", 0)),
    setting("num_attention_heads", derive=lambda s: over(s.size("x_embedder.proj", 0), s.size("transformer_blocks.{i}.attn.norm_q", 0))),
    setting("num_layers", derive=lambda s: s.count("transformer_blocks.{i}.attn.norm_q"), maximum=1024),
    setting("num_single_layers", derive=lambda s: s.count("single_transformer_blocks.{i}.attn.norm_q"), minimum=0, maximum=1024),
    setting("num_refiner_layers", derive=lambda s: s.count("context_embedder.token_refiner.refiner_blocks.{i}.norm1"), maximum=1024),
    setting("mlp_ratio", kind=float, derive=ratio("transformer_blocks.{i}.ff.net.0.proj"), minimum=0, maximum=64),
    setting("patch_size", derive=lambda s: (PATCH(s) or (None,))[-1], maximum=64),
    setting("patch_size_t", derive=lambda s: (PATCH(s) or (None,))[0], maximum=64),
    setting("qk_norm", "rms_norm", kind=str),
    setting("guidance_embeds", kind=bool, derive=lambda s: s.has("time_text_embed.guidance_embedder.linear_1")),
    setting("text_embed_dim", derive=lambda s: s.size("context_embedder.proj_in", 1)),
    setting("pooled_projection_dim", derive=lambda s: s.size("time_text_embed.text_embedder.linear_1", 1)),
    setting("rope_theta", 256.0, kind=float),
    axes("rope_axes_dim", 16, 56, 56),
    setting("image_condition_type", kind=str, nullable=True, derive=_condition, choices=KINDS),
)  # fmt: skip


def _sizes(c: Mapping[str, Any]) -> dict[str, int]:
    dim = c["num_attention_heads"] * c["attention_head_dim"]
    pixels = c["patch_size_t"] * c["patch_size"] ** 2 * c["out_channels"]
    return {"dim": dim, "ff": int(dim * c["mlp_ratio"]), "pixels": pixels}


def _check(c: Mapping[str, Any]) -> Iterator[Problem]:
    yield from adds_up(c, "rope_axes_dim", c["attention_head_dim"])


def _joint(modulation: str, ff: str, theirs: str, names: tuple[str, str, str, str], norms: tuple[str, str]) -> Iterator[TensorSpec]:  # fmt: skip
    """One stream of a joint block; `names` are those of queries, keys, values and the output."""
    block = "transformer_blocks.{i}"
    q, k, v, out = (f"{block}.attn.{name}" for name in names)
    yield linear(
        f"{block}.{modulation}.linear", "6*dim", "dim", f"{theirs}_mod.linear", role="modulation", repeat=JOINT
    )
    yield from split(f"{theirs}_attn_qkv", "dim", {q: "dim", k: "dim", v: "dim"}, repeat=JOINT)
    yield linear(out, "dim", "dim", f"{theirs}_attn_proj", role="attn", repeat=JOINT)
    for name, key in zip(norms, ("q", "k"), strict=True):
        yield norm(f"{block}.attn.{name}", "attention_head_dim", f"{theirs}_attn_{key}_norm", repeat=JOINT)
    yield linear(f"{block}.{ff}.net.0.proj", "ff", "dim", f"{theirs}_mlp.fc1", role="dense_ffn", repeat=JOINT)
    yield linear(f"{block}.{ff}.net.2", "dim", "ff", f"{theirs}_mlp.fc2", role="dense_ffn", repeat=JOINT)


def _single(block: str, theirs: str) -> Iterator[TensorSpec]:
    parts = {f"{block}.attn.to_q": "dim", f"{block}.attn.to_k": "dim", f"{block}.attn.to_v": "dim", f"{block}.proj_mlp": "ff"}  # fmt: skip
    yield linear(
        f"{block}.norm.linear", "3*dim", "dim", f"{theirs}.modulation.linear", role="modulation", repeat=SINGLE
    )
    yield from split(f"{theirs}.linear1", "dim", parts, repeat=SINGLE)
    yield norm(f"{block}.attn.norm_q", "attention_head_dim", f"{theirs}.q_norm", repeat=SINGLE)
    yield norm(f"{block}.attn.norm_k", "attention_head_dim", f"{theirs}.k_norm", repeat=SINGLE)
    yield linear(f"{block}.proj_out", "dim", "dim+ff", f"{theirs}.linear2", role="dense_ffn", repeat=SINGLE)


def _refiner(ours: str, theirs: str) -> Iterator[TensorSpec]:
    block, key = f"{ours}.token_refiner.refiner_blocks.{{i}}", f"{theirs}.individual_token_refiner.blocks.{{i}}"
    yield from embedder(f"{ours}.time_text_embed.timestep_embedder", "256", "dim", f"{theirs}.t_embedder.mlp")
    yield from embedder(f"{ours}.time_text_embed.text_embedder", "text_embed_dim", "dim", f"{theirs}.c_embedder", ("linear_1", "linear_2"))  # fmt: skip
    yield linear(f"{ours}.proj_in", "dim", "text_embed_dim", f"{theirs}.input_embedder", role="embed_in")
    for name in ("norm1", "norm2"):
        yield norm(f"{block}.{name}", "dim", f"{key}.{name}", bias="required", repeat=REFINER)
    yield from split(f"{key}.self_attn_qkv", "dim", {f"{block}.attn.{n}": "dim" for n in ("to_q", "to_k", "to_v")}, repeat=REFINER)  # fmt: skip
    yield linear(f"{block}.attn.to_out.0", "dim", "dim", f"{key}.self_attn_proj", role="attn", repeat=REFINER)
    yield linear(f"{block}.ff.net.0.proj", "4*dim", "dim", f"{key}.mlp.fc1", role="dense_ffn", repeat=REFINER)
    yield linear(f"{block}.ff.net.2", "dim", "4*dim", f"{key}.mlp.fc2", role="dense_ffn", repeat=REFINER)
    yield linear(f"{block}.norm_out.linear", "2*dim", "dim", f"{key}.adaLN_modulation.1", role="modulation", repeat=REFINER)  # fmt: skip


_guided: When = lambda c, i: bool(c["guidance_embeds"])  # noqa: E731
QKVO = ("to_q", "to_k", "to_v", "to_out.0")
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
TENSORS = (
    conv("x_embedder.proj", "dim", "in_channels", ("patch_size_t", "patch_size", "patch_size"), "img_in.proj"),
    *_refiner("context_embedder", "txt_in"),
    *embedder("time_text_embed.timestep_embedder", "256", "dim", "time_in.mlp"),
    *embedder("time_text_embed.text_embedder", "pooled_projection_dim", "dim", "vector_in", ("in_layer", "out_layer")),
    *embedder("time_text_embed.guidance_embedder", "256", "dim", "guidance_in.mlp", when=_guided),
    *_joint("norm1", "ff", "double_blocks.{i}.img", QKVO, ("norm_q", "norm_k")),
    *_joint("norm1_context", "ff_context", "double_blocks.{i}.txt", ADDED, ("norm_added_q", "norm_added_k")),
    *_single("single_transformer_blocks.{i}", "single_blocks.{i}"),
    linear("norm_out.linear", "2*dim", "dim", "final_layer.adaLN_modulation.1[dim:2*dim,0:dim]", role="modulation"),
    linear("proj_out", "pixels", "dim", "final_layer.linear", role="output"),
)  # fmt: skip

SPEC = DiffusionSpec(
    id="hyvid",
    title="HunyuanVideo",
    aliases=("hunyuan_video",),
    class_name="HunyuanVideoTransformer3DModel",
    hparams=HPARAMS,
    sizes=_sizes,
    check=_check,
    tensors=TENSORS,
    marks={
        "original": (Marks(("double_blocks.0.img_attn_proj.weight", "txt_in.individual_token_refiner.blocks.0.self_attn_qkv.weight", "vector_in.in_layer.weight")),),
        "diffusers": (Marks(("x_embedder.proj.weight", "context_embedder.token_refiner.refiner_blocks.0.attn.to_q.weight", "time_text_embed.text_embedder.linear_1.weight"), none=("clean_x_embedder.proj.weight", "image_projection.up.weight")),),
    },
    pipelines=("HunyuanVideoPipeline", "HunyuanVideoImageToVideoPipeline"),
    paper="https://arxiv.org/abs/2412.03603",
)  # fmt: skip
