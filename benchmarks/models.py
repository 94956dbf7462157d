"""Models of realistic shape with random weights, to time what a real one would take: `make(shape, recipe, path)`.

Usage: python benchmarks/models.py llama-1b Q4_K_M out.gguf [vocabulary.gguf]
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qtransformers.gguf import GGUFFile, GGUFWriter
from qtransformers.types import BY_NAME, QuantType


class Shape(NamedTuple):
    """Sizes of a Llama, of a Mixtral where there are experts, of a DeepSeek V2 where keys come from a latent vector."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int  # of each expert
    vocab: int
    experts: int = 0
    used: int = 0  # of the experts, by each token
    latent: int = 0  # values of the vector that keys and values are made of
    rope_dim: int = 0  # values of a key beside it that tell positions

    @property
    def metadata(self) -> dict[str, Any]:
        """Sizes, without the architecture's name before the keys."""
        key, value = (self.latent + self.rope_dim, self.latent) if self.latent else (self.head_dim, self.head_dim)
        sizes = {
            "block_count": self.layers, "context_length": 8192, "embedding_length": self.width, "feed_forward_length": self.ffn,
            "attention.head_count": self.heads, "attention.head_count_kv": self.kv_heads, "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.dimension_count": self.rope_dim or self.head_dim, "attention.key_length": key, "attention.value_length": value, "rope.freq_base": 500000.0,
        }  # fmt: skip
        if self.experts:
            sizes |= {"expert_count": self.experts, "expert_used_count": self.used}
        if self.latent:
            sizes |= {
                "attention.kv_lora_rank": self.latent, "attention.key_length_mla": self.head_dim + self.rope_dim,
                "attention.value_length_mla": self.head_dim, "expert_feed_forward_length": self.ffn,
            }  # fmt: skip
        return sizes


SHAPES = {
    "tiny": Shape(1, 64, 2, 1, 32, 64, 64),  # to see whether something runs
    "llama-1b": Shape(16, 2048, 32, 8, 64, 8192, 128256),
    "llama-150m": Shape(12, 768, 12, 4, 64, 3072, 32000),
    "llama-90m": Shape(6, 512, 8, 4, 64, 2048, 128256),  # a draft model for llama-1b
    "llama-8b": Shape(32, 4096, 32, 8, 128, 14336, 128256),
    "llama-8b-4": Shape(4, 4096, 32, 8, 128, 14336, 128256),  # four layers of it
    "odd-0.5b": Shape(24, 896, 14, 2, 64, 4864, 151936),
    "moe-small": Shape(8, 1024, 16, 4, 64, 1536, 32000, experts=16, used=2),
    "mla-small": Shape(4, 2048, 16, 1, 128, 1536, 32000, experts=16, used=6, latent=512, rope_dim=64),
}
# type of the layers' weights, of those that `more` picks among attn_v and ffn_down, of the tied embedding
RECIPES = {
    "Q4_K_M": ("Q4_K", "Q6_K", "Q6_K"), "Q5_K_M": ("Q5_K", "Q6_K", "Q6_K"), "Q6_K": ("Q6_K", "Q6_K", "Q6_K"),
    "F16": ("F16", "F16", "F16"), "Q8_0": ("Q8_0", "Q8_0", "Q8_0"), "Q4_0": ("Q4_0", "Q4_0", "Q6_K"), "Q3_K_M": ("Q3_K", "Q4_K", "Q6_K"),
    "Q2_K": ("Q2_K", "Q3_K", "Q6_K"), "IQ4_XS": ("IQ4_XS", "Q5_K", "Q6_K"), "MXFP4": ("MXFP4", "MXFP4", "Q6_K"),
}  # fmt: skip
# What a recipe that is only a type's name gives its embedding: as wide a type as llama.cpp's recipes give theirs.
EMBEDDING = "Q6_K"
# What takes a type's place where rows are no multiple of its block.
FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "Q3_K": "IQ4_NL", "Q2_K": "IQ4_NL", "IQ4_XS": "IQ4_NL"}


