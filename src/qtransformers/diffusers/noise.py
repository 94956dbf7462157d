"""Inputs of diffusion models made of noise: from a noisy picture down the steps of a flow, with random prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from qtransformers.archs.diffusion import DiffusionSpec
from qtransformers.errors import UnsupportedError

Inputs = Callable[[Mapping[str, Any], Callable[..., torch.Tensor]], dict[str, torch.Tensor]]
STEPS, PROMPTS, TOKENS = 4, 2, 64


def _auraflow(c: Mapping[str, Any], noise: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
    side = min(32, c["sample_size"])
    return {
        "hidden_states": noise(1, c["in_channels"], side, side),
        "encoder_hidden_states": noise(1, TOKENS, c["joint_attention_dim"]),
    }


def _flux(c: Mapping[str, Any], noise: Callable[..., torch.Tensor]) -> dict[str, torch.Tensor]:
    side = 16
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float()
    found = {
        "hidden_states": noise(1, side * side, c["in_channels"]), "encoder_hidden_states": noise(1, TOKENS, c["joint_attention_dim"]),
        "pooled_projections": noise(1, c["pooled_projection_dim"]), "img_ids": places, "txt_ids": torch.zeros(TOKENS, 3),
    }  # fmt: skip
    return found | ({"guidance": torch.tensor([3.5])} if c["guidance_embeds"] else {})


INPUTS: Mapping[str, Inputs] = {"aura": _auraflow, "flux": _flux}


def noise_calls(model: Any, spec: DiffusionSpec, progress: Callable[[int, int], None]) -> None:
    """Call a model at the steps of a flow from noise (Euler), for several random prompts, always the same ones.

    UnsupportedError for an architecture whose inputs are not known here.
    """
    make = INPUTS.get(spec.id)
    if make is None:
        raise UnsupportedError(f"{spec.title}: no inputs are known here to learn from ({', '.join(INPUTS)} have some). Give what the model is called with (-f), keyword arguments of {spec.class_name}.forward in .safetensors.")  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for prompt in range(PROMPTS):
        inputs = make(model.config, lambda *shape: torch.randn(*shape, generator=generator))
        for step in range(STEPS):
            sigma, then = 1 - step / STEPS, 1 - (step + 1) / STEPS
            speed = model(**inputs, timestep=torch.tensor([sigma]), return_dict=False)[0]
            x = inputs["hidden_states"]
            if speed.shape == x.shape:
                inputs["hidden_states"] = x + (then - sigma) * speed
            progress(prompt * STEPS + step + 1, PROMPTS * STEPS)
