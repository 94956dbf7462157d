"""Importance matrices: the mean square of what each column of each weight is multiplied with.

Collected from texts, and read and written in llama.cpp's forms: GGUF (`<weight>.in_sum2`, `<weight>.counts`) and, read only,
the older `.dat`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.errors import GGUFError, LoadError, ModelNotFoundError
from qtransformers.gguf import GGUFFile, GGUFWriter
from qtransformers.kernels.cpu import Pool
from qtransformers.machine import usable_cores
from qtransformers.quantize.observe import Site, watched
from qtransformers.quantize.passes import CHUNK, Ints, logits, one_layer_cache, side_by_side, slices
from qtransformers.settings import Settings
from qtransformers.types import BY_NAME

if TYPE_CHECKING:
    from qtransformers.load import Loaded

F32 = NDArray[np.float32]
MAX_NAME, MAX_VALUES = 1 << 10, 1 << 28  # of a `.dat`, whose lengths nothing else bounds
KIND = "imatrix"


@dataclass(frozen=True, eq=False)
class Sums:
    """Of one weight: sums of squares `[n, in]` over the inputs of each of its matrices, and how many those were `[n]`."""

    squares: NDArray[np.float64]
    counts: NDArray[np.int64]

    def mean(self) -> F32:
        """Mean squares `[n, in]`; a matrix that met nothing (an expert nobody chose) has those of all together."""
        total = self.squares.sum(0) / max(1, self.counts.sum())
        met = (self.counts > 0)[:, None]
        found = np.where(met, self.squares / np.maximum(1, self.counts)[:, None], total)
        return found.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Imatrix:
    """What was collected, by the names of the weights, and of what."""

    sums: Mapping[str, Sums]
    datasets: tuple[str, ...] = ()
    n_chunks: int = 0
    chunk: int = CHUNK  # tokens
    file: str = ""
    _means: dict[str, F32] = field(default_factory=dict, repr=False)

    def importance(self, name: str, shape: tuple[int, ...]) -> F32 | None:
        """Mean squares for the columns of the weight called `name` `[*, out, in]`: `[n, in]`, or None where there are none.

        LoadError where its widths or numbers of experts are others.
        """
        if name not in self.sums:
            return None
        found = self._means.setdefault(name, self.sums[name].mean())
        n = shape[0] if len(shape) == 3 else 1
        if found.shape[1] != shape[-1] or found.shape[0] not in (1, n):
            raise LoadError(f"{self.file}: {name} has importances {list(found.shape)}; expected {[n, shape[-1]]}. It was made for another model: collect it again (qtransformers imatrix).")  # fmt: skip
        return np.broadcast_to(found, (n, shape[-1]))


def collect(model: Loaded, rows: Ints, *, datasets: Sequence[str] = (), progress: Callable[[int, int], None] | None = None) -> Imatrix:  # fmt: skip
    """Run the texts `rows [n, chunk]` through a model and sum what comes to its weights."""
    squares: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, NDArray[np.int64]] = {}

    def arrive(site: Site, x: F32, which: Ints | None) -> Any:
        n = site.n_matrices
        total = squares.setdefault(site.name, np.zeros((n, x.shape[1])))
        count = counts.setdefault(site.name, np.zeros(n, np.int64))
        for e in (0,) if which is None else np.unique(which).tolist():
            own = x if which is None else x[which == e]
            total[e] += np.einsum("ti,ti->i", own, own, dtype=np.float64)
            count[e] += len(own)
        return site.weight

    weights = watched(model, arrive)
    at_once = max(1, 4 * CHUNK // rows.shape[1])
    cache = one_layer_cache(model, at_once, rows.shape[1])
    pool = Pool(Settings.from_env().threads or usable_cores(), Settings.from_env().isa or "")
    for part in slices(len(rows), at_once):
        with pool:
            logits(model, side_by_side(rows[part]), cache, weights)
        if progress:
            progress(part.stop, len(rows))
    sums = {name: Sums(squares[name], counts[name]) for name in squares}
    return Imatrix(sums, tuple(datasets), len(rows), rows.shape[1], model.plan.file)


def write(imatrix: Imatrix, path: str | Path, *, overwrite: bool = False) -> None:
    """Write llama.cpp's GGUF form."""
    metadata = {
        "general.type": KIND,
        "imatrix.datasets": list(imatrix.datasets) or ["unnamed"],
        "imatrix.chunk_count": np.uint32(imatrix.n_chunks),
        "imatrix.chunk_size": np.uint32(imatrix.chunk),
    }
    arrays: dict[str, F32] = {}
    for name, sums in sorted(imatrix.sums.items()):
        one = len(sums.counts) == 1
        arrays[f"{name}.in_sum2"] = sums.squares.astype(np.float32)[0 if one else slice(None)]
        arrays[f"{name}.counts"] = sums.counts.astype(np.float32) if one else sums.counts.astype(np.float32)[:, None]
    specs = [(name, values.shape, BY_NAME["F32"]) for name, values in arrays.items()]
    with GGUFWriter(path, metadata, specs, overwrite=overwrite) as writer:
        for name, values in arrays.items():
            writer.write(name, np.ascontiguousarray(values))


