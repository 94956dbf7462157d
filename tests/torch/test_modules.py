"""Layers with quantised weights: numbers, gradients, graphs, copies and states."""

import copy
import io
import os
import pickle

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from torch.nn import functional

from qtransformers.errors import ConfigError, UnsupportedError
from qtransformers.quants import quantize
from qtransformers.tensor import QTensor
from qtransformers.torch import (
    QuantEmbedding,
    QuantExperts,
    QuantJoined,
    QuantLinear,
    QuantTransposed,
    QuantWeight,
    ops,
)
from qtransformers.types import BY_NAME

RNG = np.random.default_rng(3)


def weight(*shape, type="Q8_0", name="w", accuracy="exact"):
    values = RNG.standard_normal(shape).astype(np.float32) * shape[-1] ** -0.5
    data = quantize(values.reshape(-1), BY_NAME[type])
    data.setflags(write=False)  # as what is mapped
    return QuantWeight(QTensor(name, BY_NAME[type], shape, data, "test.gguf"), accuracy=accuracy)


def x(*shape):
    return torch.from_numpy(RNG.standard_normal(shape).astype(np.float32))


def near(found, expected, rtol=1e-5):
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert (found - expected).abs().max() <= rtol * expected.abs().max()


@pytest.mark.parametrize("type_", ["F32", "F16", "Q4_0", "Q8_0"])
@pytest.mark.parametrize("shape", [(1, 64), (7, 64), (2, 3, 64), (0, 64), (64,)])
def test_linear(type_, shape):
    w, bias, a = weight(48, 64, type=type_), x(48), x(*shape)
    dense = w.dequantize()
    near(QuantLinear(w)(a), functional.linear(a, dense)) if a.numel() else None
    assert QuantLinear(w)(a).shape == (*shape[:-1], 48)
    if a.numel():
        near(QuantLinear(w, bias)(a), functional.linear(a, dense, bias))
        order = RNG.permutation(48)
        permuted = QuantLinear(w, bias, order)
        near(permuted(a), functional.linear(a, dense[order], bias))
        assert torch.equal(permuted.dequantize(), dense[order])


def test_rows_that_are_not_contiguous_and_other_dtypes():
    layer = QuantLinear(weight(48, 64), x(48))
    a = x(64, 5).T
    near(layer(a), layer(a.contiguous()), 0)
    half = layer.to(torch.bfloat16)
    y = half(a.bfloat16())
    assert y.dtype == torch.bfloat16 and half.weight.blocks.dtype == torch.uint8
    near(y.float(), functional.linear(a, half.weight.dequantize(torch.float32), half.bias.float()), 0.02)


@pytest.mark.parametrize("width", [64, 80])
@pytest.mark.parametrize("gradients", [False, True])
def test_results_are_in_the_dtype_of_the_input_whatever_that_of_the_bias(gradients, width):
    """Rows of 80 values are not whole blocks, and decoded."""
    layer = QuantLinear(weight(48, width), x(48))
    a = x(5, width).bfloat16().requires_grad_(gradients)
    y = layer(a)
    assert y.dtype == torch.bfloat16 and layer.bias.dtype == torch.float32
    near(y.float(), functional.linear(a.float(), layer.weight.dequantize(), layer.bias), 0.02)


@pytest.mark.parametrize("chunk", [100, 1 << 20])
def test_transposed(chunk, monkeypatch):
    """Decoded in several pieces or in one."""
    monkeypatch.setattr(ops, "CHUNK", chunk)
    w, stack, a = weight(48, 64), weight(5, 48, 64), x(3, 48)
    near(QuantTransposed(w)(a), a @ w.dequantize())
    found = QuantTransposed(stack)(a)
    near(found, torch.cat([a @ m for m in stack.dequantize()], 1))
    near(functional.linear(a, QuantTransposed(stack).dequantize()), found)


def test_joined():
    parts = [QuantLinear(weight(8, 64)), QuantTransposed(weight(2, 64, 32, type="Q4_0"))]
    order, bias, a = RNG.permutation(72), x(72), x(4, 64)
    joined = QuantJoined(parts, bias, order)
    near(joined(a), functional.linear(a, joined.dequantize(), bias))
    near(joined(a), torch.cat([p(a) for p in parts], -1)[:, order] + bias, 0)


