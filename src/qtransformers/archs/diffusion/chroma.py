"""Chroma: Flux.1 whose modulation comes from one small network for all blocks, without guidance and pooled text.

https://huggingface.co/lodestones/Chroma
"""

from __future__ import annotations

from qtransformers.archs.diffusion import flux
from qtransformers.archs.diffusion.parts import linear, norm, setting
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks

APPROXIMATOR = {"i": "approximator_layers"}
GUIDE = "distilled_guidance_layer"

TENSORS = (
    linear("x_embedder", "dim", "in_channels", "img_in", role="embed_in"),
    linear("context_embedder", "dim", "joint_attention_dim", "txt_in", role="embed_in"),
    linear(f"{GUIDE}.in_proj", "approximator_hidden_dim", "approximator_num_channels", f"{GUIDE}.in_proj", role="modulation"),
    linear(f"{GUIDE}.layers.{{i}}.linear_1", "approximator_hidden_dim", "approximator_hidden_dim", f"{GUIDE}.layers.{{i}}.in_layer", role="modulation", repeat=APPROXIMATOR),
    linear(f"{GUIDE}.layers.{{i}}.linear_2", "approximator_hidden_dim", "approximator_hidden_dim", f"{GUIDE}.layers.{{i}}.out_layer", role="modulation", repeat=APPROXIMATOR),
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
        setting("num_single_layers", derive=lambda s: s.count("single_transformer_blocks.{i}.proj_out"), minimum=0, maximum=1024),
        setting("approximator_num_channels", derive=lambda s: s.size(f"{GUIDE}.in_proj", 1)),
        setting("approximator_hidden_dim", derive=lambda s: s.size(f"{GUIDE}.in_proj", 0)),
        setting("approximator_layers", derive=lambda s: s.count(f"{GUIDE}.layers.{{i}}.linear_1"), maximum=1024),
    ),
    sizes=flux.sizes,
    check=flux.check,
    tensors=TENSORS,
    marks={
        "original": (Marks(("double_blocks.0.img_attn.proj.weight", f"{GUIDE}.in_proj.weight")),),
        "diffusers": (Marks(("single_transformer_blocks.0.proj_mlp.weight", f"{GUIDE}.in_proj.weight")),),
    },
    original_names=(*flux.NAMES, (rf"^({GUIDE}\.norms\.\d+)\.weight$", r"\1.scale")),
    pipelines=("ChromaPipeline", "ChromaImg2ImgPipeline"),
    paper="https://huggingface.co/lodestones/Chroma",
)  # fmt: skip
