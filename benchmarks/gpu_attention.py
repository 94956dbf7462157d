"""Attention over pages on the card: answers against its memory, prompts against torch's own attention."""

import sys
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from card import Card, seconds
from results import table

from qtransformers.kernels import kv, kv_rows, reference
from qtransformers.kernels.kv import PAGE_TOKENS
from qtransformers.kernels.triton.attend import attention

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from paged import PagedCase

ROTATED = 192 << 20  # bytes of pages that take turns, more than any card's cache
CONTEXTS = {1: (1024, 8192, 65536), 16: (1024, 8192, 65536)}  # of so many sequences at once
PROMPTS = (1024, 4096, 16384)
PROMPTED = ("f16", "q8", "q4")


@dataclass(frozen=True)
class Heads:
    """Heads of queries and of keys, and their sizes."""

    name: str
    n: int
    n_kv: int
    d: int
    dv: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.n, self.n_kv, self.d, self.dv


LLAMA = Heads("Llama 3 8B, 32 heads over 8 of 128", 32, 8, 128, 128)
GEMMA = Heads("Gemma 2 9B, 16 over 8 of 256", 16, 8, 256, 256)
LATENT = Heads("DeepSeek V3, 128 over one of 576", 128, 1, 576, 512)
SHAPES = (LLAMA, GEMMA, LATENT)
CODECS = tuple(kv.CODECS)
TINY = {
    "ROTATED": 1, "CONTEXTS": {1: (1024,), 2: (300,)}, "PROMPTS": (16,), "SHAPES": (Heads("tiny", 4, 2, 32, 32),), "CODECS": ("f16", "q6")
}  # fmt: skip


def measure(card: Card, options) -> tuple[str, str]:
    """The title and text for RESULTS.md."""
    device = card.device
    read = card.read
    parts = [
        f"Reading memory: {read / 1e9:,.0f} GB/s. One layer, float16 in and out; pages of all calls are larger than the cache. "
        "The error is relative to the largest value of the NumPy twin, of an answer and of a prompt."
    ]
    for heads in SHAPES:
        rows = []
        for codec in CODECS:
            cells = [codec, f"{worst(heads, codec, device):.1e}"]
            for n, contexts in CONTEXTS.items():
                cells += [rate(heads, codec, n, context, device, read) for context in contexts]
            rows.append(cells)
            print(heads.name, *cells, flush=True)
        many = [f"{n} x {context // 1024}k" for n, contexts in CONTEXTS.items() for context in contexts]
        parts.append(f"{heads.name}: an answer's token, GB/s of keys and values and their part of reading.")
        parts.append(table(("cache", "error", *many), rows))
    rows = []
    for heads in SHAPES[:2]:
        for length in PROMPTS:
            theirs = seconds([plain(heads, length, device)], rounds=7)
            work = operations(heads, length)
            cells = [f"{heads.name}, {length}", f"{work / theirs / 1e12:.0f}"]
            for codec in PROMPTED:
                ours = seconds([step(heads, codec, [length], [length], device)], rounds=7)
                cells.append(f"{work / ours / 1e12:.0f} ({100 * theirs / ours:.0f}%)")
            rows.append(cells)
            print(*cells, flush=True)
    parts.append(
        "Prompts, causal, TFLOP/s, and of torch's speed; torch has keys and values at hand, ours stores and reads them."
    )
    parts.append(table(("heads, tokens", "torch", "f16", "q8", "q4"), rows))
    return "attention", "\n\n".join(parts)


def worst(heads: Heads, codec: str, device: torch.device, past: tuple[int, int] = (700, 30)) -> float:
    """The largest error of an answer beside a prompt, relative to the twin's largest value, after so many tokens."""
    case = PagedCase([1, 20], past, *heads.shape, codec)
    with patch.object(kv, "quantise_query", lambda x, limit: x):  # the CPU rounds queries, the card does not
        expected = case.run(reference.attention, case.pages.copy())
    pages = torch.from_numpy(kv_rows.from_cpu_layout(case.pages, codec, heads.d, heads.dv)).to(device)
    q, k, v, *where = (
        torch.from_numpy(x).to(device) for x in (case.q, case.k, case.v, case.positions, case.starts, case.tables)
    )
    found = attention(q, k, v, pages, codec, *where, case.scale).float().cpu().numpy()
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def step(heads: Heads, codec: str, lengths: list[int], contexts: list[int], device: torch.device, pages=None):
    """Attention of `lengths` tokens at the ends of contexts, over random pages, as a call."""
    used = [-(-context // PAGE_TOKENS) for context in contexts]
    if pages is None:
        pages = random_pages(heads, codec, sum(used), device)
    numbers, tables = np.random.default_rng(1).permutation(len(pages)), np.full((len(used), max(used)), -1)
    for s, n in enumerate(used):
        tables[s, :n], numbers = numbers[:n], numbers[n:]
    positions = np.concatenate([np.arange(c - n, c) for n, c in zip(lengths, contexts, strict=True)])
    where = [torch.from_numpy(x.astype(np.int32)).to(device) for x in (positions, np.cumsum([0, *lengths]), tables)]
    n = sum(lengths)
    q, k, v = (
        torch.randn(n, *shape, dtype=torch.float16, device=device)
        for shape in ((heads.n, heads.d), (heads.n_kv, heads.d), (heads.n_kv, heads.dv))
    )
    scale = heads.d**-0.5
    return lambda: attention(q, k, v, pages, codec, *where, scale, rows=max(lengths))


def random_pages(heads: Heads, codec: str, n: int, device: torch.device) -> torch.Tensor:
    """Pages of plausible numbers: one is encoded, the others are its copies."""
    rng = np.random.default_rng(0)
    page = [
        kv.encode_page(rng.standard_normal((PAGE_TOKENS, d), np.float32), kind, is_key)
        for kind, d, is_key in zip(kv.CODECS[codec], (heads.d, heads.dv), (True, False), strict=True)
    ]
    rows = kv_rows.from_cpu_layout(np.concatenate(page)[None], codec, heads.d, heads.dv)
    return torch.from_numpy(rows).to(device).repeat(n, heads.n_kv, 1)


def rate(heads: Heads, codec: str, n: int, context: int, device: torch.device, read: float) -> str:
    """GB/s at which an answer's token of `n` sequences goes over their contexts, and its part of reading."""
    of_one = kv.head_bytes(codec, heads.d, heads.dv) * heads.n_kv * context // PAGE_TOKENS * n
    calls = [step(heads, codec, [1] * n, [context] * n, device) for _ in range(max(1, -(-ROTATED // of_one)))]
    took = seconds(calls, repeats=2)
    needed = n * context * heads.n_kv * sum(kind.bits * d for kind, d in zip(kv.CODECS[codec], (heads.d, heads.dv), strict=True)) / 8  # fmt: skip
    return f"{needed / took / 1e9:,.0f} ({100 * needed / took / read:.0f}%)"


def plain(heads: Heads, length: int, device: torch.device):
    """The same by torch, as a call."""
    q, k, v = (
        torch.randn(1, n, length, d, dtype=torch.float16, device=device)
        for n, d in ((heads.n, heads.d), (heads.n_kv, heads.d), (heads.n_kv, heads.dv))
    )
    return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def operations(heads: Heads, length: int) -> float:
    """Of a causal prompt."""
    return heads.n * length * (length + 1) * (heads.d + heads.dv)
