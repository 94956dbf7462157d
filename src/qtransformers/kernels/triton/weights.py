"""Weights on the GPU: the blocks of the file as they are, with what the kernels need to know about them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from qtransformers.errors import ConfigError, UnsupportedError
from qtransformers.kernels.table import check_accuracy
from qtransformers.kernels.triton.blocks import LAYOUTS
from qtransformers.tensor import QTensor
from qtransformers.types import QuantType

FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


@dataclass(frozen=True, eq=False)
class Weight:
    """A matrix `[out, in]` that the kernels multiply with."""

    data: torch.Tensor = field(repr=False)  # [nbytes] uint8, blocks as in the file
    shape: tuple[int, ...]
    type: QuantType
    name: str = "weight"
    accuracy: str = "exact"

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of the last dimension."""
        return self.type.row_bytes(self.shape[-1])

    @property
    def floats(self) -> torch.Tensor | None:
        """The values `[*shape]`, read where they lie, of a type that is plain floats; None for blocks."""
        dtype = FLOATS.get(self.type.name)
        return None if dtype is None else self.data.view(dtype).view(self.shape)


class Experts(Weight):
    """Matrices `[n, out, in]`, for `moe` and `per_head`."""

    def expert(self, i: int) -> Weight:
        """One of the matrices."""
        size = self.row_bytes * self.shape[1]
        return Weight(self.data[i * size : (i + 1) * size], self.shape[1:], self.type, self.name, self.accuracy)


def bind(
    tensor: QTensor, accuracy: str = "exact", device: torch.device | str = "cuda", data: torch.Tensor | None = None
) -> Weight:
    """A stored tensor `[out, in]` as a `Weight`, or `[n, out, in]` as `Experts`, its bytes copied to `device`.

    `data [nbytes] uint8` are those bytes where they have been brought there already. `accuracy` is that of `kernels.cpu.bind`:
    up to 8 tokens `exact` multiplies floats, `fast` one and `high` two int8 planes of x; more tokens are multiplied as
    bfloat16 (`fast`), as two of them each (`high`), or as float32.
    UnsupportedError for a type without kernels, ConfigError for a tensor that is neither or bytes that do not fit.
    """
    check_accuracy(accuracy)
    reason = why_not(tensor.type)
    if reason:
        raise UnsupportedError(f"{tensor.file}: {tensor.name}: {reason}. Keep the tensor on the CPU.")
    if len(tensor.shape) not in (2, 3):
        raise ConfigError(
            f"{tensor.file}: {tensor.name} is {list(tensor.shape)}; expected a matrix [out, in], or experts [n, out, in]."
        )
    blocks, rest = divmod(tensor.shape[-1], tensor.type.block_size)
    expected = tensor.n_rows * blocks * tensor.type.block_bytes
    found = tensor.nbytes if data is None else data.numel()
    if rest or found != expected:
        raise ConfigError(
            f"{tensor.file}: {tensor.name} is {list(tensor.shape)} of {tensor.type.name} in {found} bytes; expected {expected} bytes "
            f"and rows of a multiple of {tensor.type.block_size} values. The file is damaged or was read wrongly."
        )
    if data is None:
        data = torch.from_numpy(np.array(tensor.data)).to(device)
    make = Weight if len(tensor.shape) == 2 else Experts
    return make(data, tensor.shape, tensor.type, tensor.name, accuracy)


def why_not(type: QuantType) -> str | None:
    """Why the kernels cannot multiply with a type of weight; None where they can."""
    if type.name in LAYOUTS or type.name in FLOATS:
        return None
    return f"no GPU kernel decodes {type.name}; expected one of {', '.join((*LAYOUTS, *FLOATS))}"
