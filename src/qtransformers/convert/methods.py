"""Ways of quantising that checkpoints are published in, by `quantization_config`: which tensors make one weight, and how."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.checks import shown
from qtransformers.convert.packed import Parts, awq, compressed, gptq
from qtransformers.convert.sources import Lying, OfTensor, Rows, Source, Values
from qtransformers.errors import LoadError, QTransformersError, UnsupportedError
from qtransformers.load.checkpoint import Stored
from qtransformers.quants import dequantize
from qtransformers.types import BY_NAME, QuantType

# How activations and caches were quantised, which is not done here
_OF_ACTIVATIONS = ("input_scale", "output_scale", "k_scale", "v_scale", "q_scale", "input_zero_point", "activation_scale", "input_global_scale")  # fmt: skip


@dataclass(frozen=True, eq=False)
class Fp8(OfTensor):
    """A matrix of floats of 8 bits with a scale for each rectangle of it."""

    tensor: Stored
    scales: Values  # [rows of rectangles, columns of them]
    rectangle: tuple[int, int]
    type: None = None  # no type of GGUF holds them

    def rows(self, rows: Rows) -> Values:
        """See Source."""
        high, wide = self.rectangle
        at = np.arange(self.shape[0])[rows] // high
        scales = np.repeat(self.scales[at], wide, axis=1)[:, : self.shape[1]]
        with np.errstate(invalid="ignore"):  # NaN is found and named later
            return np.asarray(FP8[self.tensor.dtype][self.tensor.view()[rows]] * scales, np.float32)

    def blocks(self, rows: Rows, to: QuantType) -> NDArray[np.uint8] | None:
        """See Source."""
        return None

    def forget(self, rows: Rows | None = None) -> None:
        """See Source."""
        if rows is None:
            Lying(self.tensor).forget()


@dataclass(frozen=True, eq=False)
class Nvfp4(OfTensor):
    """A matrix of 4-bit floats, two in a byte, with a scale of 8 bits for 16 columns and a factor for all."""

    tensor: Stored  # codes [out, in / 2]
    scales: Stored  # [out, in / 16]
    factor: float
    type: None = None  # GGUF's blocks have no factor for all

    @property
    def shape(self) -> tuple[int, ...]:
        """See Source."""
        return self.tensor.shape[0], self.tensor.shape[1] * 2

    def rows(self, rows: Rows) -> Values:
        """See Source."""
        pairs, scales = self.tensor.view()[rows], FP8["F8_E4M3"][self.scales.view()[rows]] * np.float32(self.factor)
        codes = np.stack((pairs & 15, pairs >> 4), axis=-1)
        values = _E2M1[codes].reshape(*scales.shape, 16) * scales[..., None]
        return np.asarray(values.reshape(len(pairs), -1), np.float32)

    def blocks(self, rows: Rows, to: QuantType) -> NDArray[np.uint8] | None:
        """See Source."""
        return None

    def forget(self, rows: Rows | None = None) -> None:
        """See Source."""
        if rows is None:
            Lying(self.tensor).forget()


@dataclass(frozen=True, eq=False)
class Mxfp4:
    """Matrices `[n, out, in]` of 4-bit floats with an exponent for 32 columns; bytes hold neighbours, in GGUF a half apart."""

    name: str
    codes: Stored  # [n, out, in / 32, 16]
    exponents: Stored  # [n, out, in / 32]

    @property
    def file(self) -> str:
        """See Source."""
        return self.codes.file

    @property
    def shape(self) -> tuple[int, ...]:
        """See Source."""
        return (*self.codes.shape[:-2], self.codes.shape[-2] * 32)

    @property
    def type(self) -> QuantType:
        """See Source."""
        return BY_NAME["MXFP4"]

    def rows(self, rows: Rows) -> Values:
        """See Source."""
        raw = self._blocks(rows)
        return dequantize(raw.reshape(-1), self.type).reshape(len(raw), self.shape[-1])

    def blocks(self, rows: Rows, to: QuantType) -> NDArray[np.uint8] | None:
        """See Source."""
        return self._blocks(rows).reshape(-1) if to is self.type else None

    def forget(self, rows: Rows | None = None) -> None:
        """See Source."""
        if rows is None:
            Lying(self.codes).forget()

    def _blocks(self, rows: Rows) -> NDArray[np.uint8]:
        """Whole rows `[n, blocks, 17]`."""
        n_blocks = self.codes.shape[-2]
        pairs = self.codes.view().reshape(-1, n_blocks, 16)[rows]
        codes = np.stack((pairs & 15, pairs >> 4), axis=-1).reshape(*pairs.shape[:-1], 32)
        out = np.empty((*pairs.shape[:-1], 17), np.uint8)
        out[..., 0] = self.exponents.view().reshape(-1, n_blocks)[rows]
        out[..., 1:] = codes[..., :16] | codes[..., 16:] << 4
        return out


def _e4m3() -> Values:
    """The 256 values of E4M3 (FN): no infinity, and NaN where all but the sign is set. Micikevicius et al. 2022 (arXiv:2209.05433)."""
    code = np.arange(256)
    exponent, fraction = code >> 3 & 15, (code & 7) / 8
    values = np.where(exponent, (1 + fraction) * 2.0 ** (exponent - 7), fraction * 2.0**-6)
    values[(code & 127) == 127] = np.nan
    return np.where(code & 128, -values, values).astype(np.float32)


FP8: Mapping[str, Values] = {
    "F8_E4M3": _e4m3(),
    "F8_E5M2": (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32),
}


# Of floats of 4 bits, E2M1 (OCP Microscaling Formats 1.0)
_E2M1 = np.array([s * v for s in (1, -1) for v in (0, 0.5, 1, 1.5, 2, 3, 4, 6)], np.float32)


def _fp8(prefix: str, parts: Parts, said: Mapping[str, Any]) -> Source:
    """Floats of 8 bits, with one scale, one for each row, or one for each rectangle."""
    weight, scale = parts["weight"], parts.get("weight_scale_inv", parts.get("weight_scale"))
    if scale is None or len(weight.shape) != 2:
        raise LoadError(
            f"{weight.file}: {weight.name} has {weight.dtype} values and no weight_scale that fits. Download it again."
        )
    if scale.dtype == "F8_E8M0":
        scales = np.ldexp(np.float32(1), scale.view().astype(np.int32) - 127).astype(np.float32)
    else:
        scales = Lying(scale).rows(slice(None)).reshape(scale.shape)
    scales = scales.reshape(-1, 1) if scales.ndim < 2 else scales
    sides = said.get("weight_block_size") or (128, 128)
    high, wide = (
        size if n == 1 else 1 if n == size else int(side)
        for n, size, side in zip(scales.shape, weight.shape, sides, strict=True)
    )
    if scales.shape != (-(-weight.shape[0] // high), -(-weight.shape[1] // wide)):
        raise LoadError(
            f"{scale.file}: {scale.name} is {list(scale.shape)}, which does not fit {prefix}, {list(weight.shape)}."
        )
    return Fp8(weight, scales, (high, wide))


def _of_compressed(prefix: str, parts: Parts, said: Mapping[str, Any]) -> Source:
    if "weight_global_scale" in parts:
        return _nvfp4(prefix, parts["weight_packed"], parts["weight_scale"], 1 / _number(parts["weight_global_scale"]))
    return (
        _fp8(prefix, parts, said)
        if "weight" in parts and parts["weight"].dtype in FP8
        else compressed(prefix, parts, said)
    )


def _modelopt(prefix: str, parts: Parts, said: Mapping[str, Any]) -> Source:
    """NVIDIA's own: 4 bits with a second scale, or 8."""
    if "weight_scale_2" in parts:
        return _nvfp4(prefix, parts["weight"], parts["weight_scale"], _number(parts["weight_scale_2"]))
    return _fp8(prefix, parts, said)


