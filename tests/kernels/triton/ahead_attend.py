"""What `test_ahead.py` compiles of attention: steps of answers and prompts, plain and latent heads."""

from functools import partial

import torch

from ahead import SHARED
from qtransformers.kernels import kv
from qtransformers.kernels.triton.attend import attention

CONTEXT = 8192


def calls(arch):
    """Names, calls and limits."""
    limits = {"registers": 255, "shared": SHARED[arch], "exact": ["_store"]}
    yield "q8 answer", step("q8", 8, 8, 32, 8, 128, 128), limits
    if arch == 90:
        yield "q8 prompt", step("q8", 1, 2048, 32, 8, 128, 128), limits
        yield "f16 answer", step("f16", 8, 8, 32, 8, 128, 128), limits
        yield "f16 latent answer", step("f16", 1, 1, 16, 1, 576, 512), limits


def step(codec, n_sequences, n_tokens, heads, kv_heads, d, dv):
    """Attention of `n_tokens` over whole contexts."""
    floats = partial(torch.empty, dtype=torch.bfloat16, device="meta")
    numbers = partial(torch.empty, dtype=torch.int32, device="meta")
    n_pages = n_sequences * CONTEXT // kv.PAGE_TOKENS
    pages = torch.empty((n_pages, kv_heads, kv.head_bytes(codec, d, dv)), dtype=torch.uint8, device="meta")
    return partial(
        attention, floats((n_tokens, heads, d)), floats((n_tokens, kv_heads, d)), floats((n_tokens, kv_heads, dv)), pages, codec,
        numbers((n_tokens,)), numbers((n_sequences + 1,)), numbers((n_sequences, CONTEXT // kv.PAGE_TOKENS)), d**-0.5,
    )  # fmt: skip
