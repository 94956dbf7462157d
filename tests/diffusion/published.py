"""Published models, by the settings in their config.json, and how large they are said to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Published:
    """A model as published: `told` are settings that its tensors do not show, and that no published model of such sizes shares."""

    id: str  # of the spec
    name: str
    billions: float  # parameters, buffers left out
    config: Mapping[str, Any]
    told: tuple[str, ...] = ()


FLUX = dict(
    patch_size=1,
    in_channels=64,
    out_channels=64,
    num_layers=19,
    num_single_layers=38,
    attention_head_dim=128,
    num_attention_heads=24,
    joint_attention_dim=4096,
    pooled_projection_dim=768,
    axes_dims_rope=(16, 56, 56),
)
CHROMA = {name: value for name, value in FLUX.items() if name != "pooled_projection_dim"}
SD3 = dict(
    sample_size=128,
    patch_size=2,
    in_channels=16,
    attention_head_dim=64,
    joint_attention_dim=4096,
    pooled_projection_dim=2048,
    out_channels=16,
)

PUBLISHED = (
    Published("aura", "AuraFlow", 6.833, dict(sample_size=64, patch_size=2, in_channels=4, num_mmdit_layers=4, num_single_dit_layers=32, attention_head_dim=256, num_attention_heads=12, joint_attention_dim=2048, caption_projection_dim=3072, out_channels=4, pos_embed_max_size=1024)),
    Published("flux", "FLUX.1-dev", 11.901, dict(FLUX, guidance_embeds=True)),
    Published("flux", "FLUX.1-schnell", 11.891, dict(FLUX, guidance_embeds=False)),
    Published("flux", "FLUX.1-Fill-dev", 11.902, dict(FLUX, in_channels=384, guidance_embeds=True)),
    Published("flux", "FLUX.1-Depth-dev", 11.902, dict(FLUX, in_channels=128, guidance_embeds=True)),
    Published("chroma", "Chroma1-HD", 8.900, dict(CHROMA, approximator_num_channels=64, approximator_hidden_dim=5120, approximator_layers=5)),
    Published("flux2", "FLUX.2-dev", 32.223, dict(patch_size=1, in_channels=128, out_channels=128, num_layers=8, num_single_layers=48, attention_head_dim=128, num_attention_heads=48, joint_attention_dim=15360, timestep_guidance_channels=256, mlp_ratio=3.0, axes_dims_rope=(32, 32, 32, 32), rope_theta=2000, eps=1e-6, guidance_embeds=True)),
    Published("sd3", "SD3 Medium", 2.028, dict(SD3, num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=192, dual_attention_layers=(), qk_norm=None)),
    Published("sd3", "SD3.5 Medium", 2.243, dict(SD3, num_layers=24, num_attention_heads=24, caption_projection_dim=1536, pos_embed_max_size=384, dual_attention_layers=tuple(range(13)), qk_norm="rms_norm")),
    Published("sd3", "SD3.5 Large", 8.057, dict(SD3, num_layers=38, num_attention_heads=38, caption_projection_dim=2432, pos_embed_max_size=192, dual_attention_layers=(), qk_norm="rms_norm")),
    Published("hidream", "HiDream-I1", 17.106, dict(patch_size=2, in_channels=16, out_channels=16, num_layers=16, num_single_layers=32, attention_head_dim=128, num_attention_heads=20, caption_channels=(4096, 4096), text_emb_dim=2048, num_routed_experts=4, num_activated_experts=2, axes_dims_rope=(64, 32, 32), max_resolution=(128, 128), llama_layers=(*range(32), *[31] * 16))),
    Published("qwen_image", "Qwen-Image", 20.430, dict(patch_size=2, in_channels=64, out_channels=16, num_layers=60, attention_head_dim=128, num_attention_heads=24, joint_attention_dim=3584, guidance_embeds=False, axes_dims_rope=(16, 56, 56), zero_cond_t=False, use_additional_t_cond=False, use_layer3d_rope=False), told=("zero_cond_t",)),
    Published("z_image", "Z-Image-Turbo", 6.155, dict(all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=3840, n_layers=30, n_refiner_layers=2, n_heads=30, n_kv_heads=30, norm_eps=1e-5, qk_norm=True, cap_feat_dim=2560, siglip_feat_dim=None, rope_theta=256.0, t_scale=1000.0, axes_dims=(32, 48, 48))),
    Published("lumina2", "Lumina-Image 2.0", 2.610, dict(sample_size=128, patch_size=2, in_channels=16, out_channels=16, hidden_size=2304, num_layers=26, num_refiner_layers=2, num_attention_heads=24, num_kv_heads=8, multiple_of=256, ffn_dim_multiplier=None, norm_eps=1e-5, scaling_factor=1.0, axes_dim_rope=(32, 32, 32), axes_lens=(300, 512, 512), cap_feat_dim=2304)),
)  # fmt: skip
