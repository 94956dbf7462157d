"""Convolutions over blocks against torch's on the decoded weights: any size, stride, dilation and padding."""

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from qtransformers.errors import UnsupportedError
from qtransformers.quants import quantize
from qtransformers.tensor import QTensor
from qtransformers.torch import QuantLinear, QuantWeight, conv, ops
from qtransformers.types import BY_NAME

KINDS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def quantised(shape, type):
    values = np.random.default_rng(3).standard_normal(shape).astype(np.float32) * shape[1] ** -0.5
    data = quantize(values.reshape(-1), BY_NAME[type])
    data.setflags(write=False)  # as what is mapped
    return QuantWeight(QTensor("w", BY_NAME[type], shape, data, "test.gguf"), accuracy="exact")


def pair(like, type):
    """A layer over blocks, and torch's with the decoded weight."""
    weight = quantised((like.out_channels, like.weight[0].numel()), type)
    bias = None if like.bias is None else like.bias.detach()
    ours = conv.CONVS[like.__class__](like, weight, bias)
    like.weight = nn.Parameter(weight.dequantize().view(like.weight.shape))
    return ours, like


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def near(found, expected, rtol=1e-5):
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert (found - expected).abs().max() <= rtol * expected.abs().max()


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_conv(data):
    axes = data.draw(st.integers(1, 3))
    kernel = data.draw(st.tuples(*[st.integers(1, 3)] * axes))
    width = int(np.prod(kernel))
    type = data.draw(st.sampled_from(["F32", "F16", "Q8_0", "Q4_K"]))
    # filters that are whole blocks, and those that cross them
    block = BY_NAME[type].block_size
    inputs = data.draw(st.integers(1, 3)) * (block // np.gcd(block, width) if data.draw(st.booleans()) else 1)
    out = 2 * block // np.gcd(block, inputs * width)
    mode = data.draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    same = data.draw(st.booleans())
    stride = 1 if same else data.draw(st.tuples(*[st.integers(1, 3)] * axes))
    padding = "same" if same else data.draw(st.tuples(*[st.integers(0, 2)] * axes))
    dilation = data.draw(st.tuples(*[st.integers(1, 2)] * axes))
    like = KINDS[axes](inputs, int(out), kernel, stride, padding, dilation, bias=data.draw(st.booleans()), padding_mode=mode)  # fmt: skip
    size = data.draw(st.tuples(*[st.integers(5, 9)] * axes))
    assume(inputs * int(out) * width * np.prod(size) < 3e7)
    ours, theirs = pair(like, type)
    x = noise(data.draw(st.integers(1, 2)), inputs, *size)
    limit = data.draw(st.sampled_from([1, 50 * inputs * width, 1 << 22]))
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(ops, "CHUNK", limit)
        patch.setattr(conv, "FILTERS", limit)
        patch.setattr(conv, "MANY", data.draw(st.sampled_from([0, 1 << 22])))  # by filters, or by windows
        near(ours(x), theirs(x))
        near(ours(x[0]), theirs(x[0]))
        assert torch.equal(ours.dequantize(), theirs.weight)


@pytest.mark.parametrize("type", ["Q8_0", "Q4_K"])
@pytest.mark.parametrize("inputs", [256, 32])
def test_gradients_reach_input_and_bias(type, inputs):
    ours, theirs = pair(nn.Conv2d(inputs, 8, 3, padding=1), type)
    ours.requires_grad_(True)
    x, y = (noise(1, inputs, 6, 6).requires_grad_() for _ in range(2))
    ours(x).square().sum().backward()
    theirs(y).square().sum().backward()
    near(x.grad, y.grad, 1e-4)
    near(ours.bias.grad, theirs.bias.grad, 1e-4)


@pytest.mark.parametrize("chunk", [1, 3000, 1 << 22])
@pytest.mark.parametrize("shape", [(12, 64), (16, 320), (256, 3), (4, 192)])
def test_rows_that_cross_blocks(shape, chunk, monkeypatch):
    """Files of ComfyUI-GGUF keep matrices of 320 columns as rows of 256."""
    monkeypatch.setattr(ops, "CHUNK", chunk)
    weight = quantised(shape, "Q4_K")
    assert weight.blocks.shape == (shape[0] * shape[1] // 256, 144) and not weight.whole
    layer, dense = QuantLinear(weight, noise(shape[0])), weight.dequantize()
    assert (layer.out_features, layer.in_features) == shape and dense.shape == shape
    x = noise(2, 5, shape[1])
    near(layer(x), nn.functional.linear(x, dense, layer.bias))
    a, b = (x.clone().requires_grad_() for _ in range(2))
    layer(a).square().sum().backward()
    nn.functional.linear(b, dense, layer.bias).square().sum().backward()
    near(a.grad, b.grad, 1e-4)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    near(compiled(x), layer(x))


@pytest.mark.parametrize("accuracy, bound", [("fast", 0.03), ("high", 1e-4)])
def test_products_in_integers(accuracy, bound):
    weight = quantised((16, 32 * 9), "Q8_0")
    weight.accuracy = accuracy
    like = nn.Conv2d(32, 16, 3, padding=1, bias=False)
    ours = conv.QuantConv2d(like, weight)
    like.weight = nn.Parameter(ours.dequantize())
    x = noise(1, 32, 30, 30)
    assert ours._blockwise(x)
    near(ours(x), like(x), bound)


def test_half_precision():
    ours, theirs = pair(nn.Conv2d(32, 8, 3, padding=1), "Q8_0")
    x = noise(1, 32, 6, 6)
    half = ours.to(torch.bfloat16)
    y = half(x.bfloat16())
    assert y.dtype == torch.bfloat16 and half.weight.blocks.dtype == torch.uint8
    near(y.float(), theirs(x), 0.02)


def test_groups_are_refused():
    with pytest.raises(UnsupportedError, match="w: a convolution in 4 groups"):
        conv.QuantConv2d(nn.Conv2d(32, 32, 3, groups=4), quantised((32, 72), "F32"))
