"""The table of tensor types: everything else about a type is derived from its row.

Layouts: ggml-common.h of llama.cpp. A block is a packed structure; `fields` spells it as `name:dtype` or
`name:dtype*count` in file order, so sizes, byte order, random test blocks and the NumPy decoders all read one line.
Words are as wide as llama.cpp writes and reads them, which in four types is wider than its header says.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qtransformers.errors import GGUFError


@dataclass(frozen=True)
class QuantType:
    """One tensor type of GGUF."""

    id: int  # the number in the file
    name: str
    block_size: int  # values per block
    fields: str  # the block's structure
    family: str  # float, int, legacy, k, iq, ternary, microscaling
    activation: bool = False  # only ever made on the fly for dot products, never a weight of a file

    @cached_property
    def block(self) -> np.dtype[np.void]:
        """The block as a packed little-endian structure."""
        columns: list[tuple[str, str] | tuple[str, str, tuple[int, ...]]] = []
        for field in self.fields.split():
            name, _, spec = field.partition(":")
            dtype, _, count = spec.partition("*")
            columns.append((name, "<" + dtype, (int(count),)) if count else (name, "<" + dtype))
        return np.dtype(columns)

    @cached_property
    def block_bytes(self) -> int:
        """Bytes per block."""
        return self.block.itemsize

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight, scales included."""
        return 8 * self.block_bytes / self.block_size

    @property
    def is_quantized(self) -> bool:
        """Whether values share a block (False for plain floats and integers)."""
        return self.block_size > 1

    def row_bytes(self, n_values: int) -> int:
        """Bytes of a row of `n_values`, which must be a multiple of the block size."""
        return n_values // self.block_size * self.block_bytes

    def __repr__(self) -> str:
        return self.name


_ROWS = (
    QuantType(0, "F32", 1, "x:f4", "float"),
    QuantType(1, "F16", 1, "x:f2", "float"),
    QuantType(2, "Q4_0", 32, "d:f2 qs:u1*16", "legacy"),
    QuantType(3, "Q4_1", 32, "d:f2 m:f2 qs:u1*16", "legacy"),
    QuantType(6, "Q5_0", 32, "d:f2 qh:u4 qs:u1*16", "legacy"),
    QuantType(7, "Q5_1", 32, "d:f2 m:f2 qh:u4 qs:u1*16", "legacy"),
    QuantType(8, "Q8_0", 32, "d:f2 qs:i1*32", "legacy"),
    QuantType(9, "Q8_1", 32, "d:f2 s:f2 qs:i1*32", "legacy", activation=True),
    QuantType(10, "Q2_K", 256, "scales:u1*16 qs:u1*64 d:f2 dmin:f2", "k"),
    QuantType(11, "Q3_K", 256, "hmask:u1*32 qs:u1*64 scales:u1*12 d:f2", "k"),
    QuantType(12, "Q4_K", 256, "d:f2 dmin:f2 scales:u1*12 qs:u1*128", "k"),
    QuantType(13, "Q5_K", 256, "d:f2 dmin:f2 scales:u1*12 qh:u1*32 qs:u1*128", "k"),
    QuantType(14, "Q6_K", 256, "ql:u1*128 qh:u1*64 scales:i1*16 d:f2", "k"),
    QuantType(15, "Q8_K", 256, "d:f4 qs:i1*256 bsums:i2*16", "k", activation=True),
    QuantType(16, "IQ2_XXS", 256, "d:f2 qs:u4*16", "iq"),
    QuantType(17, "IQ2_XS", 256, "d:f2 qs:u2*32 scales:u1*8", "iq"),
    QuantType(18, "IQ3_XXS", 256, "d:f2 qs:u1*64 signs:u4*8", "iq"),
    QuantType(19, "IQ1_S", 256, "d:f2 qs:u1*32 qh:u2*8", "iq"),
    QuantType(20, "IQ4_NL", 32, "d:f2 qs:u1*16", "iq"),
    QuantType(21, "IQ3_S", 256, "d:f2 qs:u1*64 qh:u1*8 signs:u1*32 scales:u1*4", "iq"),
    QuantType(22, "IQ2_S", 256, "d:f2 qs:u1*32 signs:u1*32 qh:u1*8 scales:u1*8", "iq"),
    QuantType(23, "IQ4_XS", 256, "d:f2 scales_h:u2 scales_l:u1*4 qs:u1*128", "iq"),
    QuantType(24, "I8", 1, "x:i1", "int"),
    QuantType(25, "I16", 1, "x:i2", "int"),
    QuantType(26, "I32", 1, "x:i4", "int"),
    QuantType(27, "I64", 1, "x:i8", "int"),
    QuantType(28, "F64", 1, "x:f8", "float"),
    QuantType(29, "IQ1_M", 256, "qs:u1*32 qh:u1*16 scales:u2*4", "iq"),
    QuantType(30, "BF16", 1, "x:u2", "float"),
    QuantType(34, "TQ1_0", 256, "qs:u1*48 qh:u1*4 d:f2", "ternary"),
    QuantType(35, "TQ2_0", 256, "qs:u1*64 d:f2", "ternary"),
    QuantType(39, "MXFP4", 32, "e:u1 qs:u1*16", "microscaling"),
    QuantType(40, "NVFP4", 64, "d:u1*4 qs:u1*32", "microscaling"),
    QuantType(41, "Q1_0", 128, "d:f2 qs:u1*16", "legacy"),
    QuantType(42, "Q2_0", 64, "d:f2 qs:u1*16", "legacy"),
)
TYPES: dict[int, QuantType] = {row.id: row for row in _ROWS}
BY_NAME: dict[str, QuantType] = {row.name: row for row in _ROWS}

# Once written by llama.cpp, gone from it since; the remedy is always to make the file anew.
RETIRED: dict[int, str] = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}  # fmt: skip


def type_of(type_id: int, tensor: str, file: str) -> QuantType:
    """The row of `type_id`; GGUFError naming file and tensor when it is retired, unknown or no weight type."""
    row = TYPES.get(type_id)
    if row is None:
        what = (
            f"the retired type {RETIRED[type_id]} ({type_id})" if type_id in RETIRED else f"the unknown type {type_id}"
        )
        remedy = (
            "Convert the model again with a current tool"
            if type_id in RETIRED
            else "Update qtransformers, or check the file"
        )
        raise GGUFError(f"{file}: {tensor} has {what}; expected one of ids 0-{max(TYPES)} in the type table. {remedy}.")
    if row.activation:
        raise GGUFError(
            f"{file}: {tensor} has type {row.name}, an activation format that is never stored. The file is damaged."
        )
    return row
