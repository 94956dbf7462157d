"""What `test_ahead.py` compiles of attention: every cache type and form of heads for one card, samples for others.

A prompt beside answers launches both kinds of tiles, with as many rows as they may have.
"""

from functools import partial

import torch

from ahead import SHARED
from qtransformers.kernels import kv
from qtransformers.kernels.triton.attend import attention

ARCHS = (80, 86, 90, 100)
CONTEXT = 8192
# Heads, those of keys, and sizes, as Llama, gpt-oss, Gemma 2 and DeepSeek V3 have them with all that they mask.
LLAMA = (32, 8, 128, 128), {}
GPT_OSS = (64, 8, 64, 64), {"window": 128, "sinks": True}
GEMMA = (16, 8, 256, 256), {"window": 4096, "softcap": 50.0}
LATENT = (128, 1, 576, 512), {}
FORMS = {"llama": LLAMA, "gpt-oss": GPT_OSS, "gemma": GEMMA, "latent": LATENT}
SAMPLES = {
    80: (("q6", "llama"), ("f16", "gemma"), ("q6", "gemma"), ("q8", "latent")),
    86: (("f16", "latent"),),
    100: (("q6", "llama"), ("f16", "gemma"), ("q6", "latent")),
}
PLAIN = ("f16", "q8", "q6", "q4")
# Floats of 32 bits, and keys of one type with values of another, share their tiles with those that are in the samples.
SAMPLES[90] = (*((codec, form) for codec in PLAIN for form in FORMS), ("f32", "gemma"), ("f32", "latent"), ("k8v4", "llama"), ("k8v4", "latent"))  # fmt: skip


def calls(arch):
    """Names, calls and limits."""
    limits = {"registers": 255, "shared": SHARED[arch], "exact": ["_store"]}
    for codec, form in SAMPLES[arch]:
        yield f"{codec} {form}", step(codec, 3, 2048, *FORMS[form][0], **FORMS[form][1]), limits
    if arch == 90:
        for codec in ("f16", "q8", "q6", "q4"):
            yield f"{codec} answer", step(codec, 8, 8, *LLAMA[0], rows=1), limits | {"registers": 192}
        for codec in ("f16", "q8", "q6"):
            yield f"{codec} latent answer of 16 heads", step(codec, 1, 1, 16, 1, 576, 512), limits


def step(codec, n_sequences, n_tokens, heads, kv_heads, d, dv, sinks=False, **more):
    """Attention of `n_tokens` over whole contexts."""
    floats = partial(torch.empty, dtype=torch.bfloat16, device="meta")
    numbers = partial(torch.empty, dtype=torch.int32, device="meta")
    n_pages = n_sequences * CONTEXT // kv.PAGE_TOKENS
    pages = torch.empty((n_pages, kv_heads, kv.head_bytes(codec, d, dv)), dtype=torch.uint8, device="meta")
    return partial(
        attention, floats((n_tokens, heads, d)), floats((n_tokens, kv_heads, d)), floats((n_tokens, kv_heads, dv)), pages, codec,
        numbers((n_tokens,)), numbers((n_sequences + 1,)), numbers((n_sequences, CONTEXT // kv.PAGE_TOKENS)), d**-0.5,
        sinks=torch.empty(heads, device="meta") if sinks else None, **more,
    )  # fmt: skip
