"""What `test_ahead.py` compiles of norms, rotations, activations, routes and the choice of tokens."""

from functools import partial

import numpy as np
import torch

from qtransformers.kernels.table import FUNCTIONS
from qtransformers.kernels.triton import elementwise
from qtransformers.kernels.triton.candidates import best

LIMITS = {"registers": 96, "shared": 8 << 10}


def empty(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


def calls(arch):
    """Names, calls and limits."""
    freqs = np.ones(64)
    yield "rms_norm", partial(elementwise.rms_norm, empty(1, 4096), empty(4096), 1e-5), LIMITS
    yield "rope", partial(elementwise.rope, empty(1, 32, 128), empty(1, dtype=torch.int32), freqs, False), LIMITS
    yield "silu", partial(elementwise.activate, empty(1, 14336), "silu", empty(1, 14336)), LIMITS
    yield "route", partial(elementwise.route, empty(1, 128), 8, normalize=True), LIMITS
    yield "best", partial(best, empty(1, 128256), 128256), LIMITS
    if arch != 90:
        return
    v3 = {"gate": "sigmoid", "bias": empty(256), "n_groups": 8, "n_groups_used": 4, "group_top": 2, "normalize": True}
    yield "rms_norm of heads", partial(elementwise.rms_norm, empty(4, 32, 128), empty(128), 1e-5), LIMITS
    yield "layer_norm", partial(elementwise.layer_norm, empty(4, 4096), empty(4096), empty(4096), 1e-5), LIMITS
    yield "interleaved rope", partial(elementwise.rope, empty(4, 8, 192), empty(4, dtype=torch.int32), freqs, True, 1.2), LIMITS  # fmt: skip
    yield "route of DeepSeek V3", partial(elementwise.route, empty(1, 256), 8, **v3), LIMITS
    yield "best of padded", partial(best, empty(4, 151936), 151669, empty(151936, dtype=torch.bool)), LIMITS
    for act in FUNCTIONS:
        yield act, partial(elementwise.activate, empty(4, 4096), act), LIMITS
