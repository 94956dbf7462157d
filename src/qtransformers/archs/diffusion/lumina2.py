"""Lumina-Image 2.0: text and image refined apart, then blocks of both in one stream; fewer heads for keys and values.

https://arxiv.org/abs/2503.21758; what no tensor shows: the defaults of the class in diffusers, and transformer/config.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
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
    pixels,
    rounded_up,
    setting,
    sized,
)
from qtransformers.archs.diffusion.parts import embedder, gated, head_norms, joined_attention, linear, norm
from qtransformers.archs.diffusion.shapes import Shapes
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks
from qtransformers.archs.spec import Problem, TensorSpec

NORM = "layers.{i}.attn.norm_q"
CONDITION = 1024  # widest condition of a block


def _sizes(c: Mapping[str, Any]) -> dict[str, int]:
    dim = c["hidden_size"]
    inner = 4 * dim if c["ffn_dim_multiplier"] is None else int(c["ffn_dim_multiplier"] * 4 * dim)
    head_dim = dim // c["num_attention_heads"]
    return {
        "dim": dim, "condition": min(dim, CONDITION), "ff": rounded_up(inner, c["multiple_of"]), "head_dim": head_dim,
        "kv": head_dim * c["num_kv_heads"], "patch": pixels(c, "in_channels"), "pixels": pixels(c),
    }  # fmt: skip


def _kv_heads(s: Shapes) -> int | None:
    """Heads of keys; the original layout has them in one tensor with queries and values."""
    dim, joined = s.size("x_embedder", 0), s.whole("layers.{i}.attn.to_k")
    if dim is None or joined is None:
        return None
    return over(joined if s.layout == "diffusers" else (joined - dim) // 2, s.size(NORM, 0))


def _check(c: Mapping[str, Any]) -> Iterator[Problem]:
    head_dim = c["hidden_size"] // c["num_attention_heads"]
    yield from heads({**c, "head_dim": head_dim}, c["hidden_size"], head_dim="head_dim")
    yield from adds_up(c, "axes_dim_rope", head_dim)
    yield from as_many(c, "axes_lens", len(c["axes_dim_rope"]), "as axes_dim_rope has")
    if c["num_attention_heads"] % c["num_kv_heads"]:
        yield Problem(f"num_kv_heads is {c['num_kv_heads']}; expected a divisor of num_attention_heads {c['num_attention_heads']}")  # fmt: skip


def _blocks(name: str, count: str, modulated: bool = True) -> Iterator[TensorSpec]:
    block, repeat = f"{name}.{{i}}", {"i": count}
    yield from joined_attention(f"{block}.attn", f"{block}.attention.qkv", f"{block}.attention.out", kv="kv", bias="never", repeat=repeat)  # fmt: skip
    yield from head_norms(f"{block}.attn", "head_dim", f"{block}.attention.", repeat=repeat)
    yield from gated(
        f"{block}.feed_forward", ("linear_1", "linear_2", "linear_3"), f"{block}.feed_forward", repeat=repeat
    )
    if modulated:
        yield linear(f"{block}.norm1.linear", "4*dim", "condition", f"{block}.adaLN_modulation.1", role="modulation", repeat=repeat)  # fmt: skip
    yield norm(f"{block}.norm1" + ".norm" * modulated, "dim", f"{block}.attention_norm1", repeat=repeat)
    yield norm(f"{block}.norm2", "dim", f"{block}.attention_norm2", repeat=repeat)
    for key in ("ffn_norm1", "ffn_norm2"):
        yield norm(f"{block}.{key}", "dim", f"{block}.{key}", repeat=repeat)


TENSORS = (
    linear("x_embedder", "dim", "patch", "x_embedder", role="embed_in"),
    *embedder("time_caption_embed.timestep_embedder", "256", "condition", "t_embedder.mlp"),
    norm("time_caption_embed.caption_embedder.0", "cap_feat_dim", "cap_embedder.0"),
    linear("time_caption_embed.caption_embedder.1", "dim", "cap_feat_dim", "cap_embedder.1", role="embed_in"),
    *_blocks("noise_refiner", "num_refiner_layers"),
    *_blocks("context_refiner", "num_refiner_layers", modulated=False),
    *_blocks("layers", "num_layers"),
    linear("norm_out.linear_1", "dim", "condition", "final_layer.adaLN_modulation.1", role="modulation"),
    linear("norm_out.linear_2", "pixels", "dim", "final_layer.linear", role="output"),
)  # fmt: skip


def _folds(name: str, count: str, norm1: str = "norm1.norm") -> Iterator[Folding]:
    block, repeat = f"{name}.{{i}}", {"i": count}
    yield normed(f"{block}.{norm1}", (f"{block}.attn.to_{n}" for n in "qkv"), repeat)
    yield normed(f"{block}.ffn_norm1", (f"{block}.feed_forward.linear_{n}" for n in "13"), repeat)
    yield replace(values(block, ("attn.to_v",), ("attn.to_out.0[0:dim]",), repeat, "kv"), head="head_dim")
    yield linear_half(f"{block}.feed_forward.linear_3", f"{block}.feed_forward.linear_2", repeat)


FOLDS = (
    *_folds("noise_refiner", "num_refiner_layers"),
    *_folds("context_refiner", "num_refiner_layers", "norm1"),
    *_folds("layers", "num_layers"),
)

SPEC = DiffusionSpec(
    id="lumina2",
    title="Lumina-Image 2.0",
    class_name="Lumina2Transformer2DModel",
    hparams=(
        setting("sample_size", 128),
        setting("patch_size", 2, maximum=64),
        setting("in_channels", derive=lambda s: over(s.size("x_embedder", 1), 4)),
        setting("out_channels", derive=lambda s: over(s.size("norm_out.linear_2", 0), 4)),
        sized("hidden_size", "x_embedder", 0),
        counted("num_layers", "layers.{i}.attn.to_out.0"),
        counted("num_refiner_layers", "noise_refiner.{i}.attn.to_out.0"),
        head_count("num_attention_heads", "x_embedder", NORM),
        setting("num_kv_heads", derive=_kv_heads),
        setting("multiple_of", 256),
        setting("ffn_dim_multiplier", kind=float, nullable=True, minimum=0.01, maximum=64),
        setting("norm_eps", 1e-5, kind=float, minimum=0, maximum=1),
        setting("scaling_factor", 1.0, kind=float, minimum=0),
        axes("axes_dim_rope", 32, 32, 32, size=lambda c: c["hidden_size"] // c["num_attention_heads"]),
        setting("axes_lens", (300, 512, 512), kind=tuple, maximum=2**16),
        sized("cap_feat_dim", "time_caption_embed.caption_embedder.0", 0),
    ),
    sizes=_sizes,
    check=_check,
    tensors=TENSORS,
    folds=FOLDS,
    unfolded={"modulation": SCALES_ALONE},
    marks={
        "original": (Marks(("cap_embedder.1.weight", "context_refiner.0.attention.qkv.weight"), none=("x_pad_token", "cap_pad_token")),),
        "diffusers": (Marks(("time_caption_embed.caption_embedder.1.weight", "context_refiner.0.attn.to_q.weight")),),
    },
    unused=(r"norm_final\.weight",),
    pipelines=("Lumina2Pipeline",),
    paper="https://arxiv.org/abs/2503.21758",
)  # fmt: skip
