"""Flux.2: blocks as in Flux.1 without biases, one modulation for all blocks of a kind, gated feed-forward layers.

https://github.com/black-forest-labs/flux2; the klein models are smaller and have no guidance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qtransformers.archs.diffusion import flux
from qtransformers.archs.diffusion.parts import linear, setting
from qtransformers.archs.diffusion.shapes import Shapes
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks
from qtransformers.archs.spec import TensorSpec


def _sizes(c: Mapping[str, Any]) -> dict[str, int]:
    dim = c["num_attention_heads"] * c["attention_head_dim"]
    return {"dim": dim, "ff": int(dim * c["mlp_ratio"]), "pixels": c["patch_size"] ** 2 * c["out_channels"]}


def _ratio(s: Shapes) -> float | None:
    """Of the inner width of feed-forward layers to the model's."""
    inner, dim = s.size("single_transformer_blocks.{i}.attn.to_out", 1), s.size("x_embedder", 0)
    return (inner - dim) / dim if inner and dim else None


def _plain(name: str, out: str, width: str, original: str, role: str = "linear", **row: Any) -> TensorSpec:
    return linear(name, out, width, original, bias="never", role=role, **row)


def _mlps() -> Iterator[TensorSpec]:
    for ours, theirs in (("ff", "img_mlp"), ("ff_context", "txt_mlp")):
        yield _plain(f"transformer_blocks.{{i}}.{ours}.linear_in", "2*ff", "dim", f"double_blocks.{{i}}.{theirs}.0", "dense_ffn", repeat=flux.DOUBLE)  # fmt: skip
        yield _plain(f"transformer_blocks.{{i}}.{ours}.linear_out", "dim", "ff", f"double_blocks.{{i}}.{theirs}.2", "dense_ffn", repeat=flux.DOUBLE)  # fmt: skip


def _guided(c: Mapping[str, Any], layer: int) -> bool:
    return bool(c["guidance_embeds"])


TENSORS = (
    _plain("x_embedder", "dim", "in_channels", "img_in", "embed_in"),
    _plain("context_embedder", "dim", "joint_attention_dim", "txt_in", "embed_in"),
    _plain("time_guidance_embed.timestep_embedder.linear_1", "dim", "timestep_guidance_channels", "time_in.in_layer", "modulation"),
    _plain("time_guidance_embed.timestep_embedder.linear_2", "dim", "dim", "time_in.out_layer", "modulation"),
    _plain("time_guidance_embed.guidance_embedder.linear_1", "dim", "timestep_guidance_channels", "guidance_in.in_layer", "modulation", when=_guided),
    _plain("time_guidance_embed.guidance_embedder.linear_2", "dim", "dim", "guidance_in.out_layer", "modulation", when=_guided),
    _plain("double_stream_modulation_img.linear", "6*dim", "dim", "double_stream_modulation_img.lin", "modulation"),
    _plain("double_stream_modulation_txt.linear", "6*dim", "dim", "double_stream_modulation_txt.lin", "modulation"),
    _plain("single_stream_modulation.linear", "3*dim", "dim", "single_stream_modulation.lin", "modulation"),
    *flux.joint_attention("never"),
    *_mlps(),
    _plain("single_transformer_blocks.{i}.attn.to_qkv_mlp_proj", "3*dim+2*ff", "dim", "single_blocks.{i}.linear1", repeat=flux.SINGLE),
    _plain("single_transformer_blocks.{i}.attn.to_out", "dim", "dim+ff", "single_blocks.{i}.linear2", repeat=flux.SINGLE),
    *flux.single_norms(),
    _plain("norm_out.linear", "2*dim", "dim", "final_layer.adaLN_modulation.1[dim:2*dim,0:dim]", "modulation"),
    _plain("proj_out", "pixels", "dim", "final_layer.linear", "output"),
)  # fmt: skip

SPEC = DiffusionSpec(
    id="flux2",
    title="Flux.2",
    family="flux",
    class_name="Flux2Transformer2DModel",
    hparams=(
        *flux.shared_settings(32, 32, 32, 32),
        setting("num_single_layers", derive=lambda s: s.count("single_transformer_blocks.{i}.attn.to_out"), minimum=0, maximum=1024),
        setting("timestep_guidance_channels", derive=lambda s: s.size("time_guidance_embed.timestep_embedder.linear_1", 1), maximum=4096),
        setting("mlp_ratio", kind=float, derive=_ratio, minimum=0.01, maximum=64),
        setting("guidance_embeds", kind=bool, derive=lambda s: s.has("time_guidance_embed.guidance_embedder.linear_1")),
        setting("rope_theta", 2000, maximum=10**9),
        setting("eps", 1e-6, kind=float, minimum=0, maximum=1),
    ),
    sizes=_sizes,
    check=flux.check,
    tensors=TENSORS,
    marks={
        "original": (Marks(("double_blocks.0.img_attn.proj.weight", "double_stream_modulation_img.lin.weight")),),
        "diffusers": (Marks(("double_stream_modulation_img.linear.weight", "single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight")),),
    },
    original_names=flux.NAMES,
    pipelines=("Flux2Pipeline", "Flux2KleinPipeline"),
    paper="https://github.com/black-forest-labs/flux2",
)  # fmt: skip
