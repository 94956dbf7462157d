"""What `test_ahead.py` compiles of what is computed row by row."""

from functools import partial

import numpy as np
import torch

from qtransformers.kernels.triton import elementwise as rows
from qtransformers.kernels.triton import recurrent
from qtransformers.kernels.triton.candidates import best

LIMITS = {"registers": 128, "shared": 16 << 10}


def calls(arch):
    """Names, calls and limits."""
    floats = partial(torch.empty, dtype=torch.float32, device="meta")
    numbers = partial(torch.empty, dtype=torch.int32, device="meta")
    freqs = np.linspace(1, 0.01, 64)
    yield "norm", partial(rows.rms_norm, floats(8, 4096), floats(4096), 1e-5), LIMITS
    yield "centred norm", partial(rows.layer_norm, floats(8, 768), floats(768), floats(768), 1e-5), LIMITS
    for interleaved in (True, False):
        yield "rotation", partial(rows.rope, floats(8, 32, 128), numbers(8), freqs, interleaved), LIMITS
    for act in rows.FUNCTIONS if arch == 90 else ("silu",):
        yield act, partial(rows.activate, floats(8, 14336), act, floats(8, 14336)), LIMITS
    yield "best", partial(best, floats(4, 151936), 151669, torch.empty(151936, dtype=torch.bool, device="meta")), LIMITS
    yield "routes", partial(rows.route, floats(8, 128), 8), LIMITS
    yield "grouped routes", partial(rows.route, floats(8, 256), 8, "sigmoid", floats(256), 8, 4, 2, True), LIMITS
    if arch == 90:
        past = recurrent.Remembered(numbers(1, 2), 64, (3, 512))
        yield "convolution", partial(recurrent.causal_conv, floats(8, 512), floats(512, 4), numbers(2), past), LIMITS
        q, v, gate = floats(8, 16, 128), floats(8, 32, 128), floats(8, 32)
        state = past._replace(shape=(32, 128, 128))
        yield "delta rule", partial(recurrent.gated_delta, q, q, v, gate, gate, numbers(2), state), LIMITS
