"""GGUF back to a checkpoint: decoded weights in safetensors, by the names and in the shapes that Hugging Face has them."""

from __future__ import annotations

import json
import math
import shutil
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.archs import ArchSpec, Hyperparameters, Slot, dimension
from qtransformers.checks import shown
from qtransformers.convert.sources import Lying, Values
from qtransformers.convert.weights import SLAB
from qtransformers.convert.write import Progress
from qtransformers.errors import ConfigError, LoadError, QTransformersError, UnsupportedError
from qtransformers.gguf import GGUFFile
from qtransformers.gguf.shards import shard_name
from qtransformers.gguf.writer import AtomicFile, check_free, check_room
from qtransformers.load import prepare
from qtransformers.load.checkpoint import interleave
from qtransformers.load.config import read_json, text_config
from qtransformers.load.files import auxiliary_files
from qtransformers.load.names import by_gguf_name
from qtransformers.load.source import resolve
from qtransformers.quants import quantize
from qtransformers.types import BY_NAME, QuantType

TYPES = ("F16", "BF16", "F32")
SUFFIX = ".safetensors"


@dataclass(frozen=True, eq=False)
class Part:
    """A tensor of the checkpoint to be, and what of the file it is made from."""

    name: str
    shape: tuple[int, ...]
    made_of: tuple[tuple[Slot, Lying], ...]  # more than one where a matrix was split
    expert: int | None = None  # which of a stack


