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

WAN = dict(patch_size=(1, 2, 2), attention_head_dim=128, in_channels=16, out_channels=16, text_dim=4096, freq_dim=256)
COSMOS = dict(
    in_channels=16,
    out_channels=16,
    attention_head_dim=128,
    mlp_ratio=4.0,
    text_embed_dim=1024,
    adaln_lora_dim=256,
    max_size=(128, 240, 240),
    patch_size=(1, 2, 2),
)
LTX = dict(in_channels=128, out_channels=128, num_attention_heads=32, caption_channels=4096, attention_bias=True)
SANA = dict(in_channels=32, out_channels=32, attention_head_dim=32, caption_channels=2304, mlp_ratio=2.5, patch_size=1)
UNET = dict(in_channels=4, out_channels=4, layers_per_block=2)
FOUR = dict(
    block_out_channels=(320, 640, 1280, 1280),
    down_block_types=(*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
    up_block_types=("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
    transformer_layers_per_block=(1, 1, 1, 1),
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
    Published("qwen_image", "Qwen-Image", 20.430, dict(patch_size=2, in_channels=64, out_channels=16, num_layers=60, attention_head_dim=128, num_attention_heads=24, joint_attention_dim=3584, guidance_embeds=False, axes_dims_rope=(16, 56, 56), zero_cond_t=False, use_additional_t_cond=False, use_layer3d_rope=False), told=("zero_cond_t", "use_additional_t_cond")),
    Published("z_image", "Z-Image-Turbo", 6.155, dict(all_patch_size=(2,), all_f_patch_size=(1,), in_channels=16, dim=3840, n_layers=30, n_refiner_layers=2, n_heads=30, n_kv_heads=30, norm_eps=1e-5, qk_norm=True, cap_feat_dim=2560, siglip_feat_dim=None, rope_theta=256.0, t_scale=1000.0, axes_dims=(32, 48, 48), axes_lens=(1536, 512, 512))),
    Published("lumina2", "Lumina-Image 2.0", 2.610, dict(sample_size=128, patch_size=2, in_channels=16, out_channels=16, hidden_size=2304, num_layers=26, num_refiner_layers=2, num_attention_heads=24, num_kv_heads=8, multiple_of=256, ffn_dim_multiplier=None, norm_eps=1e-5, scaling_factor=1.0, axes_dim_rope=(32, 32, 32), axes_lens=(300, 512, 512), cap_feat_dim=2304)),
    Published("wan", "Wan 2.1 1.3B", 1.419, dict(WAN, num_attention_heads=12, ffn_dim=8960, num_layers=30)),
    Published("wan", "Wan 2.1 14B", 14.288, dict(WAN, num_attention_heads=40, ffn_dim=13824, num_layers=40)),
    Published("wan", "Wan 2.1 14B image to video", 16.395, dict(WAN, in_channels=36, num_attention_heads=40, ffn_dim=13824, num_layers=40, image_dim=1280, added_kv_proj_dim=5120)),
    Published("wan", "Wan 2.1 14B first and last frame", 16.396, dict(WAN, in_channels=36, num_attention_heads=40, ffn_dim=13824, num_layers=40, image_dim=1280, added_kv_proj_dim=5120, pos_embed_seq_len=514)),
    Published("wan", "Wan 2.2 5B", 5.000, dict(WAN, in_channels=48, out_channels=48, num_attention_heads=24, ffn_dim=14336, num_layers=30)),
    Published("ltxv", "LTX-Video 2B", 1.923, dict(LTX, attention_head_dim=64, cross_attention_dim=2048, num_layers=28)),
    Published("ltxv", "LTX-Video 13B", 13.043, dict(LTX, attention_head_dim=128, cross_attention_dim=4096, num_layers=48)),
    Published("hyvid", "HunyuanVideo", 12.821, dict(in_channels=16, out_channels=16, num_attention_heads=24, attention_head_dim=128, num_layers=20, num_single_layers=40, num_refiner_layers=2, mlp_ratio=4.0, patch_size=2, patch_size_t=1, guidance_embeds=True, text_embed_dim=4096, pooled_projection_dim=768, rope_theta=256.0, rope_axes_dim=(16, 56, 56), image_condition_type=None)),
    Published("hyvid", "HunyuanVideo image to video, first version", 12.811, dict(in_channels=33, out_channels=16, num_attention_heads=24, attention_head_dim=128, num_layers=20, num_single_layers=40, guidance_embeds=False, image_condition_type="latent_concat")),
    Published("cosmos", "Cosmos 1.0 7B", 7.236, dict(COSMOS, num_attention_heads=32, num_layers=28, rope_scale=(2.0, 1.0, 1.0), extra_pos_embed_type="learnable")),
    Published("cosmos", "Cosmos Predict2 2B", 1.956, dict(COSMOS, num_attention_heads=16, num_layers=28, rope_scale=(1.0, 4.0, 4.0), extra_pos_embed_type=None)),
    Published("cosmos", "Cosmos Predict2 14B video to world", 14.265, dict(COSMOS, in_channels=17, num_attention_heads=40, num_layers=36, rope_scale=(20 / 24, 2.0, 2.0), extra_pos_embed_type=None)),
    Published("sana", "Sana 1.6B", 1.604, dict(SANA, num_attention_heads=70, num_layers=20, num_cross_attention_heads=20, cross_attention_head_dim=112, cross_attention_dim=2240, sample_size=32), told=("sample_size",)),
    Published("sana", "Sana 0.6B", 0.592, dict(SANA, num_attention_heads=36, num_layers=28, num_cross_attention_heads=16, cross_attention_head_dim=72, cross_attention_dim=1152, sample_size=16), told=("sample_size",)),
    Published("sana", "Sana Sprint 1.6B", 1.610, dict(SANA, num_attention_heads=70, num_layers=20, num_cross_attention_heads=20, cross_attention_head_dim=112, cross_attention_dim=2240, sample_size=32, guidance_embeds=True, qk_norm="rms_norm_across_heads"), told=("sample_size",)),
    Published("dit", "DiT-XL/2", 0.750, dict(num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28, sample_size=32, patch_size=2, num_embeds_ada_norm=1000, attention_bias=True), told=("sample_size",)),
    Published("sd1", "Stable Diffusion 1.5", 0.860, dict(UNET | FOUR, cross_attention_dim=768, attention_head_dim=(8, 8, 8, 8), sample_size=64)),
    Published("sd1", "Stable Diffusion 1.5 inpainting", 0.860, dict(UNET | FOUR, in_channels=9, cross_attention_dim=768, attention_head_dim=(8, 8, 8, 8))),
    Published("sd1", "Stable Diffusion 2.1", 0.866, dict(UNET | FOUR, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)),
    Published("sdxl", "Stable Diffusion XL", 2.567, dict(UNET, block_out_channels=(320, 640, 1280), down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 2), up_block_types=(*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"), transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20), cross_attention_dim=2048, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816, sample_size=128)),
)  # fmt: skip
