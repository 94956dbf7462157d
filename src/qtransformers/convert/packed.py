"""Checkpoints that are quantised already: integers on a grid, `(code - zero) * scale` by groups along a row.

They are taken as they are: each layout becomes codes, zeros and scales by row, and these go into blocks that hold the same
values (repack.py). Layouts: AutoAWQ (GEMM, GEMV), GPTQ, compressed-tensors. Facts: the linear layers of AutoAWQ and AutoGPTQ,
and compressed-tensors' pack_to_int32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.convert.repack import repacked, the_type
from qtransformers.convert.sources import Lying, Rows, Values
from qtransformers.errors import LoadError, UnsupportedError
from qtransformers.load.checkpoint import Stored
from qtransformers.types import QuantType

Codes = NDArray[np.uint8]
Parts = Mapping[str, Stored]  # the tensors of one linear layer, by the last part of their names
# What each part may hold, and its dimensions
_SCALES = ("F16", "BF16", "F32")
_FORMS: Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "qweight": (("I32",), (2,)), "qzeros": (("I32",), (2,)), "scales": (_SCALES, (2,)), "g_idx": (("I32", "I64"), (1,)),
    "weight_packed": (("I32",), (2,)), "weight_scale": (_SCALES, (0, 1, 2)), "weight_shape": (("I64", "I32"), (1,)),
    "weight_g_idx": (("I32", "I64"), (1,)), "weight_zero_point": (("I32", "I8"), (2,)), "weight": (("I8",), (2,)),
}  # fmt: skip
# Columns in which AWQ's GEMM layout keeps the nibbles of a word, low and high of each byte
_AWQ_LOW, _AWQ_HIGH = (0, 4, 1, 5), (2, 6, 3, 7)


@dataclass(frozen=True, eq=False)
class Packed:
    """A matrix `[out, in]` of codes on a grid for each group of `group` columns of a row."""

    name: str
    file: str
    shape: tuple[int, int]
    bits: int
    group: int
    codes: Callable[[Rows], Codes]  # [n, in]
    zeros: Callable[[Rows], Codes]  # [n, in / group]
    scales: Callable[[Rows], Values]  # [n, in / group]
    stored: tuple[Stored, ...]

    @cached_property
    def symmetric(self) -> bool:
        """Whether every zero is the middle of the codes."""
        return bool((self.zeros(slice(None)) == 1 << (self.bits - 1)).all())

    @cached_property
    def type(self) -> QuantType | None:
        """See Source."""
        return the_type(self.bits, self.symmetric, self.shape[1], self.group)

    def rows(self, rows: Rows) -> Values:
        """See Source."""
        codes, zeros, scales = self.codes(rows), self.zeros(rows), self._scales(rows)
        values = codes.reshape(*zeros.shape, self.group).astype(np.float32) - zeros[..., None]
        return (values * scales[..., None]).reshape(codes.shape)

    def blocks(self, rows: Rows, to: QuantType) -> NDArray[np.uint8] | None:
        """See Source."""
        return repacked(self.codes(rows), self.zeros(rows), self._scales(rows), self.bits, to)

    def forget(self, rows: Rows | None = None) -> None:
        """See Source."""
        if rows is None:
            for tensor in self.stored:
                Lying(tensor).forget()

    def _scales(self, rows: Rows) -> Values:
        scales = self.scales(rows)
        if not np.isfinite(scales).all():
            raise LoadError(
                f"{self.file}: scales of {self.name} are not finite. The checkpoint is damaged: download it again."
            )
        return scales


def _halves(data: Codes, bits: int) -> Codes:
    """The codes of bytes in a row, the lowest bits first: `[..., n]` to `[..., n * 8 / bits]`."""
    if bits == 8:
        return data
    if bits < 4:
        each = np.unpackbits(data, axis=-1, bitorder="little").reshape(*data.shape[:-1], -1, bits)
        return np.asarray(each @ (1 << np.arange(bits, dtype=np.uint8)), np.uint8)
    return np.stack((data & 15, data >> 4), axis=-1).reshape(*data.shape[:-1], -1)


def _bytes(tensor: Stored) -> Codes:
    """Words as bytes: a last axis four times as long."""
    return tensor.data.reshape(*tensor.shape[:-1], -1)


def _columns(words: NDArray[Any], rows: Rows, per: int, unpacked: Callable[[Codes], Codes]) -> Codes:
    """Rows `[n, k]` of a matrix whose columns `[k, out / per]` are packed in words of `per`."""
    wanted = np.arange(words.shape[1] * per)[rows]
    of_word, at = np.unique(wanted // per, return_inverse=True)
    contiguous = len(of_word) and of_word[-1] - of_word[0] + 1 == len(of_word)
    picked = words[:, of_word[0] : of_word[-1] + 1] if contiguous else words[:, of_word]
    raw = np.ascontiguousarray(picked).view(np.uint8).reshape(len(words), -1, words.dtype.itemsize)
    return np.ascontiguousarray(unpacked(raw).reshape(len(words), -1).T[at * per + wanted % per])


def _awq_order(data: Codes) -> Codes:
    """Words `[..., 4]` in the order of AWQ's GEMM to codes `[..., 8]`."""
    out = np.empty((*data.shape[:-1], 8), np.uint8)
    out[..., _AWQ_LOW], out[..., _AWQ_HIGH] = data & 15, data >> 4
    return out


