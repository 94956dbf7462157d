"""Products in main memory: the C++ kernels on torch's tensors, without a copy, with as many threads as torch has."""

from __future__ import annotations

import atexit
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from qtransformers.errors import ConfigError
from qtransformers.kernels import cpu
from qtransformers.quants import dequantize as decoded
from qtransformers.settings import Settings
from qtransformers.tensor import QTensor
from qtransformers.types import TYPES, QuantType

Tensor = torch.Tensor


@cache
def _pool(threads: int) -> Any:
    return cpu.Pool(threads, Settings.from_env().isa or "")


atexit.register(_pool.cache_clear)  # the extension wants its objects back before it goes


def bound(blocks: Tensor, shape: tuple[int, ...], type_id: int, name: str, accuracy: str) -> Any:
    """Blocks as the kernels take them; they lie where they did."""
    return cpu.bind(QTensor(name, TYPES[type_id], shape, blocks.numpy().reshape(-1)), accuracy)


def multiply(x: Tensor, w: Any, bias: Tensor | None) -> Tensor:
    """`x [T, in] @ w [out, in].T + bias`: `[T, out]` in x's dtype."""
    with _pool(torch.get_num_threads()):
        return torch.from_numpy(cpu.linear(_floats(x), w, None if bias is None else _floats(bias))).to(x.dtype)


def pick(ids: Tensor, w: Any) -> Tensor:
    """Rows `ids [T]`: `[T, n]` f32. ConfigError for an id that has no row."""
    wanted = ids.detach().numpy()
    if wanted.size and not 0 <= wanted.min() <= wanted.max() < w.shape[0]:
        worst = wanted.min() if wanted.min() < 0 else wanted.max()
        raise ConfigError(f"{w.name}: id {worst} was asked for; expected 0 to {w.shape[0] - 1}.")
    with _pool(torch.get_num_threads()):
        return torch.from_numpy(cpu.embedding(wanted.astype(np.int32), w))


def mix(x: Tensor, ids: Tensor, weights: Tensor, stacks: Sequence[Any], act: str, biases: Sequence[Tensor]) -> Tensor:
    """Each token through its experts; see ops.mix. ConfigError for an expert that there is not."""
    chosen = ids.detach().numpy()
    n = stacks[0].shape[0]
    if chosen.size and not 0 <= chosen.min() <= chosen.max() < n:
        raise ConfigError(f"{stacks[0].name}: a token was sent to expert {chosen.max()}; expected 0 to {n - 1}.")
    gate, up, down = stacks
    of_gate, of_up, of_down = (_floats(b) for b in biases) if biases else (None, None, None)
    with _pool(torch.get_num_threads()):
        y = cpu.moe(_floats(x), chosen.astype(np.int32), _floats(weights), gate, up, down, act, of_gate, of_up, of_down)
    return torch.from_numpy(y)


def dequantize(blocks: Tensor, type: QuantType) -> Tensor:
    """Whole rows of blocks `[rows, row_bytes]` as f32 `[rows, n]`."""
    return torch.from_numpy(decoded(np.ascontiguousarray(blocks.numpy()).reshape(-1), type)).view(blocks.shape[0], -1)


def _floats(x: Tensor) -> Any:
    return x.detach().to(torch.float32).contiguous().numpy()
