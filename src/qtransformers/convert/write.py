"""Carrying a conversion out: tensor by tensor, slab by slab, so a model larger than memory passes through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from qtransformers.convert.checkpoints import plan_checkpoint
from qtransformers.convert.diffusion import is_diffusion_model, plan_diffusion_conversion
from qtransformers.convert.plan import Asked, ConversionPlan, Importance, Target
from qtransformers.convert.requantize import plan_requantization
from qtransformers.convert.weights import encoded, expect, first_rows
from qtransformers.errors import ConfigError
from qtransformers.gguf.writer import GGUFWriter
from qtransformers.load.checkpoint import INDEX, SINGLE, checkpoint_files
from qtransformers.load.config import read_json
from qtransformers.load.files import looked_up

DEFAULT_TYPE = "Q8_0"
T = TypeVar("T")
Progress = Callable[[int, int], None]  # (bytes, bytes in all)


def plan_conversion(
    model: str | Path,
    type: str = DEFAULT_TYPE,
    *,
    name: str | None = None,
    pre: str | None = None,
    overrides: Iterable[tuple[str, str]] = (),
    keep: Iterable[str] = (),
    importance: Importance | None = None,
    learns: bool = False,
    force: bool = False,
    layout: str | None = None,
    config: Mapping[str, Any] | str | Path | None = None,
) -> ConversionPlan:
    """What converting `model`, a Hugging Face folder (or a safetensors file in it) or a GGUF file, to the file type `type` (Q4_K_M, ...) will write.

    Of diffusion models a folder of diffusers (a pipeline's or the transformer's), a safetensors file of either layout, or a GGUF file;
    `layout` is that of the result (`original`, the default where there is one, or `diffusers`), `config` says what no tensor shows.
    `name` becomes general.name (default: the folder's), `pre` overrides the derived pre-tokenizer. `overrides` are (pattern, type)
    and `keep` patterns, regular expressions searched in the names of tensors: those get the type, or stay as they are stored.
    `importance` says by tensor how much each column counts, `[width]` or `[n_experts, width]`; with `learns` that will be found
    out on texts (`quantize.make`), and types are chosen as if it was known. `force` lets pass what is refused
    otherwise: weights that are not finite (0 is written) and the lowest types without importance.

    Raises ModelNotFoundError, UnsupportedError, ConfigError, or LoadError listing every tensor that is missing, unknown or mis-shaped.
    """
    return planned(
        model, Asked(type, name, pre, tuple(overrides), tuple(keep), importance, learns, force, layout, config)
    )


def planned(model: str | Path, asked: Asked) -> ConversionPlan:
    """As `plan_conversion`, of arguments in one."""
    path = _folder_of(looked_up("model", model))
    if is_diffusion_model(path):
        return plan_diffusion_conversion(path, asked)
    if asked.layout is not None or asked.config is not None:
        raise ConfigError(f"{path} is no diffusion model; leave out {'layout' if asked.layout is not None else 'config'}.")  # fmt: skip
    if path.is_file() or (path.is_dir() and not (path / "config.json").is_file() and any(path.glob("*.gguf"))):
        return plan_requantization(path, asked)
    return plan_checkpoint(path, asked)


def _folder_of(path: Path) -> Path:
    """The folder of a language model's safetensors file, whose config.json lies beside it; another path as it is."""
    beside = path.parent / "config.json"
    of_language = (
        path.suffix == ".safetensors" and path.is_file() and beside.is_file() and "model_type" in read_json(beside)
    )
    if not of_language:
        return path
    if path.name not in checkpoint_files(path.parent):
        raise ConfigError(f"{path} is no part of the model in {path.parent}, which is made of {SINGLE} or the files of {INDEX}. To convert that model, give the folder.")  # fmt: skip
    return path.parent


def convert(
    model: str | Path,
    output: str | Path | None = None,
    type: str = DEFAULT_TYPE,
    *,
    name: str | None = None,
    pre: str | None = None,
    overwrite: bool = False,
    max_bytes: int | None = None,
    **how: Any,
) -> Path:
    """Make a GGUF file from a Hugging Face folder or another GGUF file; the path of the file, of several the first.

    `output` defaults to `<folder>-<type>.gguf` in the working directory; `max_bytes` is of each file, for several. `how` and errors
    as for `plan_conversion`, and ConfigError when the output exists and `overwrite` is not set.
    """
    plan = plan_conversion(model, type, name=name, pre=pre, **how)
    target = Path(output) if output is not None else Path(default_name(plan))
    return write(plan, target, overwrite=overwrite, max_bytes=max_bytes)[0]


def default_name(plan: ConversionPlan) -> str:
    """`<model>-<type>.gguf`."""
    stem = plan.model.resolve().name
    return f"{stem.removesuffix('.gguf').removesuffix('.safetensors')}-{plan.file_type}.gguf"


def slabs(target: Target, force: bool = False) -> Iterator[NDArray[Any]]:
    """The target's values, piece by piece, as the writer takes them."""
    if isinstance(target.source, np.ndarray):
        yield target.source
        return
    n = len(target.source)
    for i, source in enumerate(target.source):
        importance = target.importance
        if importance is not None and n > 1 and importance.ndim == 2:
            importance = importance[i]
        yield from encoded(source, target.type, target.order, importance, force)


def write(
    plan: ConversionPlan,
    output: Path,
    *,
    overwrite: bool = False,
    max_bytes: int | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[Path, ...]:
    """Write what `plan` says, in files of at most `max_bytes`; their paths. `progress(done, total)` is told bytes of tensor data.

    Interrupted, or without room on the disk, what is done stays beside the output under a hidden name, and the same plan goes on
    from there the next time. Other errors leave nothing behind.
    """
    total = plan.nbytes
    specs = [(t.name, t.shape, t.type) for t in plan.tensors]
    with GGUFWriter(
        output,
        plan.metadata,
        specs,
        overwrite=overwrite,
        max_bytes=max_bytes,
        resume=plan.fingerprint() if plan.files else "",
    ) as writer:
        done = sum(target.nbytes for target in plan.tensors[: writer.finished])
        progress(done, total)
        for target, slab in ahead(_all_slabs(plan.tensors[writer.finished :], plan.force)):
            writer.write(target.name, slab)
            done += slab.nbytes
            progress(done, total)
    return writer.paths


def _all_slabs(targets: Sequence[Target], force: bool) -> Iterator[tuple[Target, NDArray[Any]]]:
    """The slabs of all targets; the beginning of each is read from disk while the one before is worked on."""
    for target, following in zip_longest(targets, targets[1:]):
        if following is not None and isinstance(following.source, tuple):
            expect(following.source[0], first_rows(following.source[0]))
        yield from ((target, slab) for slab in slabs(target, force))


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, each made in a thread of its own while the one before is used; what making one raises is raised here."""
    left = iter(items)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, left, None)
        while (item := waiting.result()) is not None:
            waiting = pool.submit(next, left, None)
            yield item
