"""Convolutions with quantised weights, in place of those of a torch model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from qtransformers.errors import UnsupportedError
from qtransformers.torch import ops
from qtransformers.torch.modules import _parameter
from qtransformers.torch.weight import QuantWeight

Tensor = torch.Tensor
FILTERS = 4 * ops.CHUNK  # values of filters that are decoded at a time
MANY = 512  # windows from which decoding filters costs less than products of floats lose to torch's convolution
KEPT = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "output_padding", "transposed", "_reversed_padding_repeated_twice")  # fmt: skip


class QuantConv(nn.Module):
    """A convolution with weight `[out, in * kernel]`: on the CPU products of its blocks with the windows, a bounded part at a time.

    On a GPU, where filters are not whole blocks, and where products of floats with many windows would be slower, filters are
    decoded for each call, a bounded part at a time, and go through torch's convolution.
    UnsupportedError for groups, whose filters are too narrow for products.
    """

    weight: QuantWeight

    def __init__(self, like: nn.Module, weight: QuantWeight, bias: Tensor | None = None) -> None:
        """`like` is the layer (without memory or with it) whose place it takes."""
        nn.Module.__init__(self)
        if reason := why_not(like):
            raise UnsupportedError(f"{weight.name}: {reason}.")
        for name in KEPT:
            setattr(self, name, getattr(like, name))
        self.weight = weight
        self.bias = _parameter(bias)

    def forward(self, input: Tensor) -> Tensor:
        """`[n, out, ...]` of `[n, in, ...]`, or both without n; in the dtype of the input."""
        axes = len(self.kernel_size)
        x = input if input.ndim == axes + 2 else input[None]
        if any(self._reversed_padding_repeated_twice):
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = functional.pad(x, self._reversed_padding_repeated_twice, mode)
        y = self._by_windows(x) if self._blockwise(x) else self._by_filters(x)
        if self.bias is not None:
            y = y + self.bias.view(-1, *[1] * axes)
        return y if input.ndim == axes + 2 else y[0]

    def _blockwise(self, x: Tensor) -> bool:
        if x.device.type != "cpu" or not self.weight.whole:
            return False
        in_integers = self.weight.quant_type.is_quantized and self.weight.accuracy != "exact"
        pixels = len(x) * math.prod(x.shape[2:]) // math.prod(self.stride)
        return in_integers or pixels < MANY or ops.in_graph(x)  # gradients would keep the decoded filters

    def _by_windows(self, x: Tensor) -> Tensor:
        windows = _windows(x, self.kernel_size, self.stride, self.dilation)
        positions = windows.shape[2 : 2 + len(self.kernel_size)]
        width = self.weight.shape[-1]
        y = x.new_empty((len(x), self.out_channels, *positions))
        for n, some in itertools.product(range(len(x)), _bounded(positions, max(1, ops.CHUNK // width))):
            place = (n, slice(None), *some)
            part = windows[place].movedim(0, len(positions))
            product = self.weight(part.reshape(-1, width))
            y[place] = product.T.reshape(-1, *part.shape[: len(positions)])
        return y

    def _by_filters(self, x: Tensor) -> Tensor:
        conv = CONVOLUTIONS[len(self.kernel_size)]

        def product(x: Tensor, filters: Tensor) -> Tensor:
            filters = filters.view(-1, self.in_channels, *self.kernel_size).to(x.dtype)
            y: Tensor = conv(x, filters, None, self.stride, 0, self.dilation)
            return y

        parts: list[Tensor] = self.weight(x, "by_slices", product, FILTERS)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def dequantize(self) -> Tensor:
        """The weight `[out, in, *kernel]`."""
        return self.weight.dequantize().view(self.out_channels, self.in_channels, *self.kernel_size)

    in_channels: int
    out_channels: int
    groups: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding_mode: str
    _reversed_padding_repeated_twice: Sequence[int]


class QuantConv1d(QuantConv, nn.Conv1d):  # type: ignore[misc]
    """See QuantConv: `[n, in, length]`."""


class QuantConv2d(QuantConv, nn.Conv2d):  # type: ignore[misc]
    """See QuantConv: `[n, in, height, width]`."""


class QuantConv3d(QuantConv, nn.Conv3d):  # type: ignore[misc]
    """See QuantConv: `[n, in, frames, height, width]`."""


CONVS: dict[type[nn.Module], type[QuantConv]] = {nn.Conv1d: QuantConv1d, nn.Conv2d: QuantConv2d, nn.Conv3d: QuantConv3d}
CONVOLUTIONS: dict[int, Any] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def why_not(conv: Any) -> str:
    """Why a layer cannot compute with blocks; "" where it can."""
    if conv.groups != 1:
        return f"a convolution in {conv.groups} groups, whose filters are too narrow for products; decode its weight"
    return "" if not conv.transposed else "a transposed convolution; decode its weight"


def _windows(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """What the filters see of `x [n, in, *size]`: `[n, in, *positions, *kernel]`, without a copy."""
    size, steps = x.shape[2:], x.stride()[2:]
    positions = [(s - d * (k - 1) - 1) // t + 1 for s, k, t, d in zip(size, kernel, stride, dilation, strict=True)]
    shape = (*x.shape[:2], *positions, *kernel)
    by = (*x.stride()[:2], *(a * t for a, t in zip(steps, stride, strict=True)), *(a * d for a, d in zip(steps, dilation, strict=True)))  # fmt: skip
    return x.as_strided(shape, by)


def _bounded(shape: Sequence[int], limit: int) -> Iterator[tuple[int | slice, ...]]:
    """Indices of parts of a shape that cover it, of at most `limit` positions each."""
    axis = next(a for a in range(len(shape)) if math.prod(shape[a + 1 :]) <= limit)
    step = max(1, limit // max(1, math.prod(shape[axis + 1 :])))
    for before in itertools.product(*map(range, shape[:axis])):
        for start in range(0, shape[axis], step):
            yield (*(slice(i, i + 1) for i in before), slice(start, start + step))