def more(i: int, n: int) -> bool:
    """Which layers the `_M` recipes give more bits."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def tensors(shape: str, recipe: str) -> list[tuple[str, tuple[int, ...], str]]:
    """Names, shapes and types of a model."""
    n_layers, width, heads, kv, dim, ffn, vocab, experts, _, latent, rope_dim = SHAPES[shape]
    base, better, embedding = RECIPES.get(recipe) or (recipe, recipe, EMBEDDING)

    def fit(kind: str, columns: int) -> str:
        return kind if columns % BY_NAME[kind].block_size == 0 else FALLBACK[kind]

    out: list[tuple[str, tuple[int, ...], str]] = [
        ("token_embd.weight", (vocab, width), fit(embedding, width)),
        ("output_norm.weight", (width,), "F32"),
    ]
    for i in range(n_layers):
        extra = better if more(i, n_layers) else base
        rows: list[tuple[str, tuple[int, ...], str]] = [
            ("attn_q", (heads * dim, width), base), ("attn_k", (kv * dim, width), base), ("attn_v", (kv * dim, width), extra)
        ]  # fmt: skip
        if latent:
            rows = [
                ("attn_q", (heads * (dim + rope_dim), width), base), ("attn_kv_a_mqa", (latent + rope_dim, width), extra),
                ("attn_k_b", (heads, latent, dim), base), ("attn_v_b", (heads, dim, latent), base),
            ]  # fmt: skip
            out.append((f"blk.{i}.attn_kv_a_norm.weight", (latent,), "F32"))
        for name, dims, kind in (*rows, ("attn_output", (width, heads * dim), base)):
            out.append((f"blk.{i}.{name}.weight", dims, fit(kind, dims[-1])))
        if experts:
            out.append((f"blk.{i}.ffn_gate_inp.weight", (experts, width), "F32"))
        for name, n, columns, kind in (
            ("gate", ffn, width, base),
            ("up", ffn, width, base),
            ("down", width, ffn, extra),
        ):
            dims = (experts, n, columns) if experts else (n, columns)
            out.append((f"blk.{i}.ffn_{name}{'_exps' if experts else ''}.weight", dims, fit(kind, columns)))
        out += [(f"blk.{i}.{name}.weight", (width,), "F32") for name in ("attn_norm", "ffn_norm")]
    return out


def blocks(kind: QuantType, n: int, rng: np.random.Generator) -> np.ndarray:
    """`n` blocks of random codes with scales so small that activations stay small through all layers."""
    if kind.name in ("F16", "BF16"):
        values = rng.standard_normal(n, np.float32) * 0.02
        return (
            values.astype(np.float16) if kind.name == "F16" else (values.view(np.uint32) >> 16).astype(np.uint16)
        ).view(np.uint8)
    made = rng.integers(0, 256, (n, kind.block_bytes), np.uint8).reshape(-1).view(kind.block)
    for field in ("d", "dmin", "m"):
        if field in (kind.block.names or ()):
            made[field] = (
                rng.uniform(0.5, 1, n) * (2e-3 if kind.block_size < 256 else 2e-4) * (1 if field == "d" else 0.5)
            )
    if "e" in (kind.block.names or ()):
        made["e"] = rng.integers(116, 119, n)
    if kind.name == "IQ1_M":  # the half-precision scale lies in the upper nibbles of four words, the lowest first
        d = (rng.uniform(0.5, 1, n) * 2e-4).astype(np.float16).view(np.uint16)
        words = made["scales"].view(np.uint16)
        words[:] = words & 0xFFF | (d[:, None] >> np.arange(0, 16, 4, dtype=np.uint16) & 15) << 12
    return made.view(np.uint8)


def at(folder: str, shape: str, recipe: str) -> Path:
    """The model's file in `folder`, made there if it is missing."""
    path = Path(folder) / f"{shape}-{recipe}.gguf"
    if not path.exists():
        make(shape, recipe, path)
    return path


def make(shape: str, recipe: str, path: Path, vocabulary: Path | None = None) -> None:
    """Write a model of `shape` quantised by `recipe`, with the vocabulary of another file or one of numbered tokens."""
    sizes, arch = SHAPES[shape], "deepseek2" if SHAPES[shape].latent else "llama"
    metadata = {
        "general.architecture": arch, "general.name": f"{shape} {recipe}, random weights",
        **{f"{arch}.{key}": value for key, value in sizes.metadata.items()},
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>"] + [f"t{i}" for i in range(sizes.vocab - 3)],
        "tokenizer.ggml.scores": [0.0] * sizes.vocab, "tokenizer.ggml.token_type": [2, 3, 3] + [1] * (sizes.vocab - 3),
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
    }  # fmt: skip
    if vocabulary is not None:
        with GGUFFile(vocabulary) as other:
            words = {k: v for k, v in other.metadata.items() if k.startswith("tokenizer.")}
        metadata = {k: v for k, v in metadata.items() if not k.startswith("tokenizer.")} | words
    rng = np.random.default_rng(0)
    specs = tensors(shape, recipe)
    with GGUFWriter(path, metadata, specs, overwrite=True) as writer:
        for name, dims, kind in specs:
            if kind == "F32":
                norm = len(dims) == 1  # else a router
                writer.write(name, np.ones(dims, np.float32) if norm else rng.standard_normal(dims, np.float32))
                continue
            row = BY_NAME[kind]
            n = int(np.prod(dims)) // row.block_size
            pool = blocks(row, min(n, 1 << 16), rng)  # repeated: the kernels cannot tell, and the file is made sooner
            for done in range(0, n, 1 << 16):
                writer.write(name, pool[: min(n - done, 1 << 16) * row.block_bytes])


if __name__ == "__main__":
    make(sys.argv[1], sys.argv[2], *map(Path, sys.argv[3:]))
