"""What `test_ahead.py` compiles of dequantising: every type for one architecture, some for all."""

from functools import partial

import torch

from qtransformers.kernels.triton.blocks import LAYOUTS
from qtransformers.kernels.triton.dequantise import dequantise
from qtransformers.types import BY_NAME

FOR_ALL = ("Q4_0", "Q4_K", "IQ2_XS")
ALIGNED = ("Q4_K", "Q5_K")  # blocks of a multiple of 16 bytes


def calls(arch):
    """Names, calls and limits."""
    for name in LAYOUTS if arch == 90 else FOR_ALL:
        type = BY_NAME[name]
        limits = {
            "registers": 64,
            "shared": 16 << 10,
            "exact": ["dequantise_kernel"],
            "writes_wide": True,
            "reads_wide": name in ALIGNED,
        }
        data = torch.empty(type.row_bytes(1 << 20), dtype=torch.uint8, device="meta")
        for dtype in (torch.float32, torch.bfloat16) if name == "Q4_K" else (torch.float32,):
            yield f"{name} {dtype}", partial(dequantise, data, type, (1 << 20,), dtype), limits
