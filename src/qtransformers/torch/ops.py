"""Products with quantised weights as torch operators: what autograd and torch.compile see, and the kernels behind.

Blocks are a `[rows, row_bytes]` uint8 tensor; nothing is kept between calls, so that they may move, be copied or shared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch

from qtransformers.errors import ConfigError, UnsupportedError
from qtransformers.types import TYPES, QuantType

Tensor = torch.Tensor
CHUNK = 4 << 20  # values that are decoded at a time where a product needs them as floats
HOMES = {"cpu": "on_host", "cuda": "on_gpu"}  # kind of device -> the module that computes there


@cache
def side(kind: str) -> ModuleType:
    """The kernels of a kind of device; UnsupportedError where there are none."""
    if kind not in HOMES:
        raise UnsupportedError(f"there are no kernels for quantised weights on {kind}; expected {' or '.join(HOMES)}. Use model.to('cpu').")  # fmt: skip
    return import_module(f"qtransformers.torch.{HOMES[kind]}")


def _bound(blocks: Tensor, shape: tuple[int, ...], type_id: int, name: str, accuracy: str, *given: Tensor) -> Any:
    for x in given:
        if x.device != blocks.device:
            raise ConfigError(f"{name} is on {blocks.device}, what it is to meet on {x.device}; move model or inputs, so that both are on one device.")  # fmt: skip
    return side(blocks.device.type).bound(blocks, shape, type_id, name, accuracy)


def _width(blocks: Tensor, type_id: int) -> int:
    kind = TYPES[type_id]
    return blocks.shape[1] // kind.block_bytes * kind.block_size


def multiply(x: Tensor, blocks: Tensor, type_id: int, name: str, accuracy: str, bias: Tensor | None = None) -> Tensor:
    """`x [T, in] @ W [rows, in].T + bias`: `[T, rows]` in x's dtype, by the kernels of the device; no gradients."""
    w = _bound(blocks, (blocks.shape[0], _width(blocks, type_id)), type_id, name, accuracy, x)
    return side(blocks.device.type).multiply(x, w, bias)


@torch.library.custom_op("qtransformers::linear", mutates_args=())
def linear(x: Tensor, blocks: Tensor, type_id: int, name: str, accuracy: str) -> Tensor:
    """`multiply` for graphs and gradients."""
    return multiply(x, blocks, type_id, name, accuracy)


@linear.register_fake
def _(x: Tensor, blocks: Tensor, type_id: int, name: str, accuracy: str) -> Tensor:
    return x.new_empty((x.shape[0], blocks.shape[0]))


