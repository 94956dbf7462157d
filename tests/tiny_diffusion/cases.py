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
    inputs: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    told: tuple[str, ...] = ()  # settings that no tensor shows, which a caller must give
    original: bool = True  # whether there is a layout other than diffusers'
    convert: str = ""  # the function of diffusers.loaders.single_file_utils from the original layout to diffusers'
    widths: Mapping[int, int] = field(default_factory=dict)  # that function's own numbers -> those of the tiny model
    kind: str = ""  # of models of one spec
    idle: str = r"(?!)"  # pattern of tensors that the inputs do not reach, numbers as `*`
    beside: tuple[str, ...] = ()  # tensors of the original layout that nothing reads, but that function asks for
    quantised: Mapping[str, float] = field(
        default_factory=lambda: {"Q8_0": 0.05, "Q4_K": 0.5}
    )  # largest relative error

    @property
    def name(self) -> str:
        """For parametrised tests."""
        return f"{self.id}-{self.kind}" if self.kind else self.id


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FLUX = dict(
    patch_size=1,
    in_channels=64,
    out_channels=64,
    num_layers=2,
    num_single_layers=2,
    attention_head_dim=128,
    num_attention_heads=2,
    joint_attention_dim=512,
)
HIDREAM = dict(
    patch_size=2,
    in_channels=4,
    out_channels=4,
    num_layers=2,
    num_single_layers=1,
    attention_head_dim=64,
    num_attention_heads=4,
    caption_channels=[256, 512],
    text_emb_dim=256,
    num_routed_experts=3,
    num_activated_experts=2,
    axes_dims_rope=(32, 16, 16),
    llama_layers=[0, 2, 2],
)
Z_IMAGE = dict(
    in_channels=4,
    dim=256,
    n_layers=2,
    n_refiner_layers=1,
    n_heads=4,
    n_kv_heads=4,
    cap_feat_dim=512,
    axes_dims=[16, 24, 24],
    axes_lens=[1024, 512, 512],  # not as published: a file has to say it
)


def _text_and_image(c: Mapping[str, Any], axes: int, **more: Any) -> Mapping[str, Any]:
    """What Flux and its kin take: a picture of 4 x 4 patches and seven tokens, with their positions."""
    places = torch.zeros(16, axes)
    places[:, 1], places[:, 2] = torch.arange(16) // 4, torch.arange(16) % 4
    text = torch.zeros(7, axes)
    return dict(
        hidden_states=noise(1, 16, c["in_channels"]),
        encoder_hidden_states=noise(1, 7, c["joint_attention_dim"], seed=2),
        timestep=torch.tensor([0.5]),
        img_ids=places,
        txt_ids=text,
        **more,
    )


def _guidance(c: Mapping[str, Any]) -> Mapping[str, Any]:
    return dict(guidance=torch.tensor([3.5])) if c["guidance_embeds"] else dict(guidance=None)


def _flux(kind: str = "", **config: Any) -> Case:
    return Case(
        "flux",
        dict(FLUX, pooled_projection_dim=256, **config),
        lambda c: _text_and_image(c, 3, pooled_projections=noise(1, 256, seed=3), **_guidance(c)),
        convert="convert_flux_transformer_checkpoint_to_diffusers",
        widths={3072: 256},
        kind=kind,
    )


def _flux2(kind: str = "", **config: Any) -> Case:
    return Case(
        "flux2",
        dict(FLUX, in_channels=128, out_channels=128, **config),
        lambda c: _text_and_image(c, 4, **_guidance(c)),
        convert="convert_flux2_transformer_checkpoint_to_diffusers",
        kind=kind,
    )


