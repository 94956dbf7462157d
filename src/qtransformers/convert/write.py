"""Carrying a conversion out: tensor by tensor, slab by slab, so a model larger than memory passes through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.convert.plan import ConversionPlan, Target, plan_conversion
from qtransformers.convert.weights import encoded
from qtransformers.gguf.writer import GGUFWriter


def convert(
    model_path: str | Path,
    output: str | Path | None = None,
    type: str = "Q8_0",
    *,
    name: str | None = None,
    pre: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Make a GGUF file from the Hugging Face model in the folder `model_path`; the path of the file.

    `output` defaults to `<folder>-<type>.gguf` in the working directory. Types: F32, F16, BF16, Q8_0; vectors and norms stay
    F32. Errors as for `plan_conversion`, and ConfigError when the output exists and `overwrite` is not set.
    """
    plan = plan_conversion(model_path, type, name=name, pre=pre)
    target = Path(output) if output is not None else Path(default_name(plan, type))
    write(plan, target, overwrite=overwrite)
    return target


def default_name(plan: ConversionPlan, type: str) -> str:
    """`<folder>-<type>.gguf`."""
    return f"{plan.folder.resolve().name}-{type.upper()}.gguf"


def _slabs(target: Target) -> Iterator[NDArray[Any]]:
    """The target's values, piece by piece, as the writer takes them."""
    if isinstance(target.source, np.ndarray):
        yield target.source
        return
    for source in target.source:
        yield from encoded(source, target.order, target.type, target.values)


def write(
    plan: ConversionPlan,
    output: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write what `plan` says; `progress(done, total)` is told bytes of tensor data. Nothing is left behind by an error."""
    done, total = 0, plan.nbytes
    specs = [(t.name, t.shape, t.type) for t in plan.tensors]
    with GGUFWriter(output, plan.metadata, specs, overwrite=overwrite) as writer:
        for target in plan.tensors:
            for slab in _slabs(target):
                writer.write(target.name, slab)
                done += slab.nbytes
                progress(done, total)
