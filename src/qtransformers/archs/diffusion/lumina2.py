"""Lumina-Image 2.0: text and image refined apart, then blocks of both in one stream; fewer heads for keys and values.

https://arxiv.org/abs/2503.21758
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qtransformers.archs.diffusion.parts import adds_up, axes, heads, linear, norm, over, setting, split
from qtransformers.archs.diffusion.shapes import Shapes
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks
from qtransformers.archs.spec import Problem, TensorSpec

CONDITION = 1024  # widest condition of a block


def _sizes(c: Mapping[str, Any]) -> dict[str, int]:
    dim, multiple = c["hidden_size"], c["multiple_of"]
    inner = 4 * dim if c["ffn_dim_multiplier"] is None else int(c["ffn_dim_multiplier"] * 4 * dim)
    head_dim = dim // c["num_attention_heads"]
    area = c["patch_size"] ** 2
    return {
        "dim": dim, "condition": min(dim, CONDITION), "ff": -(-inner // multiple) * multiple, "head_dim": head_dim,
        "kv": head_dim * c["num_kv_heads"], "patch": area * c["in_channels"], "pixels": area * c["out_channels"],
    }  # fmt: skip


def _head_dim(s: Shapes) -> int | None:
    return s.size("layers.{i}.attn.norm_q", 0)


def _kv_heads(s: Shapes) -> int | None:
    """Heads of keys; the original layout has them in one tensor with queries and values."""
    dim, joined = s.size("x_embedder", 0), s.whole("layers.{i}.attn.to_k")
    if dim is None or joined is None:
        return None
    return over(joined if s.layout == "diffusers" else (joined - dim) // 2, _head_dim(s))


def _check(c: Mapping[str, Any]) -> Iterator[Problem]:
    head_dim = c["hidden_size"] // c["num_attention_heads"]
    yield from heads({**c, "head_dim": head_dim}, c["hidden_size"], head_dim="head_dim")
    yield from adds_up(c, "axes_dim_rope", head_dim)
    if len(c["axes_lens"]) != len(c["axes_dim_rope"]):
        yield Problem(f"axes_lens has {len(c['axes_lens'])} numbers; expected as many as axes_dim_rope, {len(c['axes_dim_rope'])}")  # fmt: skip
    if c["num_attention_heads"] % c["num_kv_heads"]:
        yield Problem(f"num_kv_heads is {c['num_kv_heads']}; expected a divisor of num_attention_heads {c['num_attention_heads']}")  # fmt: skip


def _blocks(name: str, count: str, modulated: bool = True) -> Iterator[TensorSpec]:
    block, repeat = f"{name}.{{i}}", {"i": count}
    qkv = {f"{block}.attn.to_q": "dim", f"{block}.attn.to_k": "kv", f"{block}.attn.to_v": "kv"}
    yield from split(f"{block}.attention.qkv", "dim", qkv, bias="never", repeat=repeat)
    yield linear(f"{block}.attn.to_out.0", "dim", "dim", f"{block}.attention.out", bias="never", role="attn", repeat=repeat)  # fmt: skip
    yield norm(f"{block}.attn.norm_q", "head_dim", f"{block}.attention.q_norm", repeat=repeat)
    yield norm(f"{block}.attn.norm_k", "head_dim", f"{block}.attention.k_norm", repeat=repeat)
    for n, out, width in ((1, "ff", "dim"), (2, "dim", "ff"), (3, "ff", "dim")):
        yield linear(f"{block}.feed_forward.linear_{n}", out, width, f"{block}.feed_forward.w{n}", bias="never", role="dense_ffn", repeat=repeat)  # fmt: skip
    if modulated:
        yield linear(f"{block}.norm1.linear", "4*dim", "condition", f"{block}.adaLN_modulation.1", role="modulation", repeat=repeat)  # fmt: skip
    yield norm(f"{block}.norm1" + ".norm" * modulated, "dim", f"{block}.attention_norm1", repeat=repeat)
    yield norm(f"{block}.norm2", "dim", f"{block}.attention_norm2", repeat=repeat)
    for key in ("ffn_norm1", "ffn_norm2"):
        yield norm(f"{block}.{key}", "dim", f"{block}.{key}", repeat=repeat)


TENSORS = (
    linear("x_embedder", "dim", "patch", "x_embedder", role="embed_in"),
    linear("time_caption_embed.timestep_embedder.linear_1", "condition", "256", "t_embedder.mlp.0", role="modulation"),
    linear("time_caption_embed.timestep_embedder.linear_2", "condition", "condition", "t_embedder.mlp.2", role="modulation"),
    norm("time_caption_embed.caption_embedder.0", "cap_feat_dim", "cap_embedder.0"),
    linear("time_caption_embed.caption_embedder.1", "dim", "cap_feat_dim", "cap_embedder.1", role="embed_in"),
    *_blocks("noise_refiner", "num_refiner_layers"),
    *_blocks("context_refiner", "num_refiner_layers", modulated=False),
    *_blocks("layers", "num_layers"),
    linear("norm_out.linear_1", "dim", "condition", "final_layer.adaLN_modulation.1", role="modulation"),
    linear("norm_out.linear_2", "pixels", "dim", "final_layer.linear", role="output"),
)  # fmt: skip

SPEC = DiffusionSpec(
    id="lumina2",
    title="Lumina-Image 2.0",
    class_name="Lumina2Transformer2DModel",
    hparams=(
        setting("sample_size", 128),
        setting("patch_size", 2, maximum=64),
        setting("in_channels", derive=lambda s: over(s.size("x_embedder", 1), 4)),
        setting("out_channels", derive=lambda s: over(s.size("norm_out.linear_2", 0), 4)),
        setting("hidden_size", derive=lambda s: s.size("x_embedder", 0)),
        setting("num_layers", derive=lambda s: s.count("layers.{i}.attn.to_out.0"), maximum=1024),
        setting("num_refiner_layers", derive=lambda s: s.count("noise_refiner.{i}.attn.to_out.0"), maximum=1024),
        setting("num_attention_heads", derive=lambda s: over(s.size("x_embedder", 0), _head_dim(s))),
        setting("num_kv_heads", derive=_kv_heads),
        setting("multiple_of", 256),
        setting("ffn_dim_multiplier", kind=float, nullable=True, minimum=0.01, maximum=64),
        setting("norm_eps", 1e-5, kind=float, minimum=0, maximum=1),
        setting("scaling_factor", 1.0, kind=float, minimum=0),
        axes("axes_dim_rope", 32, 32, 32, size=lambda c: c["hidden_size"] // c["num_attention_heads"]),
        setting("axes_lens", (300, 512, 512), kind=tuple, maximum=2**16),
        setting("cap_feat_dim", derive=lambda s: s.size("time_caption_embed.caption_embedder.0", 0)),
    ),
    sizes=_sizes,
    check=_check,
    tensors=TENSORS,
    marks={
        "original": (Marks(("cap_embedder.1.weight", "context_refiner.0.attention.qkv.weight"), none=("x_pad_token", "cap_pad_token")),),
        "diffusers": (Marks(("time_caption_embed.caption_embedder.1.weight", "context_refiner.0.attn.to_q.weight")),),
    },
    unused=(r"norm_final\.weight",),
    pipelines=("Lumina2Pipeline",),
    paper="https://arxiv.org/abs/2503.21758",
)  # fmt: skip