def _sd3(kind: str = "", **config: Any) -> Case:
    return Case(
        "sd3",
        dict(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=64,
            num_attention_heads=4,
            joint_attention_dim=512,
            caption_projection_dim=256,
            pooled_projection_dim=256,
            pos_embed_max_size=12,
            **config,
        ),
        lambda c: dict(
            hidden_states=noise(1, 4, 16, 16),
            encoder_hidden_states=noise(1, 7, 512, seed=2),
            pooled_projections=noise(1, 256, seed=3),
            timestep=torch.tensor([500.0]),
        ),
        convert="convert_sd3_transformer_checkpoint_to_diffusers",
        kind=kind,
    )


def _qwen(kind: str = "", **config: Any) -> Case:
    def inputs(c: Mapping[str, Any]) -> Mapping[str, Any]:
        shapes = [[(1, 4, 4)]] if kind == "" else [[(1, 4, 4), (1, 4, 4)]]
        more = dict(additional_t_cond=torch.tensor([1])) if kind else {}
        return dict(
            hidden_states=noise(1, 16 * len(shapes[0]), 64),
            encoder_hidden_states=noise(1, 7, 512, seed=2),
            encoder_hidden_states_mask=torch.ones(1, 7, dtype=torch.bool),
            timestep=torch.tensor([0.5]),
            img_shapes=shapes,
            **more,
        )

    return Case(
        "qwen_image",
        dict(
            patch_size=2,
            in_channels=64,
            out_channels=16,
            num_layers=2,
            attention_head_dim=128,
            num_attention_heads=2,
            joint_attention_dim=512,
            zero_cond_t=False,
            use_additional_t_cond=kind == "layered",
            **config,
        ),
        inputs,
        told=("zero_cond_t",) if kind else ("zero_cond_t", "use_additional_t_cond"),
        original=False,
        kind=kind,
    )


def _z_image_inputs(c: Mapping[str, Any]) -> Mapping[str, Any]:
    return dict(x=[noise(4, 1, 8, 8)], t=torch.tensor([0.5]), cap_feats=[noise(7, 512, seed=2)])