def restore(
    gguf_path: str | Path,
    output: str | Path,
    type: str = "F16",
    *,
    model_path: str | Path | None = None,
    max_bytes: int | None = None,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> tuple[Path, ...]:
    """Write the weights of a GGUF model as safetensors of `type` (F16, BF16, F32); the paths.

    With `max_bytes` (of each) the files are `<output without suffix>-00001-of-0000N.safetensors` and an index. Config and tokenizer
    are copied beside from `model_path`, or from the folder of the GGUF file where it holds those of such a model: a GGUF file does
    not hold config.json, and a warning says where there is none. ConfigError, UnsupportedError for an
    architecture without a spec or a tensor that has no name in checkpoints, LoadError for values that F16 does not hold.
    """
    row = BY_NAME.get(type.upper())
    if row is None or row.name not in TYPES:
        raise ConfigError(f"type is {type!r}; safetensors are written in {', '.join(TYPES)}.")
    output = Path(output)
    sources = resolve(gguf_path)
    prepared = prepare(sources)
    assert sources.gguf is not None
    with sources.gguf as gguf:
        hparams = prepared.hparams
        parts = list(_parts(gguf, hparams, by_gguf_name(prepared.spec, hparams)))
        sizes = [row.row_bytes(math.prod(p.shape)) for p in parts]
        shards = _spread(sizes, max_bytes)
        paths = _paths(output, len(shards), max_bytes)
        extra = _copied(model_path or _beside(gguf, prepared.spec, output), output.parent)
        for path in (*paths, *extra):
            check_free(path, overwrite)
        check_room(output.parent, sum(sizes))
        done, files = 0, [AtomicFile(path) for path in paths]
        try:
            for file, shard in zip(files, shards, strict=True):
                file.file.write(_header([(parts[i], sizes[i]) for i in shard], row))
                for i in shard:
                    for raw in _encoded(parts[i], row, hparams):
                        file.file.write(raw.data)
                        done += raw.nbytes
                        progress(done, sum(sizes))
            for file in files:
                file.commit()
        except BaseException as e:
            for file in files:
                file.discard()
            if isinstance(e, OSError) and not isinstance(e, QTransformersError):
                raise QTransformersError(f"{output}: {e.strerror or e}; nothing is left behind.") from e
            raise
        if max_bytes is not None:
            index = {parts[i].name: path.name for path, shard in zip(paths, shards, strict=True) for i in shard}
            text = json.dumps({"metadata": {"total_size": sum(sizes)}, "weight_map": index}, indent=1)
            _index_of(output).write_text(text, encoding="utf-8")
    for target, source in extra.items():
        shutil.copyfile(source, target)
    return paths


def _parts(gguf: GGUFFile, hparams: Hyperparameters, slots: Mapping[str, Slot]) -> Iterator[Part]:
    """Every tensor of the checkpoint; UnsupportedError where the file has one that no checkpoint has."""
    of_name: dict[str, list[tuple[Slot, Lying]]] = {}
    for name, tensor in gguf.tensors.items():
        slot = slots.get(name)
        if slot is None or slot.spec.from_config is not None:
            continue  # which nothing reads, or config.json says
        names = slot.hf_names(hparams)
        if len(names) > 1 and "{e}" in slot.spec.hf:
            shape = slot.shape(hparams)[1:]
            yield from (Part(n, shape, ((slot, Lying(tensor)),), e) for e, n in enumerate(names))
        elif names:
            of_name.setdefault(names[0], []).append((slot, Lying(tensor)))
        else:
            raise UnsupportedError(f"{gguf.path}: {name} has no name in a Hugging Face checkpoint.")
    for name, made_of in of_name.items():
        slot = made_of[0][0]
        yield Part(name, _shape(slot, hparams), tuple(made_of))


def _shape(slot: Slot, hparams: Mapping[str, Any]) -> tuple[int, ...]:
    """A tensor's shape in a checkpoint; of a bias, that of its weight without the inputs."""
    dims = slot.spec.hf_shape
    if not dims:
        return slot.shape(hparams)
    if slot.part == "bias":
        at = dims.index(slot.spec.shape[-1])
        dims = dims[:at] + dims[at + 1 :]
    return tuple(dimension(d, hparams) for d in dims)


def _encoded(part: Part, to: QuantType, hparams: Mapping[str, Any]) -> Iterator[NDArray[np.uint8]]:
    """The bytes of a tensor, in slabs where rows are rows."""
    slot, source = part.made_of[0]
    if slot.spec.hf_values is not None:
        yield _bytes(_assembled(part, hparams), to, part.name)
    else:
        n = math.prod(part.shape[:-1]) if len(part.shape) > 1 else part.shape[0]
        width = part.shape[-1] if len(part.shape) > 1 else 1
        first = n * (part.expert or 0)
        back = None
        if slot.spec.permute:
            back = np.argsort(interleave(n, hparams[slot.spec.permute]))
        step = max(1, SLAB // (4 * width))
        for start in range(0, n, step):
            stop = min(n, start + step)
            rows = slice(first + start, first + stop) if back is None else back[start:stop]
            yield _bytes(source.rows(rows), to, part.name)
            source.forget(rows)
    for _, source in part.made_of:
        source.forget()


def _assembled(part: Part, hparams: Mapping[str, Any]) -> Values:
    """A tensor whose values conversion changes, changed back: by the spec's own function, or to where they were taken from."""
    slot, source = part.made_of[0]
    whole = [lying.rows(slice(None)).reshape(lying.shape) for _, lying in part.made_of]
    if slot.spec.hf_back is not None:
        return slot.spec.hf_back(whole[0], hparams).reshape(part.shape)
    out = np.empty(part.shape, np.float32)
    # what stands for itself in matrices is asked for one of them, and the rest alike
    stacked = len(part.shape) == 3 and all(len(w) == part.shape[0] for w in whole)
    n = part.shape[0] if stacked else 1
    numbers: NDArray[Any] = np.arange(out.size // n).reshape((1, *part.shape[1:]) if stacked else part.shape)
    flat = out.reshape(n, -1)
    filled = 0
    for (own, _), values in zip(part.made_of, whole, strict=True):
        assert own.spec.hf_values is not None
        taken = np.asarray(own.spec.hf_values(numbers, hparams)).reshape(-1)
        flat[:, taken] = values.reshape(n, -1)
        filled += values.size
    if filled != out.size:
        raise LoadError(f"{source.file}: {part.name} needs {out.size} values, the file has {filled} of them.")
    return out


def _bytes(values: Values, to: QuantType, name: str) -> NDArray[np.uint8]:
    raw = quantize(np.ascontiguousarray(values).reshape(-1), to)
    if to.name == "F16" and not np.isfinite(raw.view(np.float16)).all():
        raise LoadError(f"{name} holds values that are not finite in F16. Write BF16 or F32 (-t).")
    return raw


def _header(parts: list[tuple[Part, int]], to: QuantType) -> bytes:
    """The head of a safetensors file, padded with blanks to whole words."""
    at, entries = 0, {}
    for part, size in parts:
        entries[part.name] = {"dtype": to.name, "shape": list(part.shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw


def _spread(sizes: list[int], max_bytes: int | None) -> list[list[int]]:
    """Which tensors go into which file."""
    shards: list[list[int]] = [[]]
    used = 0
    for i, size in enumerate(sizes):
        if max_bytes is not None and shards[-1] and used + size > max_bytes:
            shards.append([])
            used = 0
        shards[-1].append(i)
        used += size
    return shards


def _paths(output: Path, n: int, max_bytes: int | None) -> tuple[Path, ...]:
    if max_bytes is None:
        return (output,)
    stem = output.name.removesuffix(SUFFIX)
    return tuple(output.with_name(shard_name(stem, i, n).removesuffix(".gguf") + SUFFIX) for i in range(n))


def _index_of(output: Path) -> Path:
    return output.with_name(f"{output.name.removesuffix(SUFFIX)}{SUFFIX}.index.json")


def _beside(gguf: GGUFFile, spec: ArchSpec, output: Path) -> Path | None:
    """The folder of a GGUF file where it holds the config.json of such a model, and the weights go elsewhere."""
    folder = Path(gguf.path).parent
    there = folder / "config.json"
    if folder.resolve() == output.parent.resolve() or not there.is_file():
        if not (output.parent / "config.json").is_file():
            warnings.warn(f"{output.parent} will have no config.json, without which nothing reads the weights: give the original model's folder (--config)", stacklevel=3)  # fmt: skip
        return None
    model_type = text_config(read_json(there)).get("model_type")
    if model_type not in spec.hf_model_types:
        warnings.warn(f"{there} is of another model ({shown(model_type)}, not {spec.id}): it is not copied. Give the original model's folder (--config)", stacklevel=3)  # fmt: skip
        return None
    return folder


def _copied(model_path: str | Path | None, folder: Path) -> dict[Path, Path]:
    """The files of `model_path` that go beside the weights, by where."""
    if model_path is None:
        return {}
    found = auxiliary_files(Path(model_path))
    if "config.json" not in found:
        raise ConfigError(f"{model_path} has no config.json; expected the folder of the original model.")
    return {folder / name: path for name, path in found.items() if "/" not in name}
