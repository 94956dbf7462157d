"""Weights to encode and importances of their columns, the same on every machine: Gaussian, heavy-tailed, and some of the demo model's; how far encodings are off."""

import json
from pathlib import Path

import numpy as np

from qtransformers.quants.reference import decode, spread
from qtransformers.quants.weights import weigh
from qtransformers.types import QuantType

DEMO = Path(__file__).parent / "data" / "demo_model" / "model.safetensors"
REAL = ("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.down_proj.weight", "model.layers.3.mlp.up_proj.weight")  # fmt: skip


def normal(n: int, seed: int) -> np.ndarray:
    """`n` Gaussian numbers out of raw integers, whose stream NumPy never changes."""
    u = np.random.PCG64(seed).random_raw(2 * n).astype(np.float64) / 2**64
    return np.sqrt(-2 * np.log(1 - u[:n])) * np.cos(2 * np.pi * u[n:])


def checkpoint(name: str, path: Path = DEMO) -> np.ndarray:
    """A BF16 tensor of a checkpoint as f32."""
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    entry = json.loads(raw[8:start])[name]
    a, b = (start + offset for offset in entry["data_offsets"])
    return (np.frombuffer(raw[a:b], "<u2").astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


def samples(rows: int = 32) -> dict[str, np.ndarray]:
    """Name -> f32 `[rows, in]`; `in` is a multiple of 256."""
    shape = (rows, 512)
    gauss = 0.02 * normal(rows * 512, 1).reshape(shape)
    tails = gauss / np.sqrt((normal(4 * rows * 512, 2).reshape(4, *shape) ** 2).mean(0))  # Student's t of 4 degrees
    made = {"gauss": gauss, "tails": tails}
    real = {name.split(".", 2)[2].removesuffix(".weight"): checkpoint(name)[: 2 * rows] for name in REAL}
    return {name: np.ascontiguousarray(x, np.float32) for name, x in {**made, **real}.items()}


def importance(x: np.ndarray, seed: int = 3) -> np.ndarray:
    """Mean squares of activations as models have them, `[in]`: log-normal, with a few outlier channels."""
    n = x.shape[-1]
    spread = np.exp(normal(n, seed))
    spread[:: n // 8] *= 50
    return spread.astype(np.float32)


def errors(blocks: np.ndarray, x: np.ndarray, type: QuantType, weighted: bool) -> dict[str, float]:
    """Sums of squared errors of `blocks` of `x [rows, in]`: `searched` with the weights of the search, `columns` with importance alone."""
    each, power = spread(x, type, importance(x) if weighted else None)
    lanes = np.ascontiguousarray(x.reshape(-1, type.block_size).T)
    w = weigh(lanes, type.name, None if each is None else np.ascontiguousarray(each.T), power).astype(np.float64)
    off = (decode(blocks, type).astype(np.float64).reshape(lanes.T.shape).T - lanes) ** 2
    columns = off if each is None else each.T.astype(np.float64) * off
    return {"searched": float((w * off).sum()), "columns": float(columns.sum())}
