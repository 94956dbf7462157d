"""Layers with quantised weights, in place of those of a torch model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from qtransformers.torch import ops
from qtransformers.torch.weight import QuantWeight

Tensor = torch.Tensor


def _keep_order(module: QuantLinear | QuantJoined, order: Any) -> None:
    """A buffer only where there is an order: tools that move buffers trip over one that is None."""
    if order is None:
        module.order = None
    else:
        module.register_buffer("order", torch.as_tensor(order, dtype=torch.int64), persistent=False)


def _parameter(values: Tensor | None) -> nn.Parameter | None:
    return None if values is None else nn.Parameter(values, requires_grad=False)


class QuantLinear(nn.Linear):
    """`x [..., in] @ W [out, in].T + bias [out]`, by the kernels that read W's blocks; gradients reach x and bias.

    `order [out]` says which row of the file each output is, where that differs (q and k of Llama): outputs are permuted,
    not weights.
    """

    weight: QuantWeight  # type: ignore[assignment]
    order: Tensor | None

    def __init__(self, weight: QuantWeight, bias: Tensor | None = None, order: Any = None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape[:-1].numel(), weight.shape[-1]
        self.weight = weight
        self.register_parameter("bias", _parameter(bias))
        _keep_order(self, order)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., out]`, in x's dtype."""
        if self.order is None:
            y: Tensor = self.weight(x, "multiply", self.bias)
            return y
        return _finished(self.weight(x), self.order, self.bias)

    def dequantize(self) -> Tensor:
        """The weight `[out, in]` in the order of the outputs."""
        values = self.weight.dequantize().view(self.out_features, self.in_features)
        return values if self.order is None else values[self.order]

    def extra_repr(self) -> str:
        """As a linear layer's."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class QuantTransposed(nn.Module):
    """`x [..., in] @ W` for a weight, or each of a stack, that is stored as `[in, out]`; slower, as rows must be decoded."""

    def __init__(self, weight: QuantWeight) -> None:
        super().__init__()
        self.in_features = weight.shape[-2]
        self.out_features = weight.shape[-1] * (weight.shape[0] if len(weight.shape) == 3 else 1)
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """`[..., out]`, in x's dtype."""
        y: Tensor = self.weight(x, "multiply_transposed")
        return y

    def dequantize(self) -> Tensor:
        """The weight as a linear layer has it, `[out, in]`."""
        return self.weight.dequantize().transpose(-1, -2).reshape(self.out_features, self.in_features)


