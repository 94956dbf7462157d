"""Stable Diffusion 1, 2 and XL: UNets of convolutions, with attention to the text between them.

https://arxiv.org/abs/2112.10752, https://arxiv.org/abs/2307.01952. Which blocks there are is in the names; in the original
layout those of the way down, and up, are numbered through. No tensor shows how many heads there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from qtransformers.archs.diffusion.folds import Folding, Kind, linear_half, normed, values
from qtransformers.archs.diffusion.hparams import as_many, setting, sized
from qtransformers.archs.diffusion.parts import conv, embedder, linear, norm
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks
from qtransformers.archs.spec import HParam, Problem, TensorSpec

DOWN = {True: "CrossAttnDownBlock2D", False: "DownBlock2D"}
UP = {True: "CrossAttnUpBlock2D", False: "UpBlock2D"}
# Parts of a residual block, and their names in the original layout
RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
MOST_BLOCKS = 16


def _layers(s: Any) -> int:
    """Residual blocks of a block; in the original layout the first convolution that halves comes after them."""
    if s.layout == "diffusers":
        return int(s.count("down_blocks.0.resnets.{i}.conv1.weight"))
    halving = s.layers("input_blocks.{i}.0.op.weight")
    return int(halving[0] - 1) if halving else 0


def _blocks(s: Any) -> int:
    if s.layout == "diffusers":
        return int(s.count("down_blocks.{i}.resnets.0.conv1.weight"))
    return len(s.layers("input_blocks.{i}.0.op.weight")) + 1


def _start(s: Any, block: int) -> tuple[str, str]:
    """What the names of the first residual block on the way down, and of the first attention, begin with."""
    if s.layout == "diffusers":
        return f"down_blocks.{block}.resnets.0.conv1", f"down_blocks.{block}.attentions.0"
    n = 1 + block * (_layers(s) + 1)
    return f"input_blocks.{n}.0.in_layers.2", f"input_blocks.{n}.1"


def _of_blocks(read: Callable[[Any, int], Any]) -> Callable[[Any], tuple[Any, ...] | None]:
    """What is so of each block on the way down; None where it is not of all."""

    def derive(s: Any) -> tuple[Any, ...] | None:
        found = tuple(read(s, i) for i in range(min(_blocks(s), MOST_BLOCKS)))
        return found if found and None not in found else None

    return derive


def _attends(s: Any, block: int) -> bool:
    return bool(s.has(f"{_start(s, block)[1]}.proj_in.weight"))


def _depth(s: Any, block: int) -> int:
    """Transformer blocks in an attention; one is said where there is none."""
    return s.count(f"{_start(s, block)[1]}.transformer_blocks.{{i}}.attn1.to_q.weight") or 1


def _types(kinds: Mapping[bool, str], up: bool) -> Callable[[Any], tuple[str, ...] | None]:
    read = _of_blocks(lambda s, i: kinds[_attends(s, i)])
    return lambda s: tuple(reversed(read(s) or ())) if up else read(s)


def _mid(layout: str) -> str:
    return "mid_block.attentions.0" if layout == "diffusers" else "middle_block.1"


def _first(name: str, original: str, axis: int) -> Callable[[Any], int | None]:
    return lambda s: s.size(f"{name if s.layout == 'diffusers' else original}.weight", axis)


def _flat(s: Any) -> bool | None:
    shape = s.shape(f"{_mid(s.layout)}.proj_in.weight")
    return None if shape is None else len(shape) == 2


ADDED = _first("add_embedding.linear_1", "label_emb.0.0", 1)


def _hparams(sample_size: int, hint: str) -> tuple[HParam, ...]:
    return (
        setting("sample_size", sample_size),
        setting("in_channels", derive=_first("conv_in", "input_blocks.0.0", 1)),
        setting("out_channels", derive=_first("conv_out", "out.2", 0)),
        setting("block_out_channels", kind=tuple, derive=_of_blocks(lambda s, i: s.size(f"{_start(s, i)[0]}.weight", 0))),
        setting("down_block_types", kind=tuple, minimum=None, derive=_types(DOWN, False)),
        setting("mid_block_type", "UNetMidBlock2DCrossAttn", kind=str, choices=("UNetMidBlock2DCrossAttn",)),
        setting("up_block_types", kind=tuple, minimum=None, derive=_types(UP, True)),
        setting("layers_per_block", derive=lambda s: _layers(s) or None, maximum=64),
        setting("cross_attention_dim", derive=lambda s: s.size(f"{_mid(s.layout)}.transformer_blocks.0.attn2.to_k.weight", 1)),
        setting("transformer_layers_per_block", kind=tuple, derive=_of_blocks(_depth), maximum=256, alike="block_out_channels"),
        setting("attention_head_dim", kind=tuple, required=True, hint=hint, alike="block_out_channels"),
        setting("use_linear_projection", kind=bool, derive=_flat),
        sized("time_cond_proj_dim", "time_embedding.cond_proj.weight", 1, nullable=True),
        setting("addition_embed_type", kind=str, nullable=True, derive=lambda s: "text_time" if ADDED(s) else None, choices=("text_time",)),
        setting("projection_class_embeddings_input_dim", nullable=True, derive=ADDED),
        setting("addition_time_embed_dim", lambda c: 256 if c.get("addition_embed_type") else None, nullable=True),
    )  # fmt: skip


def _check(c: Mapping[str, Any]) -> Iterator[Problem]:
    channels, n = c["block_out_channels"], len(c["block_out_channels"])
    per_block = ("down_block_types", "up_block_types", "transformer_layers_per_block", "attention_head_dim")
    for name in per_block:
        yield from as_many(c, name, n, "one for each of block_out_channels")
    if not all(name in names for key, names in (("down_block_types", DOWN.values()), ("up_block_types", UP.values())) for name in c[key]):  # fmt: skip
        yield Problem(f"down_block_types are {list(c['down_block_types'])}, up_block_types {list(c['up_block_types'])}; expected {', '.join((*DOWN.values(), *UP.values()))}", "unsupported")  # fmt: skip
    if len(c["attention_head_dim"]) == n and any(channels[i] % c["attention_head_dim"][i] for i in range(n)):
        yield Problem(f"attention_head_dim {list(c['attention_head_dim'])}, which is how many heads there are, does not divide block_out_channels {list(channels)}")  # fmt: skip


def _resnet(ours: str, theirs: str, width: int, out: int, time: int) -> Iterator[TensorSpec]:
    key = {name: f"{theirs}.{own}" for name, own in RESNET.items()}
    yield norm(f"{ours}.norm1", str(width), key["norm1"], bias="required")
    yield conv(f"{ours}.conv1", str(out), str(width), (3, 3), key["conv1"])
    yield linear(f"{ours}.time_emb_proj", str(out), str(time), key["time_emb_proj"], role="modulation")
    yield norm(f"{ours}.norm2", str(out), key["norm2"], bias="required")
    yield conv(f"{ours}.conv2", str(out), str(out), (3, 3), key["conv2"])
    if width != out:
        yield conv(f"{ours}.conv_shortcut", str(out), str(width), (1, 1), key["conv_shortcut"])


def _attention(ours: str, theirs: str, width: int, depth: int, c: Mapping[str, Any]) -> Iterator[TensorSpec]:
    def project(name: str) -> TensorSpec:
        dim = str(width)
        if c["use_linear_projection"]:
            return linear(f"{ours}.{name}", dim, dim, f"{theirs}.{name}")
        return conv(f"{ours}.{name}", dim, dim, (1, 1), f"{theirs}.{name}")

    yield norm(f"{ours}.norm", str(width), f"{theirs}.norm", bias="required")
    yield project("proj_in")
    for i in range(depth):
        yield from _transformer(f"{ours}.transformer_blocks.{i}", f"{theirs}.transformer_blocks.{i}", str(width))
    yield project("proj_out")


def _transformer(ours: str, theirs: str, dim: str) -> Iterator[TensorSpec]:
    for n, columns in ((1, dim), (2, "cross_attention_dim")):
        yield norm(f"{ours}.norm{n}", dim, f"{theirs}.norm{n}", bias="required")
        for name, width in (("to_q", dim), ("to_k", columns), ("to_v", columns)):
            yield linear(f"{ours}.attn{n}.{name}", dim, width, f"{theirs}.attn{n}.{name}", bias="never", role="attn")
        yield linear(f"{ours}.attn{n}.to_out.0", dim, dim, f"{theirs}.attn{n}.to_out.0", role="attn")
    yield norm(f"{ours}.norm3", dim, f"{theirs}.norm3", bias="required")
    yield linear(f"{ours}.ff.net.0.proj", f"8*{dim}", dim, f"{theirs}.ff.net.0.proj", role="dense_ffn")
    yield linear(f"{ours}.ff.net.2", dim, f"4*{dim}", f"{theirs}.ff.net.2", role="dense_ffn")


def _sampler(ours: str, theirs: str, width: int) -> TensorSpec:
    return conv(ours, str(width), str(width), (3, 3), theirs)


def tensors(c: Mapping[str, Any]) -> Iterator[TensorSpec]:
    """The rows of a UNet, from the way in to the way out."""
    channels, layers, depths = c["block_out_channels"], c["layers_per_block"], c["transformer_layers_per_block"]
    n, first = len(channels), channels[0]
    time = 4 * first
    yield conv("conv_in", str(first), "in_channels", (3, 3), "input_blocks.0.0")
    yield from embedder("time_embedding", str(first), str(time), "time_embed")
    if c["time_cond_proj_dim"] is not None:
        yield linear("time_embedding.cond_proj", str(first), "time_cond_proj_dim", bias="never", role="modulation")
    if c["addition_embed_type"] is not None:
        yield from embedder("add_embedding", "projection_class_embeddings_input_dim", str(time), "label_emb.0")
    width, passed = first, [first]  # of what goes to the next block, and of what the way up takes again
    for b, out in enumerate(channels):
        for j in range(layers):
            place = 1 + b * (layers + 1) + j
            yield from _resnet(f"down_blocks.{b}.resnets.{j}", f"input_blocks.{place}.0", width, out, time)
            if c["down_block_types"][b] == DOWN[True]:
                yield from _attention(f"down_blocks.{b}.attentions.{j}", f"input_blocks.{place}.1", out, depths[b], c)
            width = out
            passed.append(out)
        if b < n - 1:
            yield _sampler(f"down_blocks.{b}.downsamplers.0.conv", f"input_blocks.{(b + 1) * (layers + 1)}.0.op", out)
            passed.append(out)
    for j in (0, 1):
        yield from _resnet(f"mid_block.resnets.{j}", f"middle_block.{2 * j}", width, width, time)
    yield from _attention("mid_block.attentions.0", "middle_block.1", width, depths[-1], c)
    for b, out in enumerate(reversed(channels)):
        attends = c["up_block_types"][b] == UP[True]
        for j in range(layers + 1):
            place = f"output_blocks.{b * (layers + 1) + j}"
            yield from _resnet(f"up_blocks.{b}.resnets.{j}", f"{place}.0", width + passed.pop(), out, time)
            if attends:
                yield from _attention(f"up_blocks.{b}.attentions.{j}", f"{place}.1", out, depths[n - 1 - b], c)
            width = out
        if b < n - 1:
            yield _sampler(f"up_blocks.{b}.upsamplers.0.conv", f"{place}.{1 + attends}.conv", out)
    yield norm("conv_norm_out", str(first), "out.0", bias="required")
    yield conv("conv_out", "out_channels", str(first), (3, 3), "out.2")


def folds(c: Mapping[str, Any]) -> Iterator[Folding]:
    """Of each transformer block; the norm before a matrix that brings inputs in takes scales up too."""
    for row in tensors(c):
        block, _, last = row.name.rpartition(".")
        dim = row.shape[0]
        if last == "proj_in" and row.role != "conv":
            yield normed(f"{block}.norm", (row.name,), n=dim)
        elif last == "norm3":
            yield normed(f"{block}.norm1", (f"{block}.attn1.{name}" for name in ("to_q", "to_k", "to_v")), n=dim)
            yield normed(f"{block}.norm2", (f"{block}.attn2.to_q",), n=dim)
            yield normed(row.name, (f"{block}.ff.net.0.proj",), n=dim)
            yield from (values(f"{block}.attn{n}", ("to_v",), ("to_out.0",), {}, dim) for n in (1, 2))
            yield linear_half(f"{block}.ff.net.0.proj[0:4*{dim}]", f"{block}.ff.net.2", {}, f"4*{dim}")


UNFOLDED: Mapping[Kind, str] = {"modulation": "the time is added, and scales nothing"}


def _variant(cross: int, heads: tuple[int, ...], *channels: int) -> dict[str, Any]:
    return {"cross_attention_dim": cross, "block_out_channels": channels, "attention_head_dim": heads}


UNUSED = (r"model_ema\..*",)
SD1 = DiffusionSpec(
    id="sd1",
    title="Stable Diffusion 1 and 2",
    aliases=("sd2",),
    class_name="UNet2DConditionModel",
    hparams=_hparams(64, "8 in Stable Diffusion 1, [5, 10, 20, 20] in 2"),
    check=_check,
    tensors=tensors,
    folds=folds,
    unfolded=UNFOLDED,
    marks={
        "original": (Marks(("input_blocks.0.0.weight", "time_embed.0.weight", "middle_block.1.proj_in.weight", "out.2.weight"), none=("label_emb.0.0.weight", "label_emb.weight")),),
        "diffusers": (Marks(("conv_in.weight", "down_blocks.0.downsamplers.0.conv.weight", "mid_block.attentions.0.proj_in.weight", "time_embedding.linear_1.weight"), none=("add_embedding.linear_1.weight", "class_embedding.weight", "down_blocks.0.motion_modules.0.norm.weight")),),
    },
    unused=UNUSED,
    variants={
        "Stable Diffusion 1": _variant(768, (8, 8, 8, 8), 320, 640, 1280, 1280),
        "Stable Diffusion 2": _variant(1024, (5, 10, 20, 20), 320, 640, 1280, 1280),
    },
    pipelines=("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
    packs_convs=True,
    paper="https://arxiv.org/abs/2112.10752",
)  # fmt: skip
SDXL = DiffusionSpec(
    id="sdxl",
    title="Stable Diffusion XL",
    class_name="UNet2DConditionModel",
    hparams=_hparams(128, "[5, 10, 20] in the base model, [6, 12, 24, 24] in the refiner"),
    check=_check,
    tensors=tensors,
    folds=folds,
    unfolded=UNFOLDED,
    marks={
        "original": (Marks(("input_blocks.0.0.weight", "label_emb.0.0.weight", "middle_block.1.proj_in.weight", "out.2.weight")),),
        "diffusers": (Marks(("conv_in.weight", "down_blocks.0.downsamplers.0.conv.weight", "mid_block.attentions.0.proj_in.weight", "add_embedding.linear_1.weight")),),
    },
    unused=UNUSED,
    variants={
        "Stable Diffusion XL": _variant(2048, (5, 10, 20), 320, 640, 1280),
        "Stable Diffusion XL refiner": _variant(1280, (6, 12, 24, 24), 384, 768, 1536, 1536),
    },
    pipelines=("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
    packs_convs=True,
    paper="https://arxiv.org/abs/2307.01952",
)  # fmt: skip
