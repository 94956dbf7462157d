"""Blocks to floats on the device: one kernel, whatever the type."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import torch
import triton
import triton.language as tl

from qtransformers.errors import ConfigError, GGUFError, UnsupportedError
from qtransformers.kernels.triton.blocks import LAYOUTS, alignment, codebook_words
from qtransformers.kernels.triton.device import interpreted
from qtransformers.kernels.triton.weights import FLOATS
from qtransformers.kernels.triton.words import rounded, times_less
from qtransformers.types import QuantType

OUTPUTS = (torch.float32, torch.float16, torch.bfloat16)
TILE, WARPS = 4096, 4  # values and warps of a program


@triton.jit
def _plane(blocks, book, DECODE: tl.constexpr, P: tl.constexpr, HAS_MINIMUM: tl.constexpr, dtype: tl.constexpr):
    """The values `[R, B, G, W, 2, 2]` of a plane; of a word's four, the last index is the upper bit."""
    words, scale, minimum = DECODE(blocks, book, P)
    low, high = tl.join((words << 24) >> 24, (words << 8) >> 24), tl.join((words << 16) >> 24, words >> 24)
    values, scale = tl.join(low, high).to(tl.float32), scale[:, :, :, None, None, None]
    values = times_less(values, scale, minimum[:, :, :, None, None, None]) if HAS_MINIMUM else values * scale
    return rounded(values, dtype)


@triton.jit
def dequantise_kernel(
    data, book, out, n_blocks,
    DECODE: tl.constexpr, BYTES: tl.constexpr, SIZE: tl.constexpr, PLANES: tl.constexpr, OUTER: tl.constexpr, RUN: tl.constexpr,
    HAS_MINIMUM: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """`BLOCKS` blocks of `BYTES` bytes and `SIZE` values a program: `RUN` values of each plane in turn, `OUTER` times a block."""
    first = tl.program_id(0).to(tl.int64) * BLOCKS
    n = first + tl.arange(0, BLOCKS)[None, :]
    blocks = data + tl.minimum(n, n_blocks - 1) * BYTES
    dtype: tl.constexpr = out.dtype.element_ty
    x = _plane(blocks, book, DECODE, 0, HAS_MINIMUM, dtype)
    if PLANES > 1:
        y = _plane(blocks, book, DECODE, 1, HAS_MINIMUM, dtype)
        if PLANES == 4:
            x = tl.join(x, _plane(blocks, book, DECODE, 2, HAS_MINIMUM, dtype))
            y = tl.join(y, _plane(blocks, book, DECODE, 3, HAS_MINIMUM, dtype))
        x = tl.reshape(tl.join(x, y), [BLOCKS * OUTER, RUN, PLANES])
        x = tl.permute(x, [0, 2, 1])
    i = tl.arange(0, BLOCKS * SIZE)
    left = (n_blocks - first) * SIZE
    tl.store(out + first * SIZE + i, tl.reshape(x, [BLOCKS * SIZE]), mask=i < left)


def dequantise(
    data: torch.Tensor, type: QuantType, shape: Sequence[int], dtype: torch.dtype, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Blocks `data [nbytes] uint8` on a device as floats `[*shape]` of `dtype`, into `out` where given.

    float32 has the bits of `quants.reference_dequantize`; float16 and bfloat16 are rounded from it, to nearest even.
    GGUFError for bytes that do not make the shape, UnsupportedError for a type without a kernel, ConfigError for a wrong
    array or `dtype`.
    """
    out = _checked(data, type, tuple(shape), dtype, out)
    if out.numel():
        with torch.cuda.device_of(data):
            decode(data, type, out)
    return out


def decode(data: torch.Tensor, type: QuantType, out: torch.Tensor) -> torch.Tensor:
    """`dequantise` of what is known to fit, is not empty, and lies on the current device."""
    if (data.data_ptr() | int(data.storage_offset())) % alignment(type.name):
        data = data.clone()  # a slice at an odd place
    if type.name in FLOATS:
        return out.copy_(data.view(FLOATS[type.name]).view(out.shape).to(torch.float32))
    n_blocks, blocks = out.numel() // type.block_size, max(TILE // type.block_size, 1)
    book = book_on(LAYOUTS[type.name].book, data.device)
    dequantise_kernel[(-(-n_blocks // blocks),)](
        data, book, out, n_blocks, **constants(type), BLOCKS=blocks, num_warps=WARPS, enable_fp_fusion=False
    )
    return out


@cache
def constants(type: QuantType) -> dict[str, Any]:
    """What the kernel is compiled with for a type, but for the blocks of a program."""
    layout = LAYOUTS[type.name]
    turns = layout.groups // layout.inner
    return {
        "DECODE": layout.decode, "BYTES": type.block_bytes, "SIZE": type.block_size, "PLANES": layout.planes, "OUTER": turns,
        "RUN": layout.plane, "HAS_MINIMUM": layout.has_minimum,
    }  # fmt: skip


@cache
def book_on(name: str | None, device: torch.device) -> torch.Tensor | None:
    """The words of a codebook on a device, where decoders look for them; None for types that have none."""
    return None if name is None else torch.from_numpy(codebook_words(name)).to(device)


def check_bytes(nbytes: int, type: QuantType, shape: Sequence[int]) -> None:
    """Whether so many bytes of a type make a tensor `[*shape]`: GGUFError; UnsupportedError for a type without a kernel."""
    if type.name not in LAYOUTS and type.name not in FLOATS:
        raise UnsupportedError(f"no GPU kernel decodes {type.name}; expected one of {', '.join((*LAYOUTS, *FLOATS))}.")
    n, rest = divmod(prod(shape), type.block_size)
    if rest or min(shape, default=1) < 0 or n * type.block_bytes != nbytes:
        raise GGUFError(
            f"{nbytes} bytes of {type.name} do not make {list(shape)}; expected {type.block_bytes} for each "
            f"{type.block_size} values. The tensor is truncated or its type or shape is wrong."
        )


def _checked(
    data: torch.Tensor, type: QuantType, shape: tuple[int, ...], dtype: torch.dtype, out: torch.Tensor | None
) -> torch.Tensor:
    if dtype not in OUTPUTS:
        raise ConfigError(f"blocks were to become {dtype}; expected one of {', '.join(map(str, OUTPUTS))}.")
    if data.dtype != torch.uint8 or data.dim() != 1 or not data.is_contiguous():
        raise ConfigError(
            f"blocks of {type.name}: found {data.dtype} {list(data.shape)}; expected contiguous torch.uint8 [nbytes]."
        )
    check_bytes(data.numel(), type, shape)
    if data.device.type == "cpu" and not interpreted():
        raise UnsupportedError(
            f"blocks of {type.name} are on {data.device}; expected CUDA memory. Use quants.dequantize for the CPU."
        )
    if out is None:
        return torch.empty(shape, dtype=dtype, device=data.device)
    if out.dtype != dtype or out.shape != shape or not out.is_contiguous() or out.device != data.device:
        raise ConfigError(
            f"out is {out.dtype} {list(out.shape)} on {out.device}; expected contiguous {dtype} {list(shape)} on {data.device}."
        )
    return out
