"""Tiny diffusion models, one row each: settings of the class in diffusers, and what its forward is called with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Case:
    """A tiny model: `config` are keyword arguments of the class, `inputs` those of its forward, made from the config."""

    id: str  # of the spec
    config: Mapping[str, Any]
    inputs: Callable[[Mapping[str, Any]], Mapping[str, torch.Tensor]]
    told: tuple[str, ...] = ()  # settings that no tensor shows, which a caller must give
    original: bool = True  # whether there is a layout other than diffusers'
    convert: str = ""  # the function of diffusers.loaders.single_file_utils from the original layout to diffusers'
    quantised: Mapping[str, float] = field(
        default_factory=lambda: {"Q8_0": 0.05, "Q4_K": 0.5}
    )  # largest relative error

    @property
    def name(self) -> str:
        """For parametrised tests."""
        return self.id


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


CASES = (
    Case(
        "aura",
        dict(sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_mmdit_layers=2, num_single_dit_layers=2, attention_head_dim=64, num_attention_heads=4, joint_attention_dim=256, caption_projection_dim=256, pos_embed_max_size=64),
        lambda c: dict(hidden_states=noise(1, 4, 16, 16), encoder_hidden_states=noise(1, 7, c["joint_attention_dim"], seed=2), timestep=torch.tensor([0.5])),
        told=("num_attention_heads", "attention_head_dim"),
        convert="convert_auraflow_transformer_checkpoint_to_diffusers",
    ),
)  # fmt: skip
