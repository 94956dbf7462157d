"""Models of transformers to GGUF: those with quantised weights as they are, plain ones by way of a checkpoint."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qtransformers.archs.hparams import Hyperparameters
from qtransformers.archs.spec import Slot
from qtransformers.convert import convert
from qtransformers.errors import ConfigError, LoadError
from qtransformers.gguf import GGUFWriter
from qtransformers.gguf.encode import TensorSpec
from qtransformers.gguf.shards import SPLIT_KEYS
from qtransformers.load import prepare, resolve
from qtransformers.load.files import auxiliary_files
from qtransformers.quants import quantize
from qtransformers.tensor import QTensor
from qtransformers.torch.loading import Origin
from qtransformers.torch.places import to_class, to_file
from qtransformers.torch.weight import QuantWeight

PLAIN = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def save_gguf(model: Any, path: str | Path, type: str | None = None, *, tokenizer: Any = None, overwrite: bool = False) -> Path:  # fmt: skip
    """Write a model of transformers as a GGUF file of a type that `convert` knows (Q8_0, ...); the path of the file.

    `type` None keeps what the model has: quantised weights as they are, of a plain model its dtype. A model of
    `load_transformers` takes metadata and vocabulary from its file, and the values of its parameters as they are now. A
    plain model needs `tokenizer`, one of transformers or a folder with its files, and as much disk again for the time of writing.
    ConfigError for a path that exists (unless `overwrite`), a plain model without a tokenizer, a loaded one whose layers were
    replaced, and a type that nothing encodes.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists. Choose another name, or pass overwrite=True.")
    if not path.parent.is_dir():
        raise ConfigError(f"{path.parent} is no folder to write to. Make it first, or choose another.")
    origin = getattr(model, "gguf", None)
    if isinstance(origin, Origin) and type is None:
        _write_as_it_is(model, origin, path, overwrite)
        return path
    wanted = type or PLAIN.get(model.dtype)
    if wanted is None:
        raise ConfigError(f"the model's dtype is {model.dtype}; expected a type to write, such as 'Q8_0'.")
    with tempfile.TemporaryDirectory(prefix=".save_gguf-", dir=path.parent) as temporary:
        folder = Path(temporary) / (path.stem or "model")
        if isinstance(origin, Origin):
            source, named = Path(temporary) / "model.gguf", str(origin.file)
            _write_as_it_is(model, origin, source, False)
        else:
            source, named = _checkpoint(model, tokenizer, folder), model.__class__.__name__
        with _warned_of(str(source), named):
            return convert(source, path, wanted, overwrite=overwrite)


