"""Products on a GPU: the Triton kernels on torch's tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from qtransformers.errors import UnsupportedError
from qtransformers.kernels import triton as kernels
from qtransformers.kernels.triton.dequantise import dequantise
from qtransformers.kernels.triton.device import current
from qtransformers.kernels.triton.weights import Experts, Weight, why_not
from qtransformers.types import TYPES, QuantType

Tensor = torch.Tensor


def bound(blocks: Tensor, shape: tuple[int, ...], type_id: int, name: str, accuracy: str) -> Any:
    """Blocks as the kernels take them; they lie where they did. For each call anew, so that no moved blocks are kept, and thus briefly."""
    kind = TYPES[type_id]
    if reason := why_not(kind):
        raise UnsupportedError(f"{name}: {reason}. Keep the layer on the CPU.")
    return (Weight if len(shape) == 2 else Experts)(blocks.view(-1), shape, kind, name, accuracy)


def multiply(x: Tensor, w: Any, bias: Tensor | None) -> Tensor:
    """`x [T, in] @ w [out, in].T + bias`: `[T, out]` in x's dtype."""
    with current(x.device):
        y: Tensor = kernels.linear_like(x.detach(), w, None if bias is None else bias.detach())
        return y


def pick(ids: Tensor, w: Any) -> Tensor:
    """Rows `ids [T]`: `[T, n]` f32; NaN for an id that has no row, as nothing here waits for the device."""
    with current(ids.device):
        return kernels.embedding(_numbers(ids), w)


def mix(x: Tensor, ids: Tensor, weights: Tensor, stacks: Sequence[Any], act: str, biases: Sequence[Tensor]) -> Tensor:
    """Each token through its experts; see ops.mix. There must be such experts."""
    with current(x.device):
        return kernels.moe(_floats(x), _numbers(ids), _floats(weights), *stacks, act, *[_floats(b) for b in biases])


def dequantize(blocks: Tensor, type: QuantType) -> Tensor:
    """Whole rows of blocks `[rows, row_bytes]` as f32 `[rows, n]`."""
    shape = len(blocks), blocks.shape[1] // type.block_bytes * type.block_size
    return dequantise(blocks.reshape(-1), type, shape, torch.float32)


def _floats(x: Tensor) -> Tensor:
    return x.detach().to(torch.float32).contiguous()


def _numbers(ids: Tensor) -> Tensor:
    return ids.clamp(-1, 2**31 - 1).to(torch.int32)
