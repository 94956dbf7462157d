"""A step of a diffusion transformer on the card: ours, diffusers' own GGUF path, and plain bfloat16, which take turns."""

import tempfile
from pathlib import Path

from card import Card
from diffusion import AURA, FLUX, Setup, compared

# A fifth of AuraFlow and of Flux.1 in their widths, 2 GB each as blocks take 1.3
SHAPES = {
    "aura": (AURA, {"num_mmdit_layers": 2, "num_single_dit_layers": 8}),
    "flux": (FLUX, {"num_layers": 2, "num_single_layers": 8, "guidance_embeds": True}),
}
SETUP = Setup(SHAPES, ["Q4_K_M"], [512, 1024], rounds=5, threads=8, device="cuda")
SMALL = {"attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": 32}
TINY_SHAPES = {
    "aura": (AURA, {**SMALL, "num_mmdit_layers": 1, "num_single_dit_layers": 1, "caption_projection_dim": 64, "pos_embed_max_size": 256, "sample_size": 32}),
    "flux": (FLUX, {**SMALL, "num_layers": 1, "num_single_layers": 1, "axes_dims_rope": (8, 12, 12), "pooled_projection_dim": 32, "guidance_embeds": True}),
}  # fmt: skip
TINY = {"SETUP": Setup(TINY_SHAPES, ["Q8_0"], [256], rounds=1, threads=1, device="cuda", text=8, layout="diffusers")}


def measure(card: Card, options) -> tuple[str, str]:
    """The title and text for RESULTS.md."""
    card.clear()
    with tempfile.TemporaryDirectory() as folder:
        found = compared(SETUP, Path(folder), card)
    told = f"Random weights of the real widths, a fifth of the layers; medians of {SETUP.rounds} turns, each of steps launched one behind the other, after a step to warm up. Each in a process of its own; `exact` computes in float32, all else in bfloat16."
    return "a step of a diffusion transformer", f"{told}\n\n{found}"
