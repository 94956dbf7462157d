"""Cosmos (predict, 1.0 and 2): worlds from text and images, every norm modulated by a narrow pair of matrices; hardly a bias.

https://arxiv.org/abs/2501.03575; the two versions name the same tensors otherwise, of which the second's names count here.
Variants: TRANSFORMER_CONFIGS in scripts/convert_cosmos_to_diffusers.py of diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from qtransformers.archs.diffusion.folds import NO_BIAS, NO_WEIGHTS, NOT_LINEAR, values
from qtransformers.archs.diffusion.hparams import as_many, counted, dim, head_count, over, ratio, setting, sized, times
from qtransformers.archs.diffusion.parts import attention, feed_forward, head_norms, linear, norm, parameter
from qtransformers.archs.diffusion.shapes import Shapes
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks
from qtransformers.archs.spec import Problem, TensorSpec

BLOCK = {"i": "num_layers"}
FIRST = "transformer_blocks.{i}"
POSITION = "learnable_pos_embed.pos_emb"
PATCH = (1, 2, 2)  # in every published model; a patch and its channels cannot be told apart in a matrix


def _channels(s: Shapes) -> int | None:
    """Channels of the input: columns of the first layer over the pixels of a patch, of which one is the padding mask."""
    all = over(s.size("patch_embed.proj", 1), 4)
    return None if all is None else all - 1


def _largest(s: Shapes) -> tuple[int, ...] | None:
    """Frames, rows and columns of the largest video, where positions are learned."""
    sizes = [times(s.size(f"{POSITION}_{axis}", 0), n) for axis, n in zip("thw", PATCH, strict=True)]
    return None if None in sizes else tuple(n for n in sizes if n is not None)


HPARAMS = (
    setting("patch_size", PATCH, kind=tuple),
    setting("in_channels", derive=_channels),
    setting("out_channels", derive=lambda s: over(s.size("proj_out", 0), 4)),
    sized("attention_head_dim", f"{FIRST}.attn1.norm_q", 0),
    head_count("num_attention_heads", "patch_embed.proj", f"{FIRST}.attn1.norm_q"),
    counted("num_layers", f"{FIRST}.attn1.norm_q"),
    setting("mlp_ratio", kind=float, derive=ratio(f"{FIRST}.ff.net.0.proj"), minimum=0, maximum=64),
    sized("text_embed_dim", f"{FIRST}.attn2.to_k", 1),
    sized("adaln_lora_dim", f"{FIRST}.norm1.linear_1", 0),
    setting("max_size", (128, 240, 240), kind=tuple, derive=_largest, maximum=2**16),
    setting("rope_scale", kind=tuple, required=True, minimum=0, hint="[2, 1, 1] in Cosmos 1.0 7B"),
    setting("concat_padding_mask", True, kind=bool),
    setting("extra_pos_embed_type", kind=str, nullable=True, derive=lambda s: "learnable" if s.has(f"{POSITION}_t") else None),
)  # fmt: skip


def _sizes(c: Mapping[str, Any]) -> dict[str, int]:
    frames, rows, columns = (n // p for n, p in zip(c["max_size"], c["patch_size"], strict=True))
    return {
        "dim": dim(c),
        "ff": int(dim(c) * c["mlp_ratio"]),
        "patch": 4 * (c["in_channels"] + c["concat_padding_mask"]),
        "pixels": 4 * c["out_channels"],
        "frames": frames, "rows": rows, "columns": columns,
    }  # fmt: skip


def _check(c: Mapping[str, Any]) -> Iterator[Problem]:
    if tuple(c["patch_size"]) != PATCH or not c["concat_padding_mask"]:
        yield Problem(f"patch_size is {list(c['patch_size'])} and concat_padding_mask {c['concat_padding_mask']}; expected {list(PATCH)} and True", "unsupported")  # fmt: skip
    for name in ("max_size", "rope_scale"):
        yield from as_many(c, name, 3, "of frames, rows and columns")


def _norm(ours: str, theirs: str, rows: str = "3*dim", repeat: Mapping[str, str] = BLOCK) -> Iterator[TensorSpec]:
    for n, shape in ((1, ("adaln_lora_dim", "dim")), (2, (rows, "adaln_lora_dim"))):
        yield linear(f"{ours}.linear_{n}", *shape, f"{theirs}.{n}", bias="never", role="modulation", repeat=repeat)


def _attention(name: str, theirs: str, context: str) -> Iterator[TensorSpec]:
    ours, key = f"{FIRST}.{name}", f"blocks.{{i}}.{theirs}"
    yield from attention(ours, key, ("q_proj", "k_proj", "v_proj", "output_proj"), context=context, bias="never", repeat=BLOCK)  # fmt: skip
    yield from head_norms(ours, "attention_head_dim", f"{key}.", repeat=BLOCK)


def _positions() -> Iterator[TensorSpec]:
    for axis, size in (("t", "frames"), ("h", "rows"), ("w", "columns")):
        yield parameter(f"{POSITION}_{axis}", size, "dim", original=f"extra_pos_embedder.pos_emb_{axis}", when=_learned)


def _learned(c: Mapping[str, Any], layer: int) -> bool:
    return c["extra_pos_embed_type"] == "learnable"


TENSORS = (
    linear("patch_embed.proj", "dim", "patch", "x_embedder.proj.1", bias="never", role="embed_in"),
    *_positions(),
    linear("time_embed.t_embedder.linear_1", "dim", "dim", "t_embedder.1.linear_1", bias="never", role="modulation"),
    linear("time_embed.t_embedder.linear_2", "3*dim", "dim", "t_embedder.1.linear_2", bias="never", role="modulation"),
    norm("time_embed.norm", "dim", "t_embedding_norm"),
    *_norm(f"{FIRST}.norm1", "blocks.{i}.adaln_modulation_self_attn"),
    *_attention("attn1", "self_attn", "dim"),
    *_norm(f"{FIRST}.norm2", "blocks.{i}.adaln_modulation_cross_attn"),
    *_attention("attn2", "cross_attn", "text_embed_dim"),
    *_norm(f"{FIRST}.norm3", "blocks.{i}.adaln_modulation_mlp"),
    *feed_forward(f"{FIRST}.ff", "blocks.{i}.mlp", ("layer1", "layer2"), hidden="ff", bias="never", repeat=BLOCK),
    *_norm("norm_out", "final_layer.adaln_modulation", "2*dim", {}),
    linear("proj_out", "pixels", "dim", "final_layer.linear", bias="never", role="output"),
)  # fmt: skip

PARTS = (("0", "self_attn"), ("1", "cross_attn"), ("2", "mlp"))
FIRST_NAMES = (
    *((rf"^blocks\.block(\d+)\.blocks\.{n}\.adaLN_modulation", rf"blocks.\1.adaln_modulation_{part}") for n, part in PARTS),
    (r"^blocks\.block(\d+)\.blocks\.0\.block\.attn\.", r"blocks.\1.self_attn."),
    (r"^blocks\.block(\d+)\.blocks\.1\.block\.attn\.", r"blocks.\1.cross_attn."),
    (r"^blocks\.block(\d+)\.blocks\.2\.block\.", r"blocks.\1.mlp."),
    (r"\.to_([qkv])\.0\.", r".\1_proj."),
    (r"\.to_([qk])\.1\.", r".\1_norm."),
    (r"(_attn)\.to_out\.0\.", r"\1.output_proj."),
    (r"^affline_norm\.", "t_embedding_norm."),
    (r"^final_layer\.adaLN_modulation\.", "final_layer.adaln_modulation."),
)  # fmt: skip


def _variant(layers: int, channels: int, learned: bool, heads: int, *scale: float) -> dict[str, Any]:
    return {
        "num_layers": layers, "in_channels": channels, "num_attention_heads": heads,
        "extra_pos_embed_type": "learnable" if learned else None, "rope_scale": scale,
    }  # fmt: skip


SPEC = DiffusionSpec(
    id="cosmos",
    title="Cosmos",
    class_name="CosmosTransformer3DModel",
    hparams=HPARAMS,
    sizes=_sizes,
    check=_check,
    tensors=TENSORS,
    folds=tuple(values(f"{FIRST}.attn{n}", ("to_v",), ("to_out.0",), BLOCK) for n in (1, 2)),
    unfolded={"modulation": NO_BIAS, "norm": NO_WEIGHTS, "gated": NOT_LINEAR},
    marks={
        "original": (Marks(("blocks.0.mlp.layer1.weight", "blocks.0.adaln_modulation_cross_attn.1.weight", "x_embedder.proj.1.weight"), none=("crossattn_proj.0.weight",)),),
        "diffusers": (Marks(("patch_embed.proj.weight", "time_embed.t_embedder.linear_1.weight", "transformer_blocks.0.norm1.linear_1.weight"), none=("crossattn_proj.0.weight", "img_context_proj.0.weight")),),
    },
    original_names=FIRST_NAMES,
    unused=(r"logvar\..*", r"accum_.*", r"pos_embedder\..*", r".*_extra_state"),
    variants={
        "Cosmos 1.0 7B": _variant(28, 16, True, 32, 2.0, 1.0, 1.0),
        "Cosmos 1.0 7B video to world": _variant(28, 17, True, 32, 2.0, 1.0, 1.0),
        "Cosmos 1.0 14B": _variant(36, 16, True, 40, 2.0, 2.0, 2.0),
        "Cosmos 1.0 14B video to world": _variant(36, 17, True, 40, 2.0, 2.0, 2.0),
        "Cosmos Predict2 2B text to image": _variant(28, 16, False, 16, 1.0, 4.0, 4.0),
        "Cosmos Predict2 14B text to image": _variant(36, 16, False, 40, 1.0, 4.0, 4.0),
        "Cosmos Predict2 2B video to world": _variant(28, 17, False, 16, 1.0, 3.0, 3.0),
        "Cosmos Predict2 14B video to world": _variant(36, 17, False, 40, 20 / 24, 2.0, 2.0),
    },
    pipelines=("CosmosTextToWorldPipeline", "CosmosVideoToWorldPipeline", "Cosmos2TextToImagePipeline", "Cosmos2VideoToWorldPipeline"),
    paper="https://arxiv.org/abs/2501.03575",
)  # fmt: skip
