"""What ComfyUI-GGUF takes: how it tells models by their tensors, and what it reads of a file."""

from __future__ import annotations

import numpy as np

from qtransformers.gguf import GGUFFile

# The keys it tells an architecture by: one of the groups is there in full; the first row that fits counts
KEYS = {
    "flux": [("double_blocks.0.img_attn.proj.weight",)],
    "sd3": [("joint_blocks.0.x_block.attn.qkv.weight",)],
    "aura": [("double_layers.3.modX.1.weight",)],
    "hidream": [("caption_projection.0.linear.weight", "double_stream_blocks.0.block.ff_i.shared_experts.w3.weight")],
    "cosmos": [("blocks.0.mlp.layer1.weight", "blocks.0.adaln_modulation_cross_attn.1.weight")],
    "ltxv": [("adaln_single.emb.timestep_embedder.linear_2.weight", "transformer_blocks.27.scale_shift_table", "caption_projection.linear_2.weight")],
    "hyvid": [("double_blocks.0.img_attn_proj.weight", "txt_in.individual_token_refiner.blocks.1.self_attn_qkv.weight")],
    "wan": [("blocks.0.self_attn.norm_q.weight", "text_embedding.2.weight", "head.modulation")],
    "sdxl": [
        ("down_blocks.0.downsamplers.0.conv.weight", "add_embedding.linear_1.weight"),
        ("input_blocks.3.0.op.weight", "input_blocks.6.0.op.weight", "output_blocks.2.2.conv.weight", "output_blocks.5.2.conv.weight"),
        ("label_emb.0.0.weight",),
    ],
    "sd1": [("down_blocks.0.downsamplers.0.conv.weight",), ("input_blocks.3.0.op.weight", "input_blocks.6.0.op.weight", "input_blocks.9.0.op.weight", "output_blocks.2.1.conv.weight", "output_blocks.5.2.conv.weight", "output_blocks.8.2.conv.weight")],
    "lumina2": [("cap_embedder.1.weight", "context_refiner.0.attention.qkv.weight")],
}  # fmt: skip
ARCHITECTURES = (*KEYS, "qwen_image")  # the last is only read
TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")  # fmt: skip
HIGH_PRECISION = {
    "hidream": (".ff_i.gate.weight", "img_emb.emb_pos"), "cosmos": ("pos_embedder",), "wan": (".modulation",), "ltxv": ("scale_shift_table",),
}  # fmt: skip
SMALL = 1024  # values of tensors that stay F32


def told_by(names) -> str:
    """The architecture that a file with tensors of these names is taken for."""
    return next((a for a, groups in KEYS.items() if any(all(k in names for k in keys) for keys in groups)), "")


def objections(path) -> list[str]:
    """What it would refuse or misread of a file in the original layout."""
    found = []
    with GGUFFile(path) as file:
        arch = file.metadata.get("general.architecture")
        names = set(file.tensors)
        if arch not in ARCHITECTURES:
            found.append(f"unknown architecture {arch}")
        if arch in KEYS and told_by(names) != arch:
            found.append(f"tensors of {told_by(names) or 'nothing known'} under {arch}")
        if any(name.startswith(("transformer_blocks.0.attn.", "joint_transformer_blocks.")) for name in names) and arch in ("flux", "sd3", "aura"):  # fmt: skip
            found.append("the layout of diffusers")
        for key in (k for k in file.metadata if k.startswith("comfy.gguf.orig_shape.")):
            name = key.removeprefix("comfy.gguf.orig_shape.")
            if name not in names:
                found.append(f"{key} of no tensor")
            elif np.prod(file.metadata[key]) != file.tensors[name].n_values:
                found.append(f"{key} of other values")
            if not file.metadata.encoded(key).data.startswith(b"\x09\0\0\0\x05\0\0\0"):  # an array of int32
                found.append(f"{key} is no list of int32")
        for name, t in file.tensors.items():
            n_dims = sum(n > 1 for n in t.shape)
            if t.type.name not in TYPES:
                found.append(f"{name} is {t.type}")
            if len(t.shape) > 4:
                found.append(f"{name} has {len(t.shape)} dimensions")
            if (n_dims <= 1 or t.n_values <= SMALL or name.endswith(HIGH_PRECISION.get(arch, ("?",)))) and t.type.name != "F32":  # fmt: skip
                found.append(f"{name} {list(t.shape)} is {t.type}")
    return found
