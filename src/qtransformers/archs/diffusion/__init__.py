"""The diffusion transformers, by the name a GGUF file gives them."""

from __future__ import annotations

from qtransformers.archs.diffusion import (
    auraflow,
    chroma,
    cosmos,
    dit,
    flux,
    flux2,
    hidream,
    hunyuan_video,
    ltx,
    lumina2,
    qwen_image,
    sana,
    sd3,
    unet,
    wan,
    z_image,
)
from qtransformers.archs.diffusion.shapes import Shapes
from qtransformers.archs.diffusion.spec import LAYOUTS, Declared, DiffusionSpec, Layout, Marks, Origin, stripped

# The order counts where marks of one are among the tensors of another: the more particular first
ALL: tuple[DiffusionSpec, ...] = (
    auraflow.SPEC, chroma.SPEC, flux2.SPEC, flux.SPEC, sd3.SPEC, hidream.SPEC, qwen_image.SPEC, z_image.SPEC, lumina2.SPEC,
    hunyuan_video.SPEC, wan.SPEC, ltx.SPEC, cosmos.SPEC, sana.SPEC, dit.SPEC, unet.SDXL, unet.SD1,
)  # fmt: skip
SPECS: dict[str, DiffusionSpec] = {name: spec for spec in ALL for name in (spec.id, *spec.aliases)}

__all__ = ["ALL", "LAYOUTS", "SPECS", "Declared", "DiffusionSpec", "Layout", "Marks", "Origin", "Shapes", "stripped"]
