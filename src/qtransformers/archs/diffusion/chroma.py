"""Chroma: Flux.1 whose modulation comes from one small network for all blocks, without guidance and pooled text.

https://huggingface.co/lodestones/Chroma
"""

from __future__ import annotations

from qtransformers.archs.diffusion import flux
from qtransformers.archs.diffusion.folds import NO_WEIGHTS, NOT_LINEAR
from qtransformers.archs.diffusion.hparams import counted, sized
from qtransformers.archs.diffusion.parts import embedder, linear, norm
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks

APPROXIMATOR = {"i": "approximator_layers"}
GUIDE = "distilled_guidance_layer"

TENSORS = (
    *flux.inputs(),
    linear(f"{GUIDE}.in_proj", "approximator_hidden_dim", "approximator_num_channels", f"{GUIDE}.in_proj", role="modulation"),
    *embedder(f"{GUIDE}.layers.{{i}}", "approximator_hidden_dim", "approximator_hidden_dim", f"{GUIDE}.layers.{{i}}", ("in_layer", "out_layer"), repeat=APPROXIMATOR),
    norm(f"{GUIDE}.norms.{{i}}", "approximator_hidden_dim", f"{GUIDE}.norms.{{i}}", suffix=".scale", repeat=APPROXIMATOR),
    linear(f"{GUIDE}.out_proj", "dim", "approximator_hidden_dim", f"{GUIDE}.out_proj", role="modulation"),
    *flux.joint_attention(),
    *flux.joint_mlps(),
    *flux.single_blocks(),
    linear("proj_out", "pixels", "dim", "final_layer.linear", role="output"),
)  # fmt: skip

SPEC = DiffusionSpec(
    id="chroma",
    title="Chroma",
    family="flux",
    class_name="ChromaTransformer2DModel",
    hparams=(
        *flux.shared_settings(16, 56, 56),
        counted("num_single_layers", f"{flux.S}.proj_out", minimum=0),
        sized("approximator_num_channels", f"{GUIDE}.in_proj", 1),
        sized("approximator_hidden_dim", f"{GUIDE}.in_proj", 0),
        counted("approximator_layers", f"{GUIDE}.layers.{{i}}.linear_1"),
    ),
    sizes=flux.sizes,
    check=flux.check,
    tensors=TENSORS,
    folds=flux.VALUES,
    unfolded={"modulation": "one network makes it for all blocks and chunks", "norm": NO_WEIGHTS, "gated": NOT_LINEAR},
    marks={
        "original": (Marks(("double_blocks.0.img_attn.proj.weight", f"{GUIDE}.in_proj.weight")),),
        "diffusers": (Marks(("single_transformer_blocks.0.proj_mlp.weight", f"{GUIDE}.in_proj.weight")),),
    },
    original_names=(*flux.NAMES, (rf"^({GUIDE}\.norms\.\d+)\.weight$", r"\1.scale")),
    pipelines=("ChromaPipeline", "ChromaImg2ImgPipeline"),
    paper="https://huggingface.co/lodestones/Chroma",
)  # fmt: skip
