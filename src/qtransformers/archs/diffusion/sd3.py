"""Stable Diffusion 3 and 3.5: joint blocks of text and image, the last of which drops the text; 3.5 norms queries and keys.

https://arxiv.org/abs/2403.03206; the first blocks of 3.5 Medium have a second attention of the image alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qtransformers.archs.diffusion.folds import NO_WEIGHTS, NOT_LINEAR, modulated, values
from qtransformers.archs.diffusion.hparams import counted, dim, heads, over, pixels, root, setting, sized
from qtransformers.archs.diffusion.parts import (
    ADDED,
    NORMS,
    QKVO,
    SWAPPED,
    both,
    conv,
    embedder,
    head_norms,
    linear,
    on,
    parameter,
    split,
)
from qtransformers.archs.diffusion.shapes import Shapes
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks
from qtransformers.archs.spec import Problem, TensorSpec, When

BLOCKS = {"i": "num_layers"}
B = "transformer_blocks.{i}"


def _side(s: Shapes) -> int | None:
    return root(s.size("pos_embed.pos_embed", -2))


def _head_dim(s: Shapes) -> int | None:
    return s.size(f"{B}.attn.norm_q", 0)


def _heads(s: Shapes) -> int | None:
    return over(s.size("context_embedder", 0), _head_dim(s) or 64)


def _check(c: Mapping[str, Any]) -> Iterator[Problem]:
    yield from heads(c, c["caption_projection_dim"])
    if outside := [i for i in c["dual_attention_layers"] if i >= c["num_layers"]]:
        yield Problem(f"dual_attention_layers has {outside[0]}; expected numbers below num_layers {c['num_layers']}")


def _dual(c: Mapping[str, Any], layer: int) -> bool:
    return layer in c["dual_attention_layers"]


def _last(c: Mapping[str, Any], layer: int) -> bool:
    return layer == int(c["num_layers"]) - 1


def _unless(when: When) -> When:
    return lambda c, layer: not when(c, layer)


def _attention(ours: str, theirs: str, names: tuple[str, ...], norms: tuple[str, ...], when: When | None = None) -> Iterator[TensorSpec]:  # fmt: skip
    """Queries, keys and values, then norms, of one stream."""
    there, parts = f"joint_blocks.{{i}}.{theirs}", dict.fromkeys((f"{B}.{ours}.{name}" for name in names[:3]), "dim")
    yield from split(f"{there}.qkv", "dim", parts, repeat=BLOCKS, when=when)
    yield from head_norms(f"{B}.{ours}", "attention_head_dim", f"{there}.", ("ln_q", "ln_k"), norms, repeat=BLOCKS, when=both(on("qk_norm"), when))  # fmt: skip


def _block(name: str, out: str, width: str, original: str, role: str, when: When | None = None) -> TensorSpec:
    return linear(f"{B}.{name}", out, width, f"joint_blocks.{{i}}.{original}", role=role, repeat=BLOCKS, when=when)


ADALN = "adaLN_modulation.1"
TENSORS = (
    parameter("pos_embed.pos_embed", "1", "pos_embed_max_size*pos_embed_max_size", "dim", original="pos_embed"),
    conv("pos_embed.proj", "dim", "in_channels", ("patch_size", "patch_size"), "x_embedder.proj"),
    linear("context_embedder", "caption_projection_dim", "joint_attention_dim", "context_embedder", role="embed_in"),
    *embedder("time_text_embed.timestep_embedder", "256", "dim", "t_embedder.mlp"),
    *embedder("time_text_embed.text_embedder", "pooled_projection_dim", "dim", "y_embedder.mlp"),
    _block("norm1.linear", "6*dim", "dim", f"x_block.{ADALN}", "modulation", _unless(_dual)),
    _block("norm1.linear", "9*dim", "dim", f"x_block.{ADALN}", "modulation", _dual),
    _block("norm1_context.linear", "6*dim", "dim", f"context_block.{ADALN}", "modulation", _unless(_last)),
    _block("norm1_context.linear", "2*dim", "dim", f"context_block.{ADALN}{SWAPPED}", "modulation", _last),
    *_attention("attn", "x_block.attn", QKVO, NORMS),
    *_attention("attn", "context_block.attn", ADDED, ("norm_added_q", "norm_added_k")),
    *_attention("attn2", "x_block.attn2", QKVO, NORMS, _dual),
    _block("attn.to_out.0", "dim", "dim", "x_block.attn.proj", "attn"),
    _block("attn.to_add_out", "dim", "dim", "context_block.attn.proj", "attn", _unless(_last)),
    _block("attn2.to_out.0", "dim", "dim", "x_block.attn2.proj", "attn", _dual),
    _block("ff.net.0.proj", "4*dim", "dim", "x_block.mlp.fc1", "dense_ffn"),
    _block("ff.net.2", "dim", "4*dim", "x_block.mlp.fc2", "dense_ffn"),
    _block("ff_context.net.0.proj", "4*dim", "dim", "context_block.mlp.fc1", "dense_ffn", _unless(_last)),
    _block("ff_context.net.2", "dim", "4*dim", "context_block.mlp.fc2", "dense_ffn", _unless(_last)),
    linear("norm_out.linear", "2*dim", "dim", f"final_layer.{ADALN}{SWAPPED}", role="modulation"),
    linear("proj_out", "pixels", "dim", "final_layer.linear", role="output"),
)  # fmt: skip

IMAGE, TEXT, AGAIN = ([f"{B}.{attn}.{n}" for n in names[:3]] for attn, names in (("attn", QKVO), ("attn", ADDED), ("attn2", QKVO)))  # fmt: skip
FOLDS = (
    modulated(f"{B}.norm1.linear", 1, 0, IMAGE, BLOCKS),
    modulated(f"{B}.norm1.linear", 4, 3, (f"{B}.ff.net.0.proj",), BLOCKS),
    modulated(f"{B}.norm1.linear", 7, 6, AGAIN, BLOCKS, _dual),
    modulated(f"{B}.norm1_context.linear", 1, 0, TEXT, BLOCKS, _unless(_last)),
    modulated(f"{B}.norm1_context.linear", 0, 1, TEXT, BLOCKS, _last),
    modulated(f"{B}.norm1_context.linear", 4, 3, (f"{B}.ff_context.net.0.proj",), BLOCKS, _unless(_last)),
    values(B, ("attn.to_v", "attn.add_v_proj"), ("attn.to_out.0", "attn.to_add_out?"), BLOCKS),
    values(B, ("attn2.to_v",), ("attn2.to_out.0",), BLOCKS, when=_dual),
)

SPEC = DiffusionSpec(
    id="sd3",
    title="Stable Diffusion 3 and 3.5",
    aliases=("sd3.5",),
    class_name="SD3Transformer2DModel",
    hparams=(
        setting("sample_size", 128),
        sized("patch_size", "pos_embed.proj", -1, maximum=64),
        sized("in_channels", "pos_embed.proj", 1),
        counted("num_layers", f"{B}.attn.to_out.0"),
        setting("attention_head_dim", 64, derive=_head_dim),
        setting("num_attention_heads", derive=_heads),
        sized("joint_attention_dim", "context_embedder", 1),
        sized("caption_projection_dim", "context_embedder", 0),
        sized("pooled_projection_dim", "time_text_embed.text_embedder.linear_1", 1),
        setting("out_channels", derive=lambda s: over(s.size("proj_out", 0), (s.size("pos_embed.proj", -1) or 0) ** 2)),
        setting("pos_embed_max_size", derive=_side, maximum=2**12),
        setting("dual_attention_layers", kind=tuple, minimum=0, maximum=1024, derive=lambda s: s.layers(f"{B}.attn2.to_out.0")),
        setting("qk_norm", kind=str, nullable=True, choices=("rms_norm",), derive=lambda s: "rms_norm" if _head_dim(s) else None),
    ),
    sizes=lambda c: {"dim": dim(c), "pixels": pixels(c)},
    check=_check,
    tensors=TENSORS,
    folds=FOLDS,
    unfolded={"norm": NO_WEIGHTS, "gated": NOT_LINEAR},
    marks={
        "original": (Marks(("joint_blocks.0.x_block.attn.qkv.weight",)),),
        "diffusers": (Marks(("transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.proj.weight", "time_text_embed.text_embedder.linear_1.weight")),),
    },
    pipelines=("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
    paper="https://arxiv.org/abs/2403.03206",
)  # fmt: skip
