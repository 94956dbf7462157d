"""DiT: pictures of a class of ImageNet, norms modulated by class and timestep, which every block embeds for itself.

https://arxiv.org/abs/2212.09748; published for its class in diffusers, whose layout is the only one here.
Heads and sizes of samples: scripts/convert_dit_to_diffusers.py of diffusers, and the defaults of the class.
"""

from __future__ import annotations

from qtransformers.archs.diffusion.folds import NO_WEIGHTS, NOT_LINEAR, modulated, values
from qtransformers.archs.diffusion.hparams import counted, dim, over, patch, pixels, setting, sized, told_by
from qtransformers.archs.diffusion.parts import QKVO, conv, embedder, embedding, feed_forward, linear
from qtransformers.archs.diffusion.shapes import Shapes
from qtransformers.archs.diffusion.spec import DiffusionSpec, Marks

BLOCK = {"i": "num_layers"}
FIRST = "transformer_blocks.{i}"
CLASSES = f"{FIRST}.norm1.emb.class_embedder.embedding_table"
PATCH = patch("pos_embed.proj")


def _classes(s: Shapes) -> int | None:
    """Rows of the table but for the one that stands for no class."""
    rows = s.size(CLASSES, 0)
    return None if rows is None else rows - 1


HPARAMS = (
    setting("num_attention_heads", required=True, hint="16 in DiT-XL/2"),
    setting("attention_head_dim", required=True, hint="72 in DiT-XL/2"),
    sized("in_channels", "pos_embed.proj", 1),
    setting("out_channels", derive=lambda s: over(s.size("proj_out_2", 0), (PATCH(s) or 0) ** 2)),
    counted("num_layers", f"{FIRST}.norm1.linear"),
    told_by("attention_bias", f"{FIRST}.attn1.to_q.bias"),
    setting("sample_size", required=True, hint="32 for pictures of 256 pixels, 64 for 512"),
    setting("patch_size", derive=PATCH, maximum=64),
    setting("activation_fn", "gelu-approximate", kind=str),
    setting("num_embeds_ada_norm", derive=_classes),
    setting("norm_type", "ada_norm_zero", kind=str),
    setting("norm_elementwise_affine", False, kind=bool, choices=(False,)),
)  # fmt: skip


TENSORS = (
    conv("pos_embed.proj", "dim", "in_channels", ("patch_size", "patch_size")),
    *embedder(f"{FIRST}.norm1.emb.timestep_embedder", "256", "dim", repeat=BLOCK),
    embedding(CLASSES, "num_embeds_ada_norm+1", "dim", repeat=BLOCK),
    linear(f"{FIRST}.norm1.linear", "6*dim", "dim", role="modulation", repeat=BLOCK),
    *(linear(f"{FIRST}.attn1.{name}", "dim", "dim", bias="optional", role="attn", repeat=BLOCK) for name in QKVO[:3]),
    linear(f"{FIRST}.attn1.to_out.0", "dim", "dim", role="attn", repeat=BLOCK),
    *feed_forward(f"{FIRST}.ff", repeat=BLOCK),
    linear("proj_out_1", "2*dim", "dim", role="modulation"),
    linear("proj_out_2", "pixels", "dim", role="output"),
)  # fmt: skip

FOLDS = (
    modulated(f"{FIRST}.norm1.linear", 1, 0, (f"{FIRST}.attn1.{name}" for name in ("to_q", "to_k", "to_v")), BLOCK),
    modulated(f"{FIRST}.norm1.linear", 4, 3, (f"{FIRST}.ff.net.0.proj",), BLOCK),
    values(f"{FIRST}.attn1", ("to_v",), ("to_out.0",), BLOCK),
)

SPEC = DiffusionSpec(
    id="dit",
    title="DiT",
    class_name="DiTTransformer2DModel",
    hparams=HPARAMS,
    sizes=lambda c: {"dim": dim(c), "pixels": pixels(c)},
    tensors=TENSORS,
    folds=FOLDS,
    unfolded={"norm": NO_WEIGHTS, "gated": NOT_LINEAR},
    marks={"diffusers": (Marks(("pos_embed.proj.weight", "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight", "proj_out_2.weight")),)},
    variants={"DiT-XL/2": {"num_layers": 28, "num_embeds_ada_norm": 1000, "num_attention_heads": 16, "attention_head_dim": 72}},
    pipelines=("DiTPipeline",),
    paper="https://arxiv.org/abs/2212.09748",
)  # fmt: skip
