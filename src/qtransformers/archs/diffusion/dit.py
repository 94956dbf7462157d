"""DiT: pictures of a class of ImageNet, norms modulated by class and timestep, which every block embeds for itself.

https://arxiv.org/abs/2212.09748; published for its class in diffusers, whose layout is the only one here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtransformers.archs.diffusion.parts import conv, embedder, embedding, kernel, linear, over, setting
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks

BLOCK = {"i": "num_layers"}
FIRST = "transformer_blocks.{i}"
CLASSES = f"{FIRST}.norm1.emb.class_embedder.embedding_table"


def _patch(s: Any) -> int | None:
    return (kernel("pos_embed.proj", 2)(s) or (None,))[0]


def _classes(s: Any) -> int | None:
    """Rows of the table but for the one that stands for no class."""
    rows = s.size(CLASSES, 0)
    return None if rows is None else rows - 1


HPARAMS = (
    setting("num_attention_heads", required=True, hint="16 in DiT-XL/2"),
    setting("attention_head_dim", required=True, hint="72 in DiT-XL/2"),
    setting("in_channels", derive=lambda s: s.size("pos_embed.proj", 1)),
    setting("out_channels", derive=lambda s: over(s.size("proj_out_2", 0), (_patch(s) or 0) ** 2)),
    setting("num_layers", derive=lambda s: s.count(f"{FIRST}.norm1.linear"), maximum=1024),
    setting("attention_bias", kind=bool, derive=lambda s: s.has(f"{FIRST}.attn1.to_q.bias")),
    setting("sample_size", required=True, hint="32 for pictures of 256 pixels, 64 for 512"),
    setting("patch_size", derive=_patch, maximum=64),
    setting("activation_fn", "gelu-approximate", kind=str),
    setting("num_embeds_ada_norm", derive=_classes),
    setting("norm_type", "ada_norm_zero", kind=str),
    setting("norm_elementwise_affine", False, kind=bool, choices=(False,)),
)  # fmt: skip


def _sizes(c: Mapping[str, Any]) -> dict[str, int]:
    return {
        "dim": c["num_attention_heads"] * c["attention_head_dim"],
        "pixels": c["patch_size"] ** 2 * c["out_channels"],
    }


TENSORS = (
    conv("pos_embed.proj", "dim", "in_channels", ("patch_size", "patch_size")),
    *embedder(f"{FIRST}.norm1.emb.timestep_embedder", "256", "dim", repeat=BLOCK),
    embedding(CLASSES, "num_embeds_ada_norm+1", "dim", repeat=BLOCK),
    linear(f"{FIRST}.norm1.linear", "6*dim", "dim", role="modulation", repeat=BLOCK),
    *(linear(f"{FIRST}.attn1.{name}", "dim", "dim", bias="optional", role="attn", repeat=BLOCK) for name in ("to_q", "to_k", "to_v")),
    linear(f"{FIRST}.attn1.to_out.0", "dim", "dim", role="attn", repeat=BLOCK),
    linear(f"{FIRST}.ff.net.0.proj", "4*dim", "dim", role="dense_ffn", repeat=BLOCK),
    linear(f"{FIRST}.ff.net.2", "dim", "4*dim", role="dense_ffn", repeat=BLOCK),
    linear("proj_out_1", "2*dim", "dim", role="modulation"),
    linear("proj_out_2", "pixels", "dim", role="output"),
)  # fmt: skip

SPEC = DiffusionSpec(
    id="dit",
    title="DiT",
    class_name="DiTTransformer2DModel",
    hparams=HPARAMS,
    sizes=_sizes,
    tensors=TENSORS,
    marks={"diffusers": (Marks(("pos_embed.proj.weight", "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight", "proj_out_2.weight")),)},
    variants={"DiT-XL/2": {"num_layers": 28, "num_embeds_ada_norm": 1000, "num_attention_heads": 16, "attention_head_dim": 72}},
    pipelines=("DiTPipeline",),
    paper="https://arxiv.org/abs/2212.09748",
)  # fmt: skip