def video(c: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return dict(hidden_states=noise(1, c["in_channels"], 2, 8, 8), timestep=torch.tensor([500]))


WAN = dict(patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=128, in_channels=16, out_channels=16, text_dim=256, ffn_dim=512, num_layers=2)  # fmt: skip
SANA = dict(in_channels=32, out_channels=32, num_attention_heads=8, attention_head_dim=32, num_layers=2, num_cross_attention_heads=4, cross_attention_head_dim=64, cross_attention_dim=256, caption_channels=256, mlp_ratio=2.5, sample_size=32)  # fmt: skip
SANA_TOLD = ("num_attention_heads", "attention_head_dim", "num_cross_attention_heads", "cross_attention_head_dim", "sample_size")  # fmt: skip

UNET = dict(sample_size=8, block_out_channels=(64, 128), layers_per_block=2, cross_attention_dim=256)

CASES = (
    Case(
        "aura",
        dict(sample_size=16, patch_size=2, in_channels=4, out_channels=4, num_mmdit_layers=2, num_single_dit_layers=2, attention_head_dim=64, num_attention_heads=4, joint_attention_dim=256, caption_projection_dim=256, pos_embed_max_size=64),
        lambda c: dict(hidden_states=noise(1, 4, 16, 16), encoder_hidden_states=noise(1, 7, c["joint_attention_dim"], seed=2), timestep=torch.tensor([0.5])),
        told=("num_attention_heads", "attention_head_dim"),
        convert="convert_auraflow_transformer_checkpoint_to_diffusers",
    ),
    _flux(guidance_embeds=True),
    _flux("schnell"),
    _flux("fill", in_channels=384, guidance_embeds=True),
    Case(
        "chroma",
        dict(FLUX, approximator_num_channels=64, approximator_hidden_dim=256, approximator_layers=2),
        lambda c: _text_and_image(c, 3),
        convert="convert_chroma_transformer_checkpoint_to_diffusers",
        widths={3072: 256},
    ),
    _flux2(),
    _flux2("klein", guidance_embeds=False),
    _sd3(),
    _sd3("3.5", qk_norm="rms_norm"),
    _sd3("3.5-medium", qk_norm="rms_norm", dual_attention_layers=(0, 1)),
    Case(
        "hidream",
        dict(HIDREAM),
        lambda c: dict(hidden_states=noise(1, 4, 8, 8), timesteps=torch.tensor([500.0]), encoder_hidden_states_t5=noise(1, 5, 256, seed=2), encoder_hidden_states_llama3=noise(3, 1, 6, 512, seed=3), pooled_embeds=noise(1, 256, seed=4)),
        told=("num_attention_heads", "attention_head_dim", "num_activated_experts", "axes_dims_rope", "llama_layers"),
        original=False,
        idle=r".*\.ff_i\.(experts|gate)\b",  # diffusers computes experts without gradients
    ),
    _qwen(),
    _qwen("layered", use_layer3d_rope=True),
    Case(
        "z_image",
        dict(Z_IMAGE),
        _z_image_inputs,
        told=("axes_dims",),
        convert="convert_z_image_transformer_checkpoint_to_diffusers",
    ),
    Case(
        "z_image",
        dict(Z_IMAGE, siglip_feat_dim=256),
        _z_image_inputs,
        told=("axes_dims",),
        convert="convert_z_image_transformer_checkpoint_to_diffusers",
        kind="omni",
        idle="siglip_",
    ),
    Case(
        "lumina2",
        dict(patch_size=2, in_channels=4, out_channels=4, hidden_size=256, num_layers=2, num_refiner_layers=2, num_attention_heads=4, num_kv_heads=2, axes_dim_rope=(16, 24, 24), axes_lens=(300, 512, 512), cap_feat_dim=512),
        lambda c: dict(hidden_states=noise(1, 4, 8, 8), timestep=torch.tensor([0.5]), encoder_hidden_states=noise(1, 7, 512, seed=2), encoder_attention_mask=torch.ones(1, 7, dtype=torch.bool)),
        told=("axes_dim_rope",),
        convert="convert_lumina2_to_diffusers",
        widths={2304: 256, 768: 128},
    ),
    Case(
        "wan",
        WAN,
        lambda c: video(c) | dict(encoder_hidden_states=noise(1, 7, c["text_dim"], seed=2)),
        told=("num_attention_heads", "attention_head_dim"),
        convert="convert_wan_transformer_to_diffusers",
    ),
    Case(
        "wan",
        WAN | dict(in_channels=36, image_dim=256, added_kv_proj_dim=256, patch_size=(1, 2, 2)),
        lambda c: video(c) | dict(encoder_hidden_states=noise(1, 7, c["text_dim"], seed=2), encoder_hidden_states_image=noise(1, 257, 256, seed=3)),
        kind="image",
        told=("num_attention_heads", "attention_head_dim"),
        convert="convert_wan_transformer_to_diffusers",
    ),
    Case(
        "ltxv",
        dict(in_channels=32, out_channels=32, num_attention_heads=4, attention_head_dim=64, cross_attention_dim=256, num_layers=2, caption_channels=256),
        lambda c: dict(hidden_states=noise(1, 16, c["in_channels"]), encoder_hidden_states=noise(1, 7, c["caption_channels"], seed=2), timestep=torch.tensor([500]), encoder_attention_mask=torch.ones(1, 7), num_frames=1, height=4, width=4),
        told=("num_attention_heads", "attention_head_dim"),
        convert="convert_ltx_transformer_checkpoint_to_diffusers",
    ),
    Case(
        "hyvid",
        dict(in_channels=16, out_channels=16, num_attention_heads=2, attention_head_dim=128, num_layers=2, num_single_layers=2, num_refiner_layers=2, text_embed_dim=256, pooled_projection_dim=256),
        lambda c: video(c) | dict(encoder_hidden_states=noise(1, 7, c["text_embed_dim"], seed=2), encoder_attention_mask=torch.ones(1, 7), pooled_projections=noise(1, c["pooled_projection_dim"], seed=3), guidance=torch.tensor([6000.0])),
        convert="convert_hunyuan_video_transformer_to_diffusers",
        widths={3072: 256},
    ),
    Case(
        "cosmos",
        dict(in_channels=16, out_channels=16, num_attention_heads=4, attention_head_dim=64, num_layers=2, text_embed_dim=256, adaln_lora_dim=256, max_size=(4, 16, 16), rope_scale=(2.0, 1.0, 1.0)),
        lambda c: video(c) | dict(encoder_hidden_states=noise(1, 7, c["text_embed_dim"], seed=2), fps=30, padding_mask=torch.zeros(1, 1, 8, 8)),
        told=("rope_scale",),
        original=False,
    ),
    Case(
        "cosmos",
        dict(in_channels=16, out_channels=16, num_attention_heads=4, attention_head_dim=64, num_layers=2, text_embed_dim=256, adaln_lora_dim=256, rope_scale=(1.0, 4.0, 4.0), extra_pos_embed_type=None),
        lambda c: video(c) | dict(encoder_hidden_states=noise(1, 7, c["text_embed_dim"], seed=2), fps=30, padding_mask=torch.zeros(1, 1, 8, 8)),
        kind="predict2",
        told=("rope_scale",),
        convert="convert_cosmos_transformer_checkpoint_to_diffusers",
    ),
    Case(
        "sana",
        SANA,
        lambda c: dict(hidden_states=noise(1, c["in_channels"], 4, 4), encoder_hidden_states=noise(1, 7, c["caption_channels"], seed=2), timestep=torch.tensor([500])),
        told=SANA_TOLD,
        convert="convert_sana_transformer_to_diffusers",
        beside=("pos_embed", "y_embedder.y_embedding"),
    ),
    Case(
        "sana",
        SANA | dict(guidance_embeds=True, qk_norm="rms_norm_across_heads", sample_size=64, interpolation_scale=1.0),
        lambda c: dict(hidden_states=noise(1, c["in_channels"], 4, 4), encoder_hidden_states=noise(1, 7, c["caption_channels"], seed=2), timestep=torch.tensor([0.5]), guidance=torch.tensor([0.45])),
        kind="sprint",
        told=SANA_TOLD,
    ),
    Case(
        "dit",
        dict(num_attention_heads=4, attention_head_dim=64, in_channels=4, out_channels=8, num_layers=2, sample_size=8, num_embeds_ada_norm=10),
        lambda c: dict(hidden_states=noise(1, 4, 8, 8), timestep=torch.tensor([500]), class_labels=torch.tensor([3])),
        told=("num_attention_heads", "attention_head_dim", "sample_size"),
        original=False,
    ),
    Case(
        "sd1",
        UNET | dict(down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=(4, 8), transformer_layers_per_block=(1, 1)),
        lambda c: dict(sample=noise(1, c["in_channels"], 8, 8), timestep=torch.tensor([500]), encoder_hidden_states=noise(1, 7, c["cross_attention_dim"], seed=2)),
        told=("attention_head_dim",),
        convert="convert_ldm_unet_checkpoint",
    ),
    Case(
        "sdxl",
        UNET | dict(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(4, 8), transformer_layers_per_block=(1, 2), use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=1792),
        lambda c: dict(sample=noise(1, c["in_channels"], 8, 8), timestep=torch.tensor([500]), encoder_hidden_states=noise(1, 7, c["cross_attention_dim"], seed=2), added_cond_kwargs=dict(text_embeds=noise(1, 256, seed=3), time_ids=torch.tensor([[64.0, 64, 0, 0, 64, 64]]))),
        told=("attention_head_dim",),
        convert="convert_ldm_unet_checkpoint",
    ),
)  # fmt: skip
