"""QuantWeight: the blocks of a GGUF tensor as part of a torch model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from qtransformers.errors import ConfigError
from qtransformers.kernels.table import ACCURACY, check, check_accuracy
from qtransformers.tensor import QTensor
from qtransformers.torch import ops
from qtransformers.types import TYPES, QuantType

Tensor = torch.Tensor


class QuantWeight(nn.Module):
    """A matrix `[out, in]`, or a stack `[n, out, in]`, of quantised blocks, which stay where they lie in the file.

    It stands where a layer has its `weight`, without being a tensor: what does not know it fails instead of computing with
    bytes. `dtype` is that of the model around it, and changes with `model.to(dtype)`; the blocks never do. Copies share
    the blocks, which nothing writes to; `load_state_dict` takes those of a state of the same type and shape in their place.
    Rows that are not whole blocks (comfy.gguf.orig_shape) have `blocks [n, block_bytes]`, and are decoded for each product.
    """

    blocks: Tensor  # [rows, row_bytes] uint8
    type_id: Tensor  # a number, so that states say what their blocks are
    like: Tensor  # empty: its dtype is the model's

    def __init__(self, tensor: QTensor, dtype: torch.dtype = torch.float32, accuracy: str = ACCURACY) -> None:
        """`accuracy` is that of products (kernels.cpu.bind). UnsupportedError for a type that holds no floats."""
        super().__init__()
        check("linear", tensor.type, "cpu", tensor.name, tensor.file)
        check_accuracy(accuracy)
        self.name, self.file, self.accuracy = tensor.name, tensor.file, accuracy
        self.quant_type: QuantType = tensor.type
        self.shape = torch.Size(tensor.shape)
        self.register_buffer("blocks", _mapped(tensor))
        self.register_buffer("type_id", torch.tensor(tensor.type.id, dtype=torch.int32))
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)

    @property
    def whole(self) -> bool:
        """Whether rows are whole blocks."""
        return self.shape[-1] % self.quant_type.block_size == 0

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.like.dtype

    @property
    def device(self) -> torch.device:
        """Where the blocks are."""
        return self.blocks.device

    @property
    def tensor(self) -> QTensor:
        """The same blocks as a QTensor, in main memory: without a copy where they are there. ConfigError where hooks took them away."""
        if self.blocks.is_meta:
            raise ConfigError(f"{self.name} has no values: the model is offloaded. Load it in full, without hooks that move its layers.")  # fmt: skip
        return QTensor(self.name, self.quant_type, tuple(self.shape), self.blocks.cpu().numpy().reshape(-1), self.file)

    def forward(self, x: Tensor, operation: str = "multiply", *more: Any) -> Tensor:
        """One of `multiply`, `multiply_transposed`, `rows` and `by_slices`: called as a module, so that hooks which bring blocks to a device run."""
        run: Callable[..., Tensor] = getattr(self, operation)
        return run(x, *more)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The values `[*shape]`, in `dtype` or that of the model."""
        return ops.dequantize(self.blocks, self.quant_type).view(self.shape).to(dtype or self.dtype)

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x [..., in] @ W.T + bias`: `[..., rows]` in x's dtype; of a stack, all its matrices one after the other."""
        flat = x.reshape(-1, x.shape[-1])
        given = flat, self.blocks, self.quant_type.id, self.name, self.accuracy
        if self.whole and not (ops.in_graph(x) if bias is None else ops.in_graph(x, bias)):
            y, bias = ops.multiply(*given, bias), None
        elif self.whole:
            y = ops.linear(*given)
        else:
            y = ops.across(flat, self.blocks, *self.shape, self.quant_type.id, self.name).to(x.dtype)
        y = y.view(*x.shape[:-1], y.shape[-1])
        return y if bias is None else y + bias.to(y.dtype)

    def multiply_transposed(self, x: Tensor) -> Tensor:
        """`x [..., out] @ W`: `[..., in]` in x's dtype; of a stack `[n, out, in]`, `[..., n * in]`."""
        n = self.shape[0] if len(self.shape) == 3 else 1
        flat = x.reshape(-1, x.shape[-1])
        y = ops.transposed(flat, self.blocks, n, self.quant_type.id, self.name, self.accuracy)
        return y.view(*x.shape[:-1], y.shape[-1]).to(x.dtype)

    def rows(self, ids: Tensor) -> Tensor:
        """Rows by number `[...]`: `[..., in]` in the model's dtype."""
        pick = ops.embedding if torch.compiler.is_compiling() else ops.pick
        y = pick(ids.reshape(-1), self.blocks, self.quant_type.id, self.name)
        return y.view(*ids.shape, y.shape[-1]).to(self.dtype)

    def slices(self, together: int) -> Iterator[tuple[slice, Tensor]]:
        """Rows `[n, in]` of a matrix, decoded to f32 about `together` values at a time, and which they are."""
        for rows in ops.slices(self.shape, self.quant_type, together):
            yield rows, ops.decoded(self.blocks, rows, self.shape[-1], self.quant_type.id, self.name)

    def by_slices(self, x: Tensor, product: Callable[[Tensor, Tensor], Tensor], together: int) -> list[Tensor]:
        """`product` of x and each of `slices`."""
        return [product(x, values) for _, values in self.slices(together)]

    def part(self, i: int) -> QuantWeight:
        """Matrix `i` of a stack, over the same blocks."""
        n = self.shape[1]
        return self._over(self.blocks[i * n : (i + 1) * n], self.shape[1:])

    def extra_repr(self) -> str:
        """Shape and type."""
        return f"{list(self.shape)}, {self.quant_type.name}"

    def _over(self, blocks: Tensor, shape: torch.Size) -> QuantWeight:
        new = QuantWeight.__new__(QuantWeight)
        nn.Module.__init__(new)
        new.name, new.file, new.accuracy, new.quant_type, new.shape = (
            self.name,
            self.file,
            self.accuracy,
            self.quant_type,
            shape,
        )
        new.register_buffer("blocks", blocks)
        new.register_buffer("type_id", self.type_id.clone())
        new.register_buffer("like", self.like.clone(), persistent=False)
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantWeight:
        memo[id(self)] = new = self._over(self.blocks, self.shape)
        return new

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        names = [prefix + key for key in ("blocks", "type_id")]
        if absent := [name for name in names if name not in state_dict]:
            missing_keys += absent
            return
        blocks, type_id = (state_dict[name] for name in names)
        found, here = TYPES.get(int(type_id)), f"{self.quant_type.name} in {list(self.blocks.shape)} bytes"
        if found is not self.quant_type or blocks.shape != self.blocks.shape or blocks.dtype != torch.uint8:
            kind = found.name if found else f"type {int(type_id)}"
            error_msgs.append(f"{names[0]} is {kind} in {list(blocks.shape)} {blocks.dtype}; the model has {here}. Use the state of the same GGUF file.")  # fmt: skip
            return
        self.blocks = blocks.detach().to(self.blocks.device)  # never written into: those of a file are mapped read-only


def _mapped(tensor: QTensor) -> Tensor:
    """The bytes `[n_rows, row_bytes]` without a copy; `[n, block_bytes]` where rows are not whole blocks."""
    kind = tensor.type
    width = tensor.row_bytes if tensor.shape[-1] % kind.block_size == 0 else kind.block_bytes
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing writes to it
        return torch.from_numpy(tensor.data).view(-1, width)