@contextmanager
def _warned_of(temporary: str, named: str) -> Iterator[None]:
    """Warnings of a file that is there for now speak of what it stands for."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield
    for warning in seen:
        warnings.warn(str(warning.message).replace(temporary, named), warning.category, stacklevel=4)


def _checkpoint(model: Any, tokenizer: Any, folder: Path) -> Path:
    """The model as a folder of Hugging Face files."""
    if any(isinstance(m, QuantWeight) for m in model.modules()):
        raise ConfigError(f"{type(model).__name__} has quantised layers, but is no model of load_transformers; save_gguf does not know which tensors they are.")  # fmt: skip
    if tokenizer is None:
        raise ConfigError("a GGUF file holds the vocabulary, which a model of transformers does not; pass tokenizer=, an object or the folder of its files.")  # fmt: skip
    model.save_pretrained(folder)
    if not isinstance(tokenizer, (str, Path)):
        tokenizer.save_pretrained(folder)
        return folder
    for name, file in auxiliary_files(Path(tokenizer)).items():
        if not (folder / name).exists():  # config.json is the model's own
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(file, folder / name)
    return folder


def _write_as_it_is(model: Any, origin: Origin, path: Path, overwrite: bool) -> None:
    """The file that a model came from, with the model's own blocks and parameters."""
    if not Path(origin.file).exists():
        raise LoadError(f"{origin.file}, which the model was loaded from, is gone; its metadata and vocabulary are needed. Put it back.")  # fmt: skip
    if path.exists() and path.samefile(origin.file):
        raise ConfigError(f"{path} is the file the model reads its weights from. Choose another name.")
    sources = resolve(origin.file)
    gguf = sources.gguf
    assert gguf is not None  # it has a path
    prepared = prepare(sources)
    slots = {p.slot.name: p.slot for p in prepared.plan.tensors}
    blocks: dict[str, dict[int, QuantWeight]] = {}
    for module in model.modules():
        if isinstance(module, QuantWeight):
            blocks.setdefault(module.name, {})[id(module)] = module
    plain: dict[str, list[str]] = {}
    for parameter, tensor in origin.plain.items():
        plain.setdefault(tensor, []).append(parameter)
    known = model.state_dict(keep_vars=True).keys()
    if gone := sorted((origin.blocks - blocks.keys()) | {t for t, names in plain.items() if not known >= set(names)}):
        raise ConfigError(f"the model has other layers now than it was loaded with, in place of {', '.join(gone[:4])}; save_gguf cannot write them as blocks. Change dequantized(model), and save that with a type.")  # fmt: skip
    metadata = {key: gguf.metadata.encoded(key) for key in gguf.metadata if key not in SPLIT_KEYS}
    specs = [TensorSpec(t.name, t.shape, t.type) for t in gguf.tensors.infos()]
    with GGUFWriter(path, metadata, specs, big_endian=gguf.big_endian, overwrite=overwrite) as writer:
        for spec in specs:
            theirs = gguf.tensors[spec.name]
            if spec.name in blocks:
                data = list(_bytes(list(blocks[spec.name].values()), theirs))
            elif spec.name in plain:
                data = [_plain_bytes(model, plain[spec.name], slots[spec.name], prepared.hparams, theirs)]
            else:
                data = [theirs.data]  # factors of rope, and what the class has no use for
            whole = QTensor(spec.name, spec.type, theirs.shape, np.concatenate(data) if len(data) > 1 else data[0])
            writer.write(spec.name, whole)


def _bytes(weights: list[QuantWeight], theirs: QTensor) -> Iterator[NDArray[np.uint8]]:
    """The blocks of a tensor, which several layers may share out; rows that none has, of tokens there are not, from the file."""
    done = 0
    for weight in weights:
        data = weight.tensor.data
        if weight.quant_type is not theirs.type or done + data.nbytes > theirs.nbytes:
            raise LoadError(f"{weight.name} is {weight.quant_type.name} in {data.nbytes} bytes in the model; {theirs.file} has {theirs.type.name} in {theirs.nbytes}. The file is another now.")  # fmt: skip
        done += data.nbytes
        yield data
    yield theirs.data[done:]


def _plain_bytes(model: Any, names: list[str], slot: Slot, hparams: Hyperparameters, theirs: QTensor) -> NDArray[np.uint8]:  # fmt: skip
    """The bytes of parameters as the file has them, in its type; the file's own where nothing has changed."""
    state = dict(model.state_dict(keep_vars=True))
    now = [state[name].detach().cpu() for name in names]
    stacks = slot.spec.role == "experts"  # lie as in the file
    old = theirs.dequantize()
    shares = old if len(names) > 1 else old[None]
    same = [
        values if stacks else to_class(slot, values, tuple(p.shape), hparams) for values, p in zip(shares, now, strict=True)
    ]  # fmt: skip
    if all(v is not None and torch.equal(torch.tensor(v).to(p.dtype), p) for v, p in zip(same, now, strict=True)):
        return theirs.data
    parts = [p.to(torch.float32).numpy() for p in now]
    values = parts[0] if len(parts) == 1 else np.stack(parts)
    values = values if stacks else to_file(slot, values, hparams)
    return quantize(np.ascontiguousarray(values, np.float32).reshape(-1), theirs.type)
