"""What `test_ahead.py` compiles of products: every type with few tokens for one architecture; the rest for all.

Every type with more tokens is in `ahead_tiles`; here, what tensor memory (sm_100) did not take at first.
"""

from functools import partial

import torch

from qtransformers.kernels.triton import experts, multiply
from qtransformers.kernels.triton.blocks import LAYOUTS
from qtransformers.kernels.triton.weights import Experts, Weight
from qtransformers.types import BY_NAME

FEW = {"registers": 128, "shared": 16 << 10}
MANY = {"registers": 255, "shared": 96 << 10}


def weight(name, *shape, accuracy="fast"):
    kind = BY_NAME[name]
    n = torch.Size(shape).numel() // kind.block_size * kind.block_bytes
    make = Weight if len(shape) == 2 else Experts
    return make(torch.empty(n, dtype=torch.uint8, device="meta"), shape, kind, name, accuracy)


def floats(*shape):
    return torch.empty(shape, device="meta")


def experts_of(tokens):
    stacks = weight("Q4_K", 64, 768, 2048), weight("Q4_K", 64, 768, 2048), weight("Q6_K", 64, 2048, 768)
    ids = torch.empty(tokens, 8, dtype=torch.int32, device="meta")
    return partial(experts.moe, floats(tokens, 2048), ids, floats(tokens, 8), *stacks)


def one(name, tokens, accuracy="fast"):
    return partial(multiply.linear, floats(tokens, 4096), weight(name, 4096, 4096, accuracy=accuracy))


def calls(arch):
    """Names, calls and limits."""
    yield "Q4_K, one token", one("Q4_K", 1), {**FEW, "reads_wide": True}
    yield "Q4_K, 16 tokens", one("Q4_K", 16), MANY
    yield "experts, one token", experts_of(1), FEW
    if arch == 100:
        for name, tokens in (("IQ1_M", 16), ("IQ2_XS", 16), ("IQ2_S", 16), ("Q2_K", 64)):
            yield f"{name}, {tokens} tokens", one(name, tokens), MANY
    if arch != 90:
        return
    for name in LAYOUTS:
        if name != "Q4_K" and not BY_NAME[name].activation:
            yield f"{name}, one token", one(name, 1), FEW
    yield "Q4_K, one token, high", one("Q4_K", 1, "high"), FEW
    yield "Q4_K, one token, exact", one("Q4_K", 1, "exact"), FEW
    gate = weight("Q6_K", 14336, 4096)
    yield "gated", partial(multiply.gated, floats(1, 4096), gate, gate), FEW
    yield (
        "gathered",
        partial(multiply.embedding, torch.empty(4, dtype=torch.int32, device="meta"), weight("Q5_K", 14336, 4096)),
        {**FEW, "exact": ["rows_kernel"]},
    )
    yield "heads", partial(multiply.per_head, floats(1, 128, 512), weight("Q8_0", 128, 128, 512)), FEW
    yield "Q6_K, 20 tokens, exact", one("Q6_K", 20, "exact"), MANY
    yield "Q8_0, 64 tokens", one("Q8_0", 64), MANY
    yield "experts, 64 tokens", experts_of(64), MANY