class QuantJoined(nn.Module):
    """A linear layer whose weight a file keeps in several tensors: their outputs side by side, then in `order [out]`."""

    order: Tensor | None

    def __init__(
        self, parts: Sequence[QuantLinear | QuantTransposed], bias: Tensor | None = None, order: Any = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = parts[0].in_features, sum(p.out_features for p in parts)
        self.parts = nn.ModuleList(parts)
        self.bias = _parameter(bias)
        _keep_order(self, order)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., out]`, in x's dtype."""
        return _finished(torch.cat([part.forward(x) for part in self._all], -1), self.order, self.bias)

    @property
    def _all(self) -> list[QuantLinear | QuantTransposed]:
        return [part for part in self.parts if isinstance(part, (QuantLinear, QuantTransposed))]

    def dequantize(self) -> Tensor:
        """The weight `[out, in]` in the order of the outputs."""
        values = torch.cat([part.dequantize() for part in self._all])
        return values if self.order is None else values[self.order]


def _finished(y: Tensor, order: Tensor | None, bias: Tensor | None) -> Tensor:
    if order is not None:
        y = y.index_select(-1, order)
    return y if bias is None else y + bias


class QuantEmbedding(nn.Embedding):
    """Rows of a quantised weight `[n, width]` by number, times `scale` where a model has one."""

    weight: QuantWeight  # type: ignore[assignment]

    def __init__(self, weight: QuantWeight, padding_idx: int | None = None, scale: float | None = None) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = weight.shape
        self.padding_idx, self.scale = padding_idx, scale
        self.weight = weight

    def forward(self, input: Tensor) -> Tensor:
        """`[..., width]` of ids `[...]`, in the model's dtype."""
        y: Tensor = self.weight(input, "rows")
        return y if self.scale is None else y * torch.tensor(self.scale, dtype=y.dtype)

    def dequantize(self) -> Tensor:
        """The weight `[n, width]`."""
        return self.weight.dequantize()

    def extra_repr(self) -> str:
        """As an embedding's."""
        return f"{self.num_embeddings}, {self.embedding_dim}"


class QuantExperts(nn.Module):
    """The experts of a layer as transformers calls them: `(x [T, n_embd], ids [T, k], weights [T, k]) -> [T, n_embd]`.

    `gate`, `up` and `down` are stacks `[n, out, in]`, `biases` one `[n, out]` for each or none; `act` joins gate and up
    (silu, gelu, gpt_oss). Gradients reach x and weights, at the price of one product an expert. The class that was here had
    gate and up in one stack, their rows `interleaved` or not, each matrix `transposed` or not.
    """

    def __init__(
        self, gate: QuantWeight, up: QuantWeight, down: QuantWeight, act: str, biases: Sequence[Tensor] = (),
        interleaved: bool = False, transposed: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_experts, self.act, self.interleaved, self.transposed = gate.shape[0], act, interleaved, transposed
        self.gate, self.up, self.down = gate, up, down
        self.biases = nn.ParameterList([nn.Parameter(b, requires_grad=False) for b in biases])

    @property
    def stacks(self) -> tuple[QuantWeight, QuantWeight, QuantWeight]:
        """Gate, up and down."""
        return self.gate, self.up, self.down

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """`[T, n_embd]`, in x's dtype; ConfigError for an expert that there is not."""
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        ids, weights = (t.reshape(len(x), -1) for t in (top_k_index, top_k_weights))
        compiling = torch.compiler.is_compiling()
        if not compiling and ops.in_graph(x, weights, *self.biases):
            return self.one_by_one(x, ids, weights).view(hidden_states.shape)
        run = ops.experts if compiling else ops.mix
        y = run(
            x, ids, weights, [w.blocks for w in self.stacks], list(self.biases), self.num_experts,
            [w.quant_type.id for w in self.stacks], "\n".join(w.name for w in self.stacks), self.act, self.gate.accuracy,
        )  # fmt: skip
        return y.to(hidden_states.dtype).view(hidden_states.shape)

    def dequantize(self) -> dict[str, Tensor]:
        """The parameters that the class has instead, by their names there."""
        gate, up, down = (w.dequantize() for w in self.stacks)
        found = {"gate_up_proj": self._joined(gate, up), "down_proj": down}
        if self.transposed:
            found = {name: w.transpose(1, 2).contiguous() for name, w in found.items()}
        if len(self.biases):
            gate_bias, up_bias, down_bias = self.biases
            found |= {"gate_up_proj_bias": self._joined(gate_bias, up_bias), "down_proj_bias": down_bias}
        return found

    def _joined(self, gate: Tensor, up: Tensor) -> Tensor:
        return torch.stack((gate, up), 2).flatten(1, 2) if self.interleaved else torch.cat((gate, up), 1)

    def one_by_one(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """The same by plain products, which gradients can follow."""
        y = torch.zeros_like(x)
        for expert in torch.unique(ids).tolist():
            token, slot = torch.where(ids == expert)
            gate, up = (self._product(i, expert, x[token]) for i in (0, 1))
            out = self._product(2, expert, ops.GATES[self.act](gate, up))
            y = y.index_add(0, token, (out * weights[token, slot, None]).to(y.dtype))
        return y

    def _product(self, i: int, expert: int, x: Tensor) -> Tensor:
        y = self.stacks[i].part(expert).multiply(x)
        return y + self.biases[i][expert] if len(self.biases) else y