def test_embedding():
    w = weight(40, 64, type="Q4_0")
    ids = torch.tensor([[0, 39, 3], [7, 7, 1]])
    assert torch.equal(QuantEmbedding(w)(ids), w.dequantize()[ids])
    near(QuantEmbedding(w, scale=8.0)(ids), 8 * w.dequantize()[ids])
    for wrong in (-1, 40, 2**32 + 1):
        with pytest.raises(ConfigError, match=f"id {wrong} was asked for; expected 0 to 39"):
            QuantEmbedding(w)(torch.tensor([wrong]))


def experts(act, biases=()):
    gate, up, down = (weight(6, *shape, name=n) for n, shape in (("g", (32, 64)), ("u", (32, 64)), ("d", (64, 32))))
    return QuantExperts(gate, up, down, act, biases)


def routed(n, k=3):
    ids = torch.stack([torch.from_numpy(RNG.permutation(6)[:k]) for _ in range(n)])
    return ids, x(n, k).softmax(-1)


@pytest.mark.parametrize("act", ops.GATES)
@pytest.mark.parametrize("n", [1, 9])
def test_experts(act, n):
    biases = (x(6, 32), x(6, 32), x(6, 64)) if act == "gpt_oss" else ()
    layer, a, (ids, weights) = experts(act, biases), 4 * x(n, 64), routed(n)
    near(layer(a, ids, weights), layer.one_by_one(a, ids, weights))
    expected = torch.zeros(n, 64)
    gate, up, down = (w.dequantize() for w in layer.stacks)
    added = biases if biases else [[0] * 6] * 3
    for t in range(n):
        for e, share in zip(ids[t].tolist(), weights[t], strict=True):
            inner = ops.GATES[act](gate[e] @ a[t] + added[0][e], up[e] @ a[t] + added[1][e])
            expected[t] += share * (down[e] @ inner + added[2][e])
    near(layer(a, ids, weights), expected)
    with pytest.raises(ConfigError, match="sent to expert 6"):
        layer(a, ids * 0 + 6, weights)


def test_gradients_are_those_of_the_decoded_weights():
    w, bias = weight(48, 64, type="Q4_0"), x(48)
    layer = QuantLinear(w, bias, RNG.permutation(48))
    layer.bias.requires_grad_()
    a = x(2, 5, 64).requires_grad_()
    layer(a).square().sum().backward()
    b = a.detach().clone().requires_grad_()
    dense_bias = bias.clone().requires_grad_()
    functional.linear(b, layer.dequantize(), dense_bias).square().sum().backward()
    near(a.grad, b.grad)
    near(layer.bias.grad, dense_bias.grad)
    assert all(not p.requires_grad for n, p in layer.named_parameters() if n != "bias")


def test_gradients_of_gradients():
    layer = QuantLinear(weight(32, 64))
    a, dense = x(3, 64).double().float().requires_grad_(), layer.dequantize()
    found = torch.autograd.grad(torch.autograd.grad(layer(a).pow(3).sum(), a, create_graph=True)[0].sum(), a)[0]
    b = a.detach().clone().requires_grad_()
    expected = torch.autograd.grad(torch.autograd.grad((b @ dense.T).pow(3).sum(), b, create_graph=True)[0].sum(), b)[0]
    near(found, expected, 1e-4)


def test_gradients_of_stacks_and_experts():
    stack, a = weight(5, 48, 64), x(3, 48).requires_grad_()
    QuantTransposed(stack)(a).square().sum().backward()
    b = a.detach().clone().requires_grad_()
    (b @ stack.dequantize()).square().sum().backward()
    near(a.grad, b.grad)
    layer, (ids, weights) = experts("silu"), routed(4)
    c, weights = x(4, 64).requires_grad_(), weights.requires_grad_()
    y = layer(c, ids, weights)
    with torch.no_grad():
        near(y.detach(), layer(c, ids, weights))
    y.sum().backward()
    step = 1e-2 * x(4, 64)
    with torch.no_grad():
        moved = (layer((c + step).double().float(), ids, weights) - layer(c - step, ids, weights)).sum() / 2
    assert abs(moved - (c.grad * step).sum()) < 1e-2 * max(1, abs(moved))
    assert weights.grad is not None and weights.grad.abs().sum() > 0


