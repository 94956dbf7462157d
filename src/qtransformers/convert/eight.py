"""Floats of 8 bits in single files of diffusion models: as they are, or with a scale for each weight as ComfyUI writes them.

A weight's scale is `<layer>.scale_weight` beside a mark `scaled_fp8`, or `<layer>.weight_scale`; those of inputs are not used here.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qtransformers.convert.methods import FP8
from qtransformers.convert.sources import Lying
from qtransformers.errors import LoadError, QTransformersError, UnsupportedError
from qtransformers.gguf.writer import check_room
from qtransformers.load.checkpoint import Stored
from qtransformers.quants import quantize

SCALES = (".scale_weight", ".weight_scale")
OF_INPUTS = (".scale_input", ".input_scale")
MARK, METHOD = "scaled_fp8", ".comfy_quant"
SLAB = 1 << 24  # values


def decoded(stored: Mapping[str, Stored], outline: bool = False) -> dict[str, Stored]:
    """A checkpoint's tensors, those of 8 bits decoded into a temporary file: to F16, which holds them exactly, scaled ones to BF16.

    Of an `outline` all values of those are 0, and nothing is written.
    LoadError for a scale that fits no weight, UnsupportedError for another way to quantise, QTransformersError where the disk has no room.
    """
    plain = {n: t for n, t in stored.items() if not n.endswith((*SCALES, *OF_INPUTS, MARK, METHOD))}
    eight = [t for t in plain.values() if t.dtype in FP8]
    for name, tensor in stored.items():
        if name.endswith(METHOD):
            _check_method(tensor)
    scales = {n: _scale(n, t, plain) for n, t in stored.items() if n.endswith(SCALES)}
    if not eight:
        return dict(stored) if not scales else plain
    of = {_weight(n): scale for n, scale in scales.items()}
    if bare := [t.name for t in eight if t.name not in of and len(t.shape) == 2] if of else []:
        warnings.warn(f"{eight[0].file}: {len(bare)} weights of 8 bits ({bare[0]}, ...) have no scale, which others have: they are taken as they are", stacklevel=4)  # fmt: skip
    if outline:
        return plain | {t.name: _bare(t, of.get(t.name), np.broadcast_to(np.uint8(0), 2 * t.data.size)) for t in eight}
    total = sum(2 * t.data.size for t in eight)
    check_room(Path(tempfile.gettempdir()), total)
    try:
        with tempfile.TemporaryFile() as file:
            if hasattr(os, "posix_fallocate"):  # taken now: a disk that is full later would end the process
                os.posix_fallocate(file.fileno(), 0, total)
            else:
                file.truncate(total)
            room: NDArray[np.uint8] = np.memmap(file, np.uint8, "r+", shape=(total,))
    except OSError as e:
        raise QTransformersError(f"{tempfile.gettempdir()}: {e.strerror or e}; {total:,} bytes are needed to decode {eight[0].file}. Free some, or set TMPDIR.") from e  # fmt: skip
    at = 0
    for tensor in eight:
        n = 2 * tensor.data.size
        plain[tensor.name] = _decode(tensor, of.get(tensor.name), room[at : at + n])
        at += n
    return plain


def _bare(tensor: Stored, scale: NDArray[np.float32] | None, data: NDArray[np.uint8]) -> Stored:
    """The tensor in 16 bits, over `data`."""
    return replace(tensor, dtype="F16" if scale is None else "BF16", data=data)


def _decode(tensor: Stored, scale: NDArray[np.float32] | None, out: NDArray[np.uint8]) -> Stored:
    made_so = _bare(tensor, scale, out)
    height = tensor.shape[0] if tensor.shape else 1
    rows, made = tensor.data.reshape(height, -1), out.reshape(height, -1)
    step = max(1, SLAB // max(1, rows.shape[1]))
    for start in range(0, height, step):
        values = FP8[tensor.dtype][rows[start : start + step]]
        if scale is not None:
            values = values * (scale[start : start + step] if len(scale) > 1 else scale)
        made[start : start + step] = quantize(values.reshape(-1), made_so.type).reshape(len(values), -1)
    return made_so


def _weight(name: str) -> str:
    """The weight that a scale is of."""
    return next(name.removesuffix(end) for end in SCALES if name.endswith(end)) + ".weight"


def _scale(name: str, tensor: Stored, plain: Mapping[str, Stored]) -> NDArray[np.float32]:
    """A scale for all `[1, 1]`, or one for each row `[out, 1]`."""
    weight = plain.get(_weight(name))
    values = Lying(tensor).rows(slice(None)).reshape(-1, 1)
    if weight is None or len(values) not in (1, weight.shape[0] if weight.shape else 1):
        what = "which is not there" if weight is None else f"which is {list(weight.shape)}"
        raise LoadError(f"{tensor.file}: {name} is {list(tensor.shape)}, a scale for {_weight(name)}, {what}. Download the file again.")  # fmt: skip
    if weight.dtype not in FP8:
        raise UnsupportedError(f"{tensor.file}: {name} scales {weight.name}, whose values are {weight.dtype}; expected floats of 8 bits. Convert the original model.")  # fmt: skip
    if not (np.isfinite(values) & (values > 0)).all():
        raise LoadError(f"{tensor.file}: {name} holds {values.flat[0]:g}; expected finite scales above 0. Download the file again.")  # fmt: skip
    return values


def _check_method(tensor: Stored) -> None:
    try:
        said = json.loads(tensor.data.tobytes())
        how = said["format"]
    except (ValueError, KeyError, TypeError):
        how = "of no known form"
    if not str(how).startswith("float8_"):
        raise UnsupportedError(f"{tensor.file}: {tensor.name} says {str(how)[:60]!r}; expected a format of floats of 8 bits (float8_e4m3fn). Convert the original model.")  # fmt: skip
