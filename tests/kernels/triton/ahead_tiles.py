"""What `test_ahead.py` compiles slowly: every type with so many tokens that tiles are decoded, on each generation of tensor cores."""

from ahead_products import MANY, one

from qtransformers.kernels.triton.blocks import LAYOUTS
from qtransformers.types import BY_NAME

ARCHS = (80, 90, 100, 120)
HALVES = {**MANY, "spilled": 16}  # bytes: on sm_120 8 of IQ3_XXS and 16 of IQ3_S, nothing of the others
FLOATS = {**MANY, "spilled": 104}  # of TQ1_0 on sm_90; on sm_100 40 of it and 8 of three others


def calls(arch):
    """Names, calls and limits."""
    for name in LAYOUTS:
        if BY_NAME[name].activation:
            continue
        for tokens in (16, 64):
            yield f"{name}, {tokens} tokens", one(name, tokens), HALVES
        if arch in (90, 100):
            yield f"{name}, 16 tokens, exact", one(name, 16, "exact"), FLOATS