@torch.library.custom_op("qtransformers::transposed", mutates_args=())
def transposed(x: Tensor, blocks: Tensor, n: int, type_id: int, name: str, accuracy: str) -> Tensor:
    """`x [T, in] @ W` for each of `n` matrices `[in, out]` stored one after the other: `[T, n * out]` f32.

    Rows of blocks lie across this product, so it decodes them, CHUNK values at a time.
    """
    tall, wide = blocks.shape[0] // n, _width(blocks, type_id)
    _like(x, tall, name)
    x = x.detach().to(torch.float32)
    y = x.new_zeros((len(x), n, wide))
    together, step = max(1, CHUNK // (tall * wide)), max(1, CHUNK // wide)
    for i in range(0, n, together):
        m = min(together, n - i)
        for j in range(0, tall, step if m == 1 else tall):
            rows = slice(i * tall + j, i * tall + j + min(step, tall - j) if m == 1 else (i + m) * tall)
            w = dequantize(blocks[rows], TYPES[type_id]).view(m, -1, wide)
            y[:, i : i + m] += torch.einsum("ti,nio->tno", x[:, j : j + w.shape[1]], w)
    return y.view(len(x), n * wide)


@transposed.register_fake
def _(x: Tensor, blocks: Tensor, n: int, type_id: int, name: str, accuracy: str) -> Tensor:
    return x.new_empty((x.shape[0], n * _width(blocks, type_id)), dtype=torch.float32)


def slices(shape: Sequence[int], type: QuantType, together: int) -> Iterator[slice]:
    """The rows of a matrix, about `together` values at a time, cut where a block ends."""
    unit = type.block_size // math.gcd(shape[1], type.block_size)
    step = max(1, together // (unit * shape[1])) * unit
    yield from (slice(i, min(i + step, shape[0])) for i in range(0, shape[0], step))


def decoded(blocks: Tensor, rows: slice, width: int, type_id: int, name: str) -> Tensor:
    """Rows of a matrix whose blocks lie one after the other, as `slices` cut them: `[n, width]` f32."""
    kind = TYPES[type_id]
    flat = blocks.view(-1, kind.block_bytes)
    first, last = (i * width // kind.block_size for i in (rows.start, rows.stop))
    ids = torch.arange(first, last, device=blocks.device)
    return pick(ids, flat, type_id, name).view(-1, width)


@torch.library.custom_op("qtransformers::across", mutates_args=())
def across(x: Tensor, blocks: Tensor, out: int, width: int, type_id: int, name: str) -> Tensor:
    """`x [T, in] @ W [out, in].T` of a weight whose rows are not whole blocks: `[T, out]` f32, CHUNK values decoded at a time."""
    _like(x, width, name)
    x, y = x.detach().to(torch.float32), x.new_empty((len(x), out), dtype=torch.float32)
    for rows in slices((out, width), TYPES[type_id], CHUNK):
        torch.matmul(x, decoded(blocks, rows, width, type_id, name).T, out=y[:, rows])
    return y


@across.register_fake
def _(x: Tensor, blocks: Tensor, out: int, width: int, type_id: int, name: str) -> Tensor:
    return x.new_empty((x.shape[0], out), dtype=torch.float32)


@torch.library.custom_op("qtransformers::across_back", mutates_args=())
def across_back(x: Tensor, blocks: Tensor, out: int, width: int, type_id: int, name: str) -> Tensor:
    """`x [T, out] @ W [out, in]` of such a weight: `[T, in]` f32."""
    _like(x, out, name)
    x, y = x.detach().to(torch.float32), x.new_zeros((len(x), width), dtype=torch.float32)
    for rows in slices((out, width), TYPES[type_id], CHUNK):
        y += x[:, rows] @ decoded(blocks, rows, width, type_id, name)
    return y


@across_back.register_fake
def _(x: Tensor, blocks: Tensor, out: int, width: int, type_id: int, name: str) -> Tensor:
    return x.new_empty((x.shape[0], width), dtype=torch.float32)


def _like(x: Tensor, width: int, name: str) -> None:
    if x.shape[1] != width:
        raise ConfigError(f"{name}: x is {list(x.shape)}; expected [T, {width}].")


def dequantize(blocks: Tensor, type: QuantType) -> Tensor:
    """Whole rows of blocks `[rows, row_bytes]` as f32 `[rows, n]`, where they are."""
    return side(blocks.device.type).dequantize(blocks, type)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.rest, ctx.dtype = inputs[2:], inputs[0].dtype


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (blocks,) = ctx.saved_tensors
    return transposed(grad, blocks, 1, *ctx.rest).to(ctx.dtype), None, None, None, None


def _transposed_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (blocks,) = ctx.saved_tensors
    n, *rest = ctx.rest
    parts = zip(grad.chunk(n, 1), blocks.chunk(n), strict=True)
    grads = [linear(part.contiguous(), w, *rest) for part, w in parts]
    return torch.stack(grads).sum(0).to(ctx.dtype), None, None, None, None, None


def _across_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (blocks,) = ctx.saved_tensors
    return across_back(grad, blocks, *ctx.rest).to(ctx.dtype), None, None, None, None, None


across.register_autograd(_across_backward, setup_context=_remember)
linear.register_autograd(_linear_backward, setup_context=_remember)
transposed.register_autograd(_transposed_backward, setup_context=_remember)


def pick(ids: Tensor, blocks: Tensor, type_id: int, name: str) -> Tensor:
    """Rows `ids [T]` of a matrix, decoded: `[T, n]` f32. An id without a row: ConfigError on the CPU, NaN on a GPU."""
    w = _bound(blocks, (blocks.shape[0], _width(blocks, type_id)), type_id, name, "exact", ids)
    return side(blocks.device.type).pick(ids, w)


@torch.library.custom_op("qtransformers::embedding", mutates_args=())
def embedding(ids: Tensor, blocks: Tensor, type_id: int, name: str) -> Tensor:
    """`pick` for graphs."""
    return pick(ids, blocks, type_id, name)


@embedding.register_fake
def _(ids: Tensor, blocks: Tensor, type_id: int, name: str) -> Tensor:
    return ids.new_empty((ids.shape[0], _width(blocks, type_id)), dtype=torch.float32)


def mix(
    x: Tensor, ids: Tensor, weights: Tensor, stacks: list[Tensor], biases: list[Tensor],
    n: int, types: list[int], names: str, act: str, accuracy: str,
) -> Tensor:  # fmt: skip
    """Each token of `x [T, n_embd]` through its experts `ids [T, k]`, summed with `weights [T, k]`: `[T, n_embd]` f32.

    `stacks` are gate, up and down of all `n` experts, one after the other; `biases` are as many `[n, out]`, or none;
    `names` are those of the tensors, one a line. An expert that there is not: ConfigError on the CPU.
    """
    bound = [
        _bound(b, (n, b.shape[0] // n, _width(b, t)), t, name, accuracy, x)
        for b, t, name in zip(stacks, types, names.split("\n"), strict=True)
    ]
    return side(stacks[0].device.type).mix(x, ids, weights, bound, act, biases)


@torch.library.custom_op("qtransformers::experts", mutates_args=())
def experts(
    x: Tensor, ids: Tensor, weights: Tensor, stacks: list[Tensor], biases: list[Tensor],
    n: int, types: list[int], names: str, act: str, accuracy: str,
) -> Tensor:  # fmt: skip
    """`mix` for graphs."""
    return mix(x, ids, weights, stacks, biases, n, types, names, act, accuracy)


@experts.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)


def in_graph(*xs: Tensor) -> bool:
    """Whether a call must go through an operator: something records it."""
    return torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(x.requires_grad for x in xs))


def _gpt_oss(gate: Tensor, up: Tensor) -> Tensor:
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return (up + 1) * gate * torch.sigmoid(1.702 * gate)


# What joins gate and up of an expert, by the names that kernels know
GATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": lambda gate, up: torch.nn.functional.silu(gate) * up,
    "gelu": lambda gate, up: torch.nn.functional.gelu(gate, approximate="tanh") * up,
    "gpt_oss": _gpt_oss,
}
