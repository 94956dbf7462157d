"""What `test_ahead.py` compiles of whole forwards: a step of an answer and a prompt, of the shapes of a Llama 3 8B."""

from functools import partial
from types import SimpleNamespace

import torch

from qtransformers.archs import spec_of
from qtransformers.archs.hparams import Hyperparameters
from qtransformers.cache import Batch, PagedCache
from qtransformers.kernels import kv
from qtransformers.kernels import triton as kernels
from qtransformers.kernels.triton.weights import Weight
from qtransformers.types import BY_NAME

SIZES = {
    "n_layers": 1, "context_length": 8192, "n_embd": 4096, "n_ff": 14336, "n_heads": 32, "n_kv_heads": 8, "head_dim": 128, "head_dim_v": 128,
    "rms_eps": 1e-5, "rope_dim": 128, "rope_base": 5e5, "rope_scaling": "none", "rope_factor": 1.0, "rope_original": 8192, "rope_beta_fast": 32.0,
    "rope_beta_slow": 1.0, "rope_unrounded": False, "rope_log_multiplier": 0.0, "rope_attn_factor": 1.0, "sliding_window": 0, "n_experts": 0,
    "n_experts_used": 0, "vocab_size": 128256,
}  # fmt: skip
TYPES = {"attn_v": "Q6_K", "ffn_down": "Q6_K", "output": "Q6_K"}  # of Q4_K_M; all others are Q4_K
LIMITS = {"registers": 255, "shared": 160 << 10}


def weight(name, shape):
    """A matrix of a type that Q4_K_M has there, or a vector."""
    if len(shape) == 1:
        vector = torch.empty(shape, dtype=torch.float32, device="meta")
        vector.planes = 1
        return vector
    kind = BY_NAME[TYPES.get(name, "Q4_K")]
    data = torch.empty(shape[0] * kind.row_bytes(shape[1]), dtype=torch.uint8, device="meta")
    return Weight(data, shape, kind, name, "fast")


def weights(spec, h):
    """All of a model, on the meta device."""
    found, layer = SimpleNamespace(), SimpleNamespace()
    for slot in spec.slots(h):
        home = found if slot.layer is None else layer
        setattr(
            home,
            slot.attr,
            weight(slot.attr, slot.shape(h)) if slot.part == "weight" and slot.spec.role != "rope" else None,
        )
    found.layers = (layer,)
    return found


def batch(tokens, sequences):
    """Of so many tokens, in as many sequences."""

    def ints(*shape):
        return torch.empty(shape, dtype=torch.int32, device="meta")

    rows = 1 if tokens == sequences else tokens
    return Batch(ints(tokens), ints(tokens), ints(sequences + 1), ints(sequences, 8), ints(sequences), rows)


def forward(tokens, sequences=1, codec="f16"):
    """A forward of one layer and the output."""
    spec = spec_of("llama", "")
    h = Hyperparameters(SIZES)
    pages = torch.empty(1, 8, 8, kv.head_bytes(codec, 128, 128), dtype=torch.uint8, device="meta")
    return spec.forward(
        weights(spec, h), h, batch(tokens, sequences), PagedCache(pages, codec, [], head_dims=(128, 128))
    )


def unlike_heads():
    """Keys and values whose heads are of other sizes, and rotated in other groups."""
    b = batch(2, 2)
    q, k, v = (torch.empty(2, n, d, device="meta") for n, d in ((4, 48), (2, 48), (2, 32)))
    pages = torch.empty(8, 2, kv.head_bytes("q8", 48, 32), dtype=torch.uint8, device="meta")
    return kernels.attention(q, k, v, pages, "q8", b.positions, b.starts, b.page_tables, 0.1)


def calls(arch):
    """Names, calls and limits."""
    yield "a step", partial(forward, 1), LIMITS
    if arch == 90:
        yield "a step of four", partial(forward, 4, 4, "q8"), LIMITS
        yield "heads of two sizes", unlike_heads, LIMITS
        yield "a prompt", partial(forward, 512), LIMITS