def read(path: str | Path) -> Imatrix:
    """An importance matrix in either form. ModelNotFoundError, GGUFError or LoadError for what is none."""
    path = Path(path)
    if not path.is_file():
        if path.exists() and not path.is_dir():
            raise ModelNotFoundError(f"{path} is a pipe or a device; an importance matrix is read from a file. Save it first.")  # fmt: skip
        raise ModelNotFoundError(f"{path} is no file. Collect an importance matrix with qtransformers imatrix.")
    with path.open("rb") as file:
        return _read_gguf(path) if file.read(4) == b"GGUF" else _read_dat(path)


def _read_gguf(path: Path) -> Imatrix:
    sums: dict[str, Sums] = {}
    with GGUFFile(path) as file:
        if file.metadata.get("general.type") != KIND:
            raise LoadError(f"{path}: general.type is {file.metadata.get('general.type')!r}; expected {KIND!r}. Give an importance matrix.")  # fmt: skip
        for name, tensor in file.tensors.items():
            weight, dot, kind = name.rpartition(".")
            if not dot or kind not in ("in_sum2", "counts"):
                raise LoadError(f"{path}: {name} is no part of an importance matrix; expected <weight>.in_sum2 and <weight>.counts. It is damaged.")  # fmt: skip
            if kind == "counts":
                continue
            if f"{weight}.counts" not in file.tensors:
                raise LoadError(
                    f"{path}: {name} has no {weight}.counts beside it. The file is damaged: collect it again."
                )
            squares = _finite(tensor.dequantize(), f"{path}: {name}")
            counts = _finite(file.tensors[f"{weight}.counts"].dequantize(), f"{path}: {weight}.counts").reshape(-1)
            squares = squares.reshape(-1, squares.shape[-1] if squares.ndim else 1)
            if len(counts) not in (1, len(squares)):
                raise LoadError(f"{path}: {name} has {len(squares)} rows and {len(counts)} counts. The file is damaged: collect it again.")  # fmt: skip
            each = np.broadcast_to(counts, len(squares)).astype(np.int64)
            sums[weight] = Sums(squares.astype(np.float64), each)
        m = file.metadata
        datasets = m.get("imatrix.datasets")
        return Imatrix(
            sums, tuple(map(str, datasets)) if datasets is not None else (), _number(m.get("imatrix.chunk_count"), 0),
            _number(m.get("imatrix.chunk_size"), CHUNK), str(path),
        )  # fmt: skip


def _number(value: Any, default: int) -> int:
    return int(value) if isinstance(value, (int, np.integer)) else default


def _finite(values: F32, what: str) -> F32:
    if not (np.isfinite(values) & (values >= 0)).all():
        raise LoadError(f"{what} has values that are no finite numbers above 0. The file is damaged: collect it again.")
    return values


def _read_dat(path: Path) -> Imatrix:
    """int32 entries, then each: length and name, calls, number of values, their mean squares times calls; at last calls and a dataset."""
    data, at = path.read_bytes(), 0

    def take(n: int, what: str) -> bytes:
        nonlocal at
        if not 0 <= n <= len(data) - at:
            raise GGUFError(f"{path} ends within {what}, or is no importance matrix: {n} bytes expected at {at}, {len(data) - at} are left.")  # fmt: skip
        at += n
        return data[at - n : at]

    def number(what: str, most: int) -> int:
        (n,) = struct.unpack("<i", take(4, what))
        if not 0 <= n <= most:
            raise GGUFError(
                f"{path}: {what} is {n}; expected 0 to {most}. The file is damaged or no importance matrix."
            )
        return int(n)

    sums: dict[str, Sums] = {}
    for _ in range(number("the number of entries", 1 << 20)):
        name = take(number("the length of a name", MAX_NAME), "a name").decode("utf-8", "replace")
        calls = number(f"the calls of {name}", 2**31 - 1)
        values = np.frombuffer(take(4 * number(f"the values of {name}", MAX_VALUES), name), "<f4")
        squares = _finite(values, f"{path}: {name}").astype(np.float64)[None]
        sums[name] = Sums(squares, np.array([max(1, calls)]))
    n_chunks = number("the number of chunks", 2**31 - 1) if at < len(data) else 0
    dataset = take(number("the length of the dataset's name", 1 << 20), "its name").decode("utf-8", "replace") if at < len(data) else ""  # fmt: skip
    return Imatrix(sums, (dataset,) if dataset else (), n_chunks, CHUNK, str(path))
