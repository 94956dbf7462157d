"""Z-Image: text and image refined apart, then blocks of both in one stream; Omni has refined SigLIP features too.

https://github.com/Tongyi-MAI/Z-Image; what no tensor shows is as transformer/config.json of Z-Image-Turbo has it, whose axes_lens
are not the class's (1536, not 1024).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qtransformers.archs.diffusion.folds import SCALES_ALONE, Folding, linear_half, normed, values
from qtransformers.archs.diffusion.hparams import (
    adds_up,
    as_many,
    axes,
    counted,
    head_count,
    heads,
    over,
    setting,
    sized,
    told_by,
)
from qtransformers.archs.diffusion.parts import (
    both,
    gated,
    head_norms,
    joined_attention,
    linear,
    norm,
    on,
    parameter,
)
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks
from qtransformers.archs.spec import Problem, TensorSpec, When

CONDITION = 256  # widest condition of a block
NORM = "layers.{i}.attention.norm_q"
PATCH = "2-1"  # of the one size of patches that is published: 2 x 2 of one frame


def _sizes(c: Mapping[str, Any]) -> dict[str, int]:
    dim = c["dim"]
    return {
        "condition": min(dim, CONDITION),
        "ff": int(dim / 3 * 8),
        "head_dim": dim // c["n_heads"],
        "patch": 4 * c["in_channels"],
    }


def _check(c: Mapping[str, Any]) -> Iterator[Problem]:
    head_dim = c["dim"] // c["n_heads"]
    yield from heads({**c, "head_dim": head_dim}, c["dim"], named="n_heads", head_dim="head_dim")
    yield from adds_up(c, "axes_dims", head_dim)
    yield from as_many(c, "axes_lens", len(c["axes_dims"]), "as axes_dims has")
    if c["all_patch_size"] != (2,) or c["all_f_patch_size"] != (1,):
        yield Problem(f"all_patch_size is {list(c['all_patch_size'])} and all_f_patch_size {list(c['all_f_patch_size'])}; expected [2] and [1]", "unsupported")  # fmt: skip


def _blocks(name: str, count: str, modulated: bool = True, when: When | None = None) -> Iterator[TensorSpec]:
    block, repeat = f"{name}.{{i}}", {"i": count}
    attention = f"{block}.attention"
    yield from joined_attention(
        attention, f"{attention}.qkv", f"{attention}.out", bias="never", repeat=repeat, when=when
    )
    yield from head_norms(attention, "head_dim", f"{attention}.", repeat=repeat, when=both(on("qk_norm"), when))
    yield from gated(f"{block}.feed_forward", ("w1", "w2", "w3"), f"{block}.feed_forward", repeat=repeat, when=when)
    if modulated:
        yield linear(f"{block}.adaLN_modulation.0", "4*dim", "condition", f"{block}.adaLN_modulation.0", role="modulation", repeat=repeat)  # fmt: skip
    for key in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2"):
        yield norm(f"{block}.{key}", "dim", f"{block}.{key}", repeat=repeat, when=when)


def _omni(c: Mapping[str, Any], layer: int) -> bool:
    return c["siglip_feat_dim"] is not None


TENSORS = (
    linear(f"all_x_embedder.{PATCH}", "dim", "patch", "x_embedder", role="embed_in"),
    parameter("x_pad_token", "1", "dim", original="x_pad_token"),
    parameter("cap_pad_token", "1", "dim", original="cap_pad_token"),
    linear("t_embedder.mlp.0", "1024", "256", "t_embedder.mlp.0", role="modulation"),
    linear("t_embedder.mlp.2", "condition", "1024", "t_embedder.mlp.2", role="modulation"),
    norm("cap_embedder.0", "cap_feat_dim", "cap_embedder.0"),
    linear("cap_embedder.1", "dim", "cap_feat_dim", "cap_embedder.1", role="embed_in"),
    norm("siglip_embedder.0", "siglip_feat_dim", "siglip_embedder.0", when=_omni),
    linear("siglip_embedder.1", "dim", "siglip_feat_dim", "siglip_embedder.1", role="embed_in", when=_omni),
    parameter("siglip_pad_token", "1", "dim", original="siglip_pad_token", when=_omni),
    *_blocks("noise_refiner", "n_refiner_layers"),
    *_blocks("context_refiner", "n_refiner_layers", modulated=False),
    *_blocks("siglip_refiner", "n_refiner_layers", modulated=False, when=_omni),
    *_blocks("layers", "n_layers"),
    linear(f"all_final_layer.{PATCH}.adaLN_modulation.1", "dim", "condition", "final_layer.adaLN_modulation.1", role="modulation"),
    linear(f"all_final_layer.{PATCH}.linear", "patch", "dim", "final_layer.linear", role="output"),
)  # fmt: skip


def _folds(name: str, count: str, when: When | None = None) -> Iterator[Folding]:
    block, repeat = f"{name}.{{i}}", {"i": count}
    yield normed(f"{block}.attention_norm1", (f"{block}.attention.to_{n}" for n in "qkv"), repeat, when=when)
    yield normed(f"{block}.ffn_norm1", (f"{block}.feed_forward.{w}" for w in ("w1", "w3")), repeat, when=when)
    yield values(block, ("attention.to_v",), ("attention.to_out.0",), repeat, when=when)
    yield linear_half(f"{block}.feed_forward.w3", f"{block}.feed_forward.w2", repeat, when=when)


FOLDS = (
    *_folds("noise_refiner", "n_refiner_layers"),
    *_folds("context_refiner", "n_refiner_layers"),
    *_folds("siglip_refiner", "n_refiner_layers", _omni),
    *_folds("layers", "n_layers"),
)

SPEC = DiffusionSpec(
    id="z_image",
    title="Z-Image",
    aliases=("zimage",),
    family="lumina2",
    class_name="ZImageTransformer2DModel",
    hparams=(
        setting("all_patch_size", (2,), kind=tuple, maximum=64),
        setting("all_f_patch_size", (1,), kind=tuple, maximum=64),
        setting("in_channels", derive=lambda s: over(s.size(f"all_x_embedder.{PATCH}", 1), 4)),
        sized("dim", f"all_x_embedder.{PATCH}", 0),
        counted("n_layers", "layers.{i}.attention.to_out.0"),
        counted("n_refiner_layers", "noise_refiner.{i}.attention.to_out.0"),
        told_by("qk_norm", NORM),
        head_count("n_heads", f"all_x_embedder.{PATCH}", NORM),
        setting("n_kv_heads", lambda c: c["n_heads"]),
        setting("norm_eps", 1e-5, kind=float, minimum=0, maximum=1),
        sized("cap_feat_dim", "cap_embedder.0", 0),
        sized("siglip_feat_dim", "siglip_embedder.0", 0, nullable=True),
        setting("rope_theta", 256.0, kind=float, maximum=1e9),
        setting("t_scale", 1000.0, kind=float),
        axes("axes_dims", 32, 48, 48, size=lambda c: c["dim"] // c["n_heads"]),
        setting("axes_lens", (1536, 512, 512), kind=tuple, maximum=2**16),
    ),
    sizes=_sizes,
    check=_check,
    tensors=TENSORS,
    folds=FOLDS,
    unfolded={"modulation": SCALES_ALONE},
    marks={
        "original": (Marks(("cap_embedder.1.weight", "context_refiner.0.attention.qkv.weight", "x_pad_token", "cap_pad_token")),),
        "diffusers": (Marks((f"all_x_embedder.{PATCH}.weight", "context_refiner.0.attention.to_q.weight")),),
    },
    unused=(r"norm_final\.weight",),
    pipelines=("ZImagePipeline", "ZImageImg2ImgPipeline"),
    paper="https://github.com/Tongyi-MAI/Z-Image",
)  # fmt: skip
