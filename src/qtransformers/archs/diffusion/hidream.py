"""HiDream-I1: joint and single blocks whose feed-forward layers are experts; each block takes a layer of Llama's states.

https://arxiv.org/abs/2505.22705; published in the layout of diffusers. Queries and keys are normed across all heads, so no
tensor shows how many there are. Heads and experts are the defaults of the class; axes and layers of Llama those of the script that
converted the published model (its config.json).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from qtransformers.archs.diffusion.folds import NO_WEIGHTS, Folding, linear_half, modulated, values
from qtransformers.archs.diffusion.hparams import (
    adds_up,
    as_many,
    counted,
    dim,
    over,
    pixels,
    rounded_up,
    setting,
    sized,
)
from qtransformers.archs.diffusion.parts import attention, embedder, gated, head_norms, linear
from qtransformers.archs.diffusion.shapes import Shapes
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks
from qtransformers.archs.spec import Problem, TensorSpec

DOUBLE = {"i": "num_layers"}
SINGLE = {"i": "num_single_layers"}
MULTIPLE = 256  # of the inner width of feed-forward layers


def _sizes(c: Mapping[str, Any]) -> dict[str, int]:
    return {
        "dim": dim(c),
        "ff": rounded_up(int(8 * dim(c) / 3), MULTIPLE),
        "shared": rounded_up(int(4 * dim(c) / 3), MULTIPLE),
        "patch": pixels(c, "in_channels"),
        "pixels": pixels(c),
        "captions": c["num_layers"] + c["num_single_layers"],
        "caption_last": c["caption_channels"][0],
        "caption_first": c["caption_channels"][1],
    }


def _captions(s: Shapes) -> tuple[int, ...] | None:
    """Widths of the states of T5, which has the last projection, and of Llama."""
    last = s.count("caption_projection.{i}.linear.weight") - 1
    t5, llama = s.size(f"caption_projection.{last}.linear.weight", 1), s.size("caption_projection.0.linear.weight", 1)
    return None if t5 is None or llama is None else (t5, llama)


def _check(c: Mapping[str, Any]) -> Iterator[Problem]:
    yield from adds_up(c, "axes_dims_rope", c["attention_head_dim"])
    yield from as_many(c, "llama_layers", c["num_layers"] + c["num_single_layers"], "one for each block")
    yield from as_many(c, "caption_channels", 2, "widths of the states of T5 and of Llama")
    yield from as_many(c, "max_resolution", 2, "height and width")
    if c["num_activated_experts"] > c["num_routed_experts"]:
        yield Problem(f"num_activated_experts is {c['num_activated_experts']}; expected at most num_routed_experts {c['num_routed_experts']}")  # fmt: skip


def _attention(block: str, stream: str, repeat: Mapping[str, str]) -> Iterator[TensorSpec]:
    yield from attention(f"{block}.attn1", names=tuple(f"to_{name}{stream}" for name in ("q", "k", "v", "out")), repeat=repeat)  # fmt: skip
    yield from head_norms(f"{block}.attn1", "dim", names=(f"q_rms_norm{stream}", f"k_rms_norm{stream}"), repeat=repeat)


def _experts(block: str, repeat: Mapping[str, str]) -> Iterator[TensorSpec]:
    yield linear(f"{block}.ff_i.gate", "num_routed_experts", "dim", bias="never", role="router", repeat=repeat)
    yield from gated(f"{block}.ff_i.shared_experts", MLP, hidden="shared", repeat=repeat)
    yield from gated(f"{block}.ff_i.experts.{{e}}", MLP, repeat={**repeat, "e": "num_routed_experts"})


MLP = ("w1", "w2", "w3")  # gate, down, up
TWO, ONE = "double_stream_blocks.{i}.block", "single_stream_blocks.{i}.block"
TENSORS = (
    linear("x_embedder.proj", "dim", "patch", role="embed_in"),
    *embedder("t_embedder.timestep_embedder", "256", "dim"),
    *embedder("p_embedder.pooled_embedder", "text_emb_dim", "dim"),
    linear("caption_projection.{i}.linear", "dim", "caption_first", bias="never", role="embed_in", repeat={"i": "captions"}),
    linear("caption_projection.{n}.linear", "dim", "caption_last", bias="never", role="embed_in", repeat={"n": "captions+1"}, when=lambda c, n: n == c["num_layers"] + c["num_single_layers"]),
    linear(f"{TWO}.adaLN_modulation.1", "12*dim", "dim", role="modulation", repeat=DOUBLE),
    *_attention(TWO, "", DOUBLE),
    *_attention(TWO, "_t", DOUBLE),
    *_experts(TWO, DOUBLE),
    *gated(f"{TWO}.ff_t", MLP, repeat=DOUBLE),
    linear(f"{ONE}.adaLN_modulation.1", "6*dim", "dim", role="modulation", repeat=SINGLE),
    *_attention(ONE, "", SINGLE),
    *_experts(ONE, SINGLE),
    linear("final_layer.adaLN_modulation.1", "2*dim", "dim", role="modulation"),
    linear("final_layer.linear", "pixels", "dim", role="output"),
)  # fmt: skip


def _folds(block: str, repeat: Mapping[str, str]) -> Iterator[Folding]:
    experts = {"e": "num_routed_experts"}
    ff = (f"{block}.ff_i.gate", *(f"{block}.ff_i.{which}.{w}" for which in ("shared_experts", "experts.{e}") for w in ("w1", "w3")))  # fmt: skip
    yield modulated(f"{block}.adaLN_modulation.1", 1, 0, (f"{block}.attn1.{name}" for name in ("to_q", "to_k", "to_v")), repeat)  # fmt: skip
    yield replace(modulated(f"{block}.adaLN_modulation.1", 4, 3, ff, repeat), each=experts)
    yield linear_half(f"{block}.ff_i.shared_experts.w3", f"{block}.ff_i.shared_experts.w2", repeat, "shared")
    yield linear_half(f"{block}.ff_i.experts.{{e}}.w3", f"{block}.ff_i.experts.{{e}}.w2", {**repeat, **experts})


FOLDS = (
    *_folds(TWO, DOUBLE),
    modulated(
        f"{TWO}.adaLN_modulation.1", 7, 6, (f"{TWO}.attn1.{name}" for name in ("to_q_t", "to_k_t", "to_v_t")), DOUBLE
    ),
    modulated(f"{TWO}.adaLN_modulation.1", 10, 9, (f"{TWO}.ff_t.w1", f"{TWO}.ff_t.w3"), DOUBLE),
    values(TWO, ("attn1.to_v", "attn1.to_v_t"), ("attn1.to_out", "attn1.to_out_t"), DOUBLE),
    linear_half(f"{TWO}.ff_t.w3", f"{TWO}.ff_t.w2", DOUBLE),
    *_folds(ONE, SINGLE),
    values(ONE, ("attn1.to_v",), ("attn1.to_out",), SINGLE),
)

SPEC = DiffusionSpec(
    id="hidream",
    title="HiDream",
    class_name="HiDreamImageTransformer2DModel",
    hparams=(
        setting("patch_size", 2, maximum=64),
        setting("in_channels", derive=lambda s: over(s.size("x_embedder.proj", 1), 4)),
        setting("out_channels", derive=lambda s: over(s.size("final_layer.linear", 0), 4)),
        counted("num_layers", f"{TWO}.attn1.to_q"),
        counted("num_single_layers", f"{ONE}.attn1.to_q"),
        setting("num_attention_heads", required=True, hint="20 in HiDream-I1"),
        setting("attention_head_dim", required=True, hint="128 in HiDream-I1"),
        setting("caption_channels", kind=tuple, derive=_captions),
        sized("text_emb_dim", "p_embedder.pooled_embedder.linear_1", 1),
        counted("num_routed_experts", "double_stream_blocks.0.block.ff_i.experts.{i}.w1.weight"),
        setting("num_activated_experts", required=True, hint="2 in HiDream-I1"),
        setting("axes_dims_rope", required=True, kind=tuple, maximum=2**12, hint="[64, 32, 32] in HiDream-I1"),
        setting("max_resolution", (128, 128), kind=tuple, maximum=2**12),
        setting("llama_layers", required=True, kind=tuple, minimum=0, maximum=1024, hint="of Llama's states, one for each block"),
        setting("force_inference_output", False, kind=bool),
    ),
    sizes=_sizes,
    check=_check,
    tensors=TENSORS,
    folds=FOLDS,
    unfolded={"norm": NO_WEIGHTS},
    marks={"diffusers": (Marks(("double_stream_blocks.0.block.ff_i.shared_experts.w3.weight", "caption_projection.0.linear.weight")),)},
    variants={
        "HiDream-I1 and E1": {
            "num_layers": 16, "num_single_layers": 32, "num_routed_experts": 4, "caption_channels": (4096, 4096), "text_emb_dim": 2048,
            "num_attention_heads": 20, "attention_head_dim": 128, "num_activated_experts": 2, "axes_dims_rope": (64, 32, 32),
            "llama_layers": (*range(32), *[31] * 16),
        },
    },
    pipelines=("HiDreamImagePipeline",),
    paper="https://arxiv.org/abs/2505.22705",
)  # fmt: skip