def _nvfp4(prefix: str, codes: Stored, scales: Stored, factor: float) -> Source:
    fits = codes.dtype == "U8" and scales.dtype == "F8_E4M3" and len(codes.shape) == 2
    if not fits or scales.shape != (codes.shape[0], codes.shape[1] // 8) or not math.isfinite(factor):
        raise LoadError(
            f"{codes.file}: {prefix} has {codes.dtype} codes {list(codes.shape)}, {scales.dtype} scales {list(scales.shape)} and a factor of "
            f"{factor:g}; NVFP4 has U8 codes [out, in / 2] and F8_E4M3 scales [out, in / 16]. Download the checkpoint again."
        )
    return Nvfp4(codes, scales, factor)


def _number(tensor: Stored) -> float:
    """The one value of a tensor; NaN for 0, which no scale is."""
    values = Lying(tensor).rows(slice(None)).reshape(-1)
    return float(values[0]) if values.size == 1 and values[0] else math.nan


def _mxfp4(prefix: str, parts: Parts, said: Mapping[str, Any]) -> Source:
    codes, exponents = parts.get("blocks"), parts.get("scales")
    if codes is None or exponents is None or codes.shape[-1:] != (16,) or codes.shape[:-1] != exponents.shape:
        raise LoadError(
            f"{prefix}: expected {prefix}_blocks [..., 16] of U8 and {prefix}_scales of as many. Download the checkpoint again."
        )
    return Mxfp4(prefix, codes, exponents)


@dataclass(frozen=True)
class Method:
    """One way: what a name ends in (after `separator`) that belongs to a weight, and what marks one."""

    make: Callable[[str, Parts, Mapping[str, Any]], Source]
    marks: tuple[str, ...]
    others: tuple[str, ...] = ()
    separator: str = "."
    weight: str = ".weight"  # ending of the weight's own name


_LINEAR = Method(awq, ("qweight",), ("qzeros", "scales", "g_idx"))
METHODS: Mapping[str, Method] = {
    "awq": _LINEAR,
    "gptq": Method(gptq, _LINEAR.marks, _LINEAR.others),
    "compressed-tensors": Method(
        _of_compressed, ("weight_packed", "weight_scale"), ("weight", "weight_zero_point", "weight_shape", "weight_g_idx", "weight_global_scale")
    ),
    "fp8": Method(_fp8, ("weight_scale_inv", "weight_scale"), ("weight",)),
    "fbgemm_fp8": Method(_fp8, ("weight_scale",), ("weight",)),
    "modelopt": Method(_modelopt, ("weight_scale",), ("weight", "weight_scale_2")),
    "mxfp4": Method(_mxfp4, ("blocks",), ("scales",), "_", ""),
}  # fmt: skip


def sources_of(stored: Mapping[str, Stored], said: Mapping[str, Any] | None, file: str) -> dict[str, Source]:
    """Every weight of a checkpoint, by name; of quantised ones the tensors that make it are one source.

    `said` is quantization_config of `file`. UnsupportedError for a method or a setting that is not read, LoadError for
    tensors that do not fit together.
    """
    if said is not None and not isinstance(said, Mapping):
        raise UnsupportedError(
            f"{file}: quantization_config is {shown(said)}; expected a mapping. Convert the original model."
        )
    if not said:
        return {name: Lying(tensor) for name, tensor in stored.items()}
    name = str(said.get("quant_method", said.get("quant_algo", "unnamed"))).lower()
    if name not in METHODS:
        raise UnsupportedError(
            f"{file}: its weights are quantised by {name}; convert reads {', '.join(METHODS)}. Convert the original model instead."
        )
    method = METHODS[name]
    split = {n: n.rpartition(method.separator) for n in stored}
    marked = {prefix for prefix, _, part in split.values() if part in method.marks}
    parts: dict[str, dict[str, Stored]] = {}
    found: dict[str, Source] = {}
    for n, tensor in stored.items():
        prefix, _, part = split[n]
        if prefix in marked and part in (*method.marks, *method.others):
            parts.setdefault(prefix, {})[part] = tensor
        elif not n.endswith(_OF_ACTIVATIONS):
            found[n] = Lying(tensor)
    return found | {prefix + method.weight: _made(method, prefix, these, said, file) for prefix, these in parts.items()}


def _made(method: Method, prefix: str, parts: Parts, said: Mapping[str, Any], file: str) -> Source:
    try:
        return method.make(prefix, parts, said)
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, ArithmeticError) as e:
        if isinstance(e, QTransformersError):
            raise
        raise LoadError(
            f"{file}: quantization_config and the tensors of {prefix} are not as {said.get('quant_method')} has them ({type(e).__name__}: {e})."
        ) from e