def test_compiled_without_a_break():
    """`aot_eager` traces gradients and shapes as every backend does, without a compiler of C++."""
    torch._dynamo.reset()
    inner, table = QuantLinear(weight(64, 64), x(64), RNG.permutation(64)), QuantEmbedding(weight(40, 64))
    layer, (tokens, weights) = experts("silu"), routed(5)

    def f(ids):
        h = inner(table(ids))
        return layer(h, tokens, weights) + QuantTransposed.forward(side, h)

    side = QuantTransposed(weight(64, 64))
    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    ids = torch.tensor([3, 1, 4, 1, 5])
    with torch.no_grad():
        near(compiled(ids), f(ids), 0)


def test_operators_keep_what_they_promise():
    """Fakes, gradients and schemas, as torch's own checker sees them."""
    w, stack = weight(48, 64), weight(2, 64, 32)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for op, arguments in (
        (ops.linear, (x(3, 64).requires_grad_(), w.blocks, w.quant_type.id, "w", "exact")),
        (ops.transposed, (x(3, 64).requires_grad_(), stack.blocks, 2, stack.quant_type.id, "w", "exact")),
        (ops.embedding, (torch.tensor([1, 2]), w.blocks, w.quant_type.id, "w")),
    ):
        torch.library.opcheck(op, arguments, test_utils=checks)


def test_copies_share_blocks_and_nothing_else():
    layer = QuantLinear(weight(48, 64), x(48))
    other = copy.deepcopy(layer)
    assert other.weight.blocks.data_ptr() == layer.weight.blocks.data_ptr() and other.weight is not layer.weight
    other.bias.data += 1
    other.to(torch.float16)
    assert layer.weight.dtype == torch.float32 and not torch.equal(layer.bias, other.bias.float())
    shared = torch.nn.ModuleList([QuantEmbedding(layer.weight), layer])
    again = copy.deepcopy(shared)
    assert again[0].weight is again[1].weight


def test_pickled_and_saved():
    layer, a = QuantLinear(weight(48, 64), x(48), RNG.permutation(48)), x(2, 64)
    for back in (pickle.loads(pickle.dumps(layer)), torch.load(_saved(layer), weights_only=False)):
        assert torch.equal(back(a), layer(a))


def _saved(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return file


def test_states_say_their_type():
    """Q4_0 and IQ4_NL have blocks of one size: only the type tells them apart. What is mapped is never written into."""
    layer, other, a = QuantLinear(weight(48, 64, type="Q4_0")), QuantLinear(weight(48, 64, type="Q4_0")), x(2, 64)
    assert not torch.equal(layer(a), other(a))
    layer.load_state_dict(torch.load(_saved(other.state_dict())))
    assert torch.equal(layer(a), other(a))
    state = other.state_dict()
    state["weight.type_id"] = torch.tensor(BY_NAME["IQ4_NL"].id)
    with pytest.raises(RuntimeError, match=r"weight\.blocks is IQ4_NL .* the model has Q4_0"):
        layer.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict({})
    with pytest.raises(RuntimeError, match="the model has Q4_0"):
        layer.load_state_dict({"weight.blocks": torch.zeros(4, 36, dtype=torch.uint8), "weight.type_id": torch.tensor(2)})  # fmt: skip


def test_what_computes_with_bytes_fails():
    layer = QuantLinear(weight(48, 64))
    with pytest.raises(TypeError):
        functional.linear(x(2, 64), layer.weight)


def test_refusals():
    layer = QuantLinear(weight(48, 64, name="blk.0.attn_q.weight"))
    with pytest.raises(ConfigError, match=r"blk\.0\.attn_q\.weight"):
        layer(x(2, 63))
    with pytest.raises(ConfigError, match="one device"):
        layer(torch.empty(2, 64, device="meta"))
    moved = copy.deepcopy(layer).to("meta")
    with pytest.raises(UnsupportedError, match="no kernels for quantised weights on meta"):
        moved(torch.empty(2, 64, device="meta"))
    with pytest.raises(UnsupportedError, match="whole numbers"):
        QuantWeight(QTensor("t", BY_NAME["I32"], (2, 4), np.zeros(32, np.uint8), "f.gguf"))
    with pytest.raises(ConfigError, match="accuracy"):
        weight(4, 32, accuracy="perfect")


def test_threads_are_torchs_and_change_nothing():
    layer, a = QuantLinear(weight(96, 64)), x(5, 64)
    one = layer(a)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(layer(a), one)
        if hasattr(os, "fork"):
            assert _in_child(lambda: torch.equal(layer(a), one))
    finally:
        torch.set_num_threads(threads)


def _in_child(check):
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = 0 if check() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
