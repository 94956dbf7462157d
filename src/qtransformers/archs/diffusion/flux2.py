"""Flux.2: blocks as in Flux.1 without biases, one modulation for all blocks of a kind, gated feed-forward layers.

https://github.com/black-forest-labs/flux2; the klein models are smaller and have no guidance.
What no tensor shows: the defaults of the class in diffusers, which are those of the dev model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qtransformers.archs.diffusion import flux
from qtransformers.archs.diffusion.flux import B, S
from qtransformers.archs.diffusion.folds import NO_BIAS, NO_WEIGHTS, Folding, linear_half
from qtransformers.archs.diffusion.hparams import counted, dim, pixels, setting, sized, told_by
from qtransformers.archs.diffusion.parts import embedder, linear, on
from qtransformers.archs.diffusion.shapes import Shapes
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks
from qtransformers.archs.spec import TensorSpec


def _sizes(c: Mapping[str, Any]) -> dict[str, int]:
    return {"dim": dim(c), "ff": int(dim(c) * c["mlp_ratio"]), "pixels": pixels(c)}


def _ratio(s: Shapes) -> float | None:
    """Of the inner width of feed-forward layers to the model's."""
    inner, width = s.size(f"{S}.attn.to_out", 1), s.size("x_embedder", 0)
    return (inner - width) / width if inner and width else None


def _mlps() -> Iterator[TensorSpec]:
    for ours, theirs in (("ff", "img_mlp"), ("ff_context", "txt_mlp")):
        there = f"double_blocks.{{i}}.{theirs}"
        for name, key, shape in (("linear_in", "0", ("2*ff", "dim")), ("linear_out", "2", ("dim", "ff"))):
            yield linear(f"{B}.{ours}.{name}", *shape, f"{there}.{key}", bias="never", role="dense_ffn", repeat=flux.DOUBLE)  # fmt: skip


def _modulation(kind: str, rows: str) -> TensorSpec:
    return linear(f"{kind}.linear", rows, "dim", f"{kind}.lin", bias="never", role="modulation")


TIME = "time_guidance_embed.timestep_embedder"
GUIDANCE = "time_guidance_embed.guidance_embedder"
TENSORS = (
    *flux.inputs("never"),
    *embedder(TIME, "timestep_guidance_channels", "dim", "time_in", flux.LAYERS, bias="never"),
    *embedder(GUIDANCE, "timestep_guidance_channels", "dim", "guidance_in", flux.LAYERS, bias="never", when=on("guidance_embeds")),
    _modulation("double_stream_modulation_img", "6*dim"),
    _modulation("double_stream_modulation_txt", "6*dim"),
    _modulation("single_stream_modulation", "3*dim"),
    *flux.joint_attention("never"),
    *_mlps(),
    linear(f"{S}.attn.to_qkv_mlp_proj", "3*dim+2*ff", "dim", "single_blocks.{i}.linear1", bias="never", repeat=flux.SINGLE),
    linear(f"{S}.attn.to_out", "dim", "dim+ff", "single_blocks.{i}.linear2", bias="never", repeat=flux.SINGLE, quant="ffn_down"),
    *flux.single_norms(),
    *flux.outputs("never"),
)  # fmt: skip

IN_AND_OUT = (
    f"{flux.S}.attn.to_qkv_mlp_proj",
    f"{flux.S}.attn.to_out",
)  # queries, keys, values, gate and what it is multiplied with
FOLDS = (
    flux.JOINT_VALUES,
    *(linear_half(f"{flux.B}.{ff}.linear_in[ff:2*ff]", f"{flux.B}.{ff}.linear_out", flux.DOUBLE) for ff in ("ff", "ff_context")),
    Folding("values", (f"{IN_AND_OUT[0]}[2*dim:3*dim]",), (f"{IN_AND_OUT[1]}[0:dim]",), "dim", flux.SINGLE),
    Folding("gated", (f"{IN_AND_OUT[0]}[3*dim+ff:3*dim+2*ff]",), (f"{IN_AND_OUT[1]}[dim:dim+ff]",), "ff", flux.SINGLE),
)  # fmt: skip

SPEC = DiffusionSpec(
    id="flux2",
    title="Flux.2",
    family="flux",
    class_name="Flux2Transformer2DModel",
    hparams=(
        *flux.shared_settings(32, 32, 32, 32),
        counted("num_single_layers", f"{S}.attn.to_out", minimum=0),
        sized("timestep_guidance_channels", f"{TIME}.linear_1", 1, maximum=4096),
        setting("mlp_ratio", kind=float, derive=_ratio, minimum=0.01, maximum=64),
        told_by("guidance_embeds", f"{GUIDANCE}.linear_1"),
        setting("rope_theta", 2000, maximum=10**9),
        setting("eps", 1e-6, kind=float, minimum=0, maximum=1),
    ),
    sizes=_sizes,
    check=flux.check,
    tensors=TENSORS,
    folds=FOLDS,
    unfolded={"modulation": NO_BIAS, "norm": NO_WEIGHTS},
    marks={
        "original": (Marks(("double_blocks.0.img_attn.proj.weight", "double_stream_modulation_img.lin.weight")),),
        "diffusers": (Marks(("double_stream_modulation_img.linear.weight", "single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight")),),
    },
    original_names=flux.NAMES,
    pipelines=("Flux2Pipeline", "Flux2KleinPipeline"),
    paper="https://github.com/black-forest-labs/flux2",
)  # fmt: skip