def _floats(tensor: Stored) -> Values:
    """All values of a small tensor as f32 `[*shape]`."""
    return Lying(tensor).rows(slice(None)).reshape(tensor.shape)


def awq(prefix: str, parts: Parts, said: Mapping[str, Any]) -> Packed:
    """AutoAWQ: GEMM packs columns in an order of its own, GEMV rows as they are."""
    version = str(said.get("version", said.get("format", "gemm"))).lower()
    _refuse_unless(prefix, "bits", said.get("bits", said.get("w_bit", 4)), (4,))
    _refuse_unless(prefix, "version", version, ("gemm", "gemv"))
    qweight, qzeros, scales = (_part(prefix, parts, n) for n in ("qweight", "qzeros", "scales"))
    if version == "gemm":
        shape = (qweight.shape[1] * 8, qweight.shape[0])
        group, n_groups = _group(prefix, said, shape[1])
        _shapes(prefix, {qzeros: (n_groups, shape[0] // 8), scales: (n_groups, shape[0])})
        of_scales = _floats(scales)
        return Packed(
            f"{prefix}.weight", qweight.file, shape, 4, group,
            lambda rows: _columns(qweight.view(), rows, 8, _awq_order),
            lambda rows: _columns(qzeros.view(), rows, 8, _awq_order),
            lambda rows: np.ascontiguousarray(of_scales[:, rows].T), (qweight, qzeros, scales),
        )  # fmt: skip
    shape = (qweight.shape[0], qweight.shape[1] * 8)
    group, n_groups = _group(prefix, said, shape[1])
    if (
        qzeros.shape[:1] != shape[:1]
        or qzeros.shape[1] * 8 < n_groups
        or scales.shape != (shape[0], qzeros.shape[1] * 8)
    ):
        raise LoadError(f"{qzeros.file}: zeros and scales of {prefix} are {list(qzeros.shape)} and {list(scales.shape)}, which does not fit {list(shape)}.")  # fmt: skip
    padded = _floats(scales)
    return Packed(
        f"{prefix}.weight", qweight.file, shape, 4, group,
        lambda rows: _halves(_bytes(qweight)[rows], 4),
        lambda rows: _halves(_bytes(qzeros)[rows], 4)[:, :n_groups],
        lambda rows: np.ascontiguousarray(padded[rows, :n_groups]), (qweight, qzeros, scales),
    )  # fmt: skip


def gptq(prefix: str, parts: Parts, said: Mapping[str, Any]) -> Packed:
    """GPTQ: words hold consecutive columns of a row, of 3 bits three words 32; zeros are stored less one, but by the second format."""
    bits = said.get("bits", 4)
    _refuse_unless(prefix, "bits", bits, (2, 3, 4, 8))
    qweight, qzeros, scales = (_part(prefix, parts, n) for n in ("qweight", "qzeros", "scales"))
    shape = (qweight.shape[1], qweight.shape[0] * 32 // bits)
    group, n_groups = _group(prefix, said, shape[1])
    _shapes(prefix, {qzeros: (n_groups, shape[0] * bits // 32), scales: (n_groups, shape[0])})
    if (order := _perhaps(prefix, parts, "g_idx")) is not None:
        _refuse_act_order(prefix, order, group, shape[1])
    one = 0 if said.get("checkpoint_format") == "gptq_v2" else 1
    of_scales = _floats(scales)

    def codes(rows: Rows) -> Codes:
        raw = np.ascontiguousarray(qweight.view()[:, rows]).view(np.uint8).reshape(qweight.shape[0], -1, 4)
        return _halves(np.ascontiguousarray(raw.swapaxes(0, 1)).reshape(raw.shape[1], -1), bits)

    def zeros(rows: Rows) -> Codes:
        if bits == 3:  # a code may lie in two words
            found = np.ascontiguousarray(_halves(_bytes(qzeros), bits).T[rows])
        else:
            found = _columns(qzeros.view(), rows, 32 // bits, lambda raw: _halves(raw, bits))
        return (found + np.uint8(one)) & np.uint8((1 << bits) - 1)

    return Packed(
        f"{prefix}.weight", qweight.file, shape, bits, group, codes, zeros,
        lambda rows: np.ascontiguousarray(of_scales[:, rows].T), (qweight, qzeros, scales),
    )  # fmt: skip


def compressed(prefix: str, parts: Parts, said: Mapping[str, Any]) -> Packed:
    """compressed-tensors: integers in words along a row with an offset, or as they are in bytes."""
    if (order := _perhaps(prefix, parts, "weight_g_idx")) is not None:
        _refuse_act_order(prefix, order, None, order.shape[0])
    scale = _part(prefix, parts, "weight_scale")
    zero = _perhaps(prefix, parts, "weight_zero_point")
    words = _perhaps(prefix, parts, "weight_packed")
    if words is not None:
        n_in = int(_part(prefix, parts, "weight_shape").view()[-1])
        bits = _bits_of(words, n_in)
        shape = (words.shape[0], n_in)
        whole = words

        def codes(rows: Rows) -> Codes:
            return _halves(_bytes(whole)[rows], bits)[:, :n_in]

    else:
        plain, bits = _part(prefix, parts, "weight"), 8
        shape = (plain.shape[0], plain.shape[1])

        def codes(rows: Rows) -> Codes:
            return np.ascontiguousarray(plain.view()[rows]).view(np.uint8) ^ np.uint8(128)

    scales = _floats(scale).reshape(-1, scale.shape[-1] if len(scale.shape) > 1 else 1)
    if len(scales) == 1:
        scales = np.broadcast_to(scales, (shape[0], scales.shape[1]))
    n_groups = scales.shape[1]
    if (
        len(scales) != shape[0]
        or shape[1] % n_groups
        or (words is not None and words.shape[1] != -(-n_in * bits // 32))
    ):
        raise LoadError(
            f"{scale.file}: {scale.name} is {list(scale.shape)}, which does not fit {prefix}, {list(shape)}."
        )
    of_zeros = np.broadcast_to(np.uint8(1 << (bits - 1)), scales.shape)
    if zero is not None and zero.dtype == "I32":
        of_zeros = _zeros_by_row(zero, bits, shape[0])
    elif zero is not None:
        of_zeros = np.broadcast_to(
            (zero.view().astype(np.int16) + 128).astype(np.uint8).reshape(-1, n_groups), scales.shape
        )
    if of_zeros.shape != scales.shape:
        raise LoadError(
            f"{scale.file}: zeros of {prefix} are {list(of_zeros.shape)}, its scales {list(scales.shape)}. The file is damaged."
        )
    return Packed(
        f"{prefix}.weight", scale.file, shape, bits, shape[1] // n_groups, codes,
        lambda rows: np.ascontiguousarray(of_zeros[rows]), lambda rows: np.ascontiguousarray(scales[rows]),
        tuple(t for t in (words, parts.get("weight"), scale) if t is not None),
    )  # fmt: skip


def _zeros_by_row(zero: Stored, bits: int, n_rows: int) -> Codes:
    """Zeros `[n_rows, groups]` of words `[n_rows / per, groups]`, each of `per` rows."""
    raw = np.ascontiguousarray(zero.view()).view(np.uint8).reshape(*zero.shape, 4)
    return _halves(raw, bits).swapaxes(1, 2).reshape(-1, zero.shape[1])[:n_rows]


def _bits_of(words: Stored, n_in: int) -> int:
    """4 or 8, as the words say that hold a row."""
    bits = next((b for b in (4, 8) if words.shape[-1] == -(-n_in * b // 32)), 0)
    if not bits:
        raise UnsupportedError(
            f"{words.file}: {words.name} packs {n_in} columns in {words.shape[-1]} words; expected 4 or 8 bits each. Convert the original model."
        )
    return bits


def _part(prefix: str, parts: Parts, name: str) -> Stored:
    """A tensor that must be there, of values and dimensions that it may have."""
    if name not in parts:
        file = next(iter(parts.values())).file
        raise LoadError(f"{file}: {prefix}.{name} is missing beside {', '.join(parts)}. Download the checkpoint again.")
    tensor, (dtypes, n_dims) = parts[name], _FORMS[name]
    if tensor.dtype not in dtypes or len(tensor.shape) not in n_dims or (0 in tensor.shape):
        raise LoadError(
            f"{tensor.file}: {tensor.name} is {tensor.dtype} {list(tensor.shape)}; expected {' or '.join(dtypes)} of "
            f"{' or '.join(map(str, n_dims))} dimensions. The checkpoint is damaged, or of a method that is not read."
        )
    return tensor


def _perhaps(prefix: str, parts: Parts, name: str) -> Stored | None:
    return _part(prefix, parts, name) if name in parts else None


def _group(prefix: str, said: Mapping[str, Any], n_in: int) -> tuple[int, int]:
    """Columns of a group, and groups of a row."""
    group = said.get("group_size", said.get("q_group_size", 128))
    group = n_in if group == -1 else group
    if type(group) is not int or group < 1 or n_in % group:
        raise UnsupportedError(
            f"{prefix}: group_size {group!r} does not divide its {n_in} columns. Convert the original model."
        )
    return group, n_in // group


def _shapes(prefix: str, expected: Mapping[Stored, tuple[int, ...]]) -> None:
    for tensor, shape in expected.items():
        if tensor.shape != shape:
            raise LoadError(f"{tensor.file}: {tensor.name} is {list(tensor.shape)}; {prefix} needs {list(shape)}. The file is damaged, or config.json of another model.")  # fmt: skip


def _refuse_unless(prefix: str, what: str, found: Any, expected: tuple[Any, ...]) -> None:
    if type(found) is bool or found not in expected:
        words = " or ".join(map(str, expected))
        raise UnsupportedError(
            f"{prefix}: quantization_config has {what} {found!r}; expected {words}. Convert the original model."
        )


def _refuse_act_order(prefix: str, order: Stored, group: int | None, n_in: int) -> None:
    """Groups along a row must be groups of neighbours, as they are in GGUF's blocks."""
    found = order.view()
    group = group or int(np.count_nonzero(found == found[0]))
    if found.shape != (n_in,) or (found != np.arange(n_in) // group).any():
        raise UnsupportedError(
            f"{order.file}: {order.name} orders columns by activation (act-order, desc_act): groups are not neighbours, which no "
            "GGUF type can hold. Convert the original model, or a checkpoint made without act-order."
        )
