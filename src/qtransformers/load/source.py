"""Two paths to one model: which files there are, what was fetched for them, what was spared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from qtransformers.errors import ConfigError, LoadError, ModelNotFoundError, QTransformersError
from qtransformers.gguf import GGUFFile
from qtransformers.load.files import (  # fmt: skip
    auxiliary_files,
    lfs_remedy,
    looked_up,
    other_tokenizer_files,
    pointer_size,
    size_text,
    weight_sizes,
)
from qtransformers.load.hub import Fetched, Hub, fetch_auxiliary
from qtransformers.load.originals import PIPELINE
from qtransformers.load.references import parse_reference
from qtransformers.settings import Settings

# general.type of files that lie beside models, and what they are
COMPANIONS = {
    "mmproj": "the vision or audio part of a multimodal model (mmproj)",
    "clip": "the vision or audio part of a multimodal model (mmproj)",
    "adapter": "a LoRA adapter",
    "imatrix": "an importance matrix",
}
_SHARD = re.compile(r"(?P<stem>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


@dataclass(frozen=True)
class Report:
    """What two-path loading moved and what it spared, in bytes."""

    fetched: int = 0  # over the network, now
    skipped: int = 0  # weights of model_path that stay where they are
    full: int = 0  # the unquantised weights
    full_is: str = ""  # where that number comes from
    gguf: int = 0
    on_disk: int = 0  # of the unquantised weights, the part that lies on this disk
    hub: bool = False  # model_path is a Hub id
    notes: tuple[str, ...] = ()

    @property
    def memory_saved(self) -> int:
        """Memory that the GGUF needs less than the unquantised weights would."""
        return max(0, self.full - self.gguf) if self.gguf else 0

    @property
    def disk_saved(self) -> int:
        """Disk that is not needed because the unquantised weights are not there."""
        return max(0, self.full - self.on_disk - self.gguf) if self.gguf else 0

    def text(self) -> str:
        """Lines for people."""
        lines = list(self.notes)
        if self.hub:
            skipped = f"{self.skipped / 1e9:.2f} GB" if self.skipped >= 1e7 else size_text(self.skipped)
            lines.append(f"model_path: {self.fetched / 1e6:.2f} MB fetched from the Hub, {skipped} of weights skipped")
        disk = f"{size_text(self.disk_saved)} of disk and " if self.disk_saved else ""
        if self.memory_saved:
            lines.append(
                f"weights: {size_text(self.gguf)} in the GGUF instead of {size_text(self.full)} ({self.full_is}): "
                f"saves {disk}{size_text(self.memory_saved)} of memory"
            )
        if self.gguf and self.on_disk:
            lines.append(f"{size_text(self.on_disk)} of unquantised weights in model_path are not used and could be deleted")  # fmt: skip
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Sources:
    """The files a model is made of: structure and weights from `gguf`, the rest from `files` where given, else `gguf`."""

    gguf: GGUFFile | None
    model_dir: Path | None
    files: Mapping[str, Path]  # allow-listed files of model_dir, by relative name
    report: Report


def resolve(
    gguf_path: str | Path | None = None,
    model_path: str | Path | None = None,
    settings: Settings | None = None,
    hub: Hub | None = None,
) -> Sources:
    """Find and check the files of both paths; each may be None, not both.

    `gguf_path` is a file, a first shard, or a folder with one model; `model_path` a directory or a Hub id, of which only
    allow-listed files are read. Raises ConfigError, ModelNotFoundError, LoadError, GGUFError, NetworkError.
    """
    if gguf_path is None and model_path is None:
        raise ConfigError("neither gguf_path nor model_path is given; pass the weights, the original model's directory or id, or both.")  # fmt: skip
    gguf = open_model(gguf_path) if gguf_path is not None else None
    if model_path is None:
        return Sources(gguf, None, MappingProxyType({}), _report(gguf, None, None))
    hub = hub or Hub(offline=(settings or Settings.from_env()).offline)
    directory, fetched = find_directory(model_path, hub)
    files = auxiliary_files(directory)
    unread = other_tokenizer_files(files)
    pointers = [name for name, path in files.items() if name not in unread and pointer_size(path) is not None]
    if pointers:
        verb = "is a git-LFS pointer, not the file itself" if len(pointers) == 1 else "are git-LFS pointers, not the files themselves"  # fmt: skip
        raise ModelNotFoundError(f"{directory}: {', '.join(pointers)} {verb}. {lfs_remedy(pointers, directory)}")
    if not files:
        beside = sorted(p.name for p in directory.iterdir())[:6]
        raise ModelNotFoundError(
            f"model_path {directory} has no config.json, tokenizer.json or other file of a model; "
            f"it holds {', '.join(beside) or 'nothing'}. Pass the directory or Hub id of the original model."
        )
    return Sources(gguf, directory, MappingProxyType(files), _report(gguf, directory, fetched))


def find_directory(model_path: str | Path, hub: Hub) -> tuple[Path, Fetched | None]:
    """The directory of `model_path`; a Hub id is fetched when no directory of that name exists."""
    path = looked_up("model_path", model_path)
    if path.is_dir():
        return path, None
    if path.exists():
        use = f"gguf_path={str(model_path)!r}" if path.suffix.lower() == ".gguf" else f"the directory, {str(path.parent)!r}"  # fmt: skip
        raise ModelNotFoundError(f"model_path {model_path} is a file; expected a directory or a Hub id. Pass {use}.")
    ref = parse_reference(model_path) if isinstance(model_path, str) else None
    if ref is None or ref.quant:
        raise ModelNotFoundError(
            f"model_path {model_path}: no such directory, and not a Hub id either (user/repo or user/repo@revision). Check the path."
        )
    fetched = fetch_auxiliary(ref, hub)
    return fetched.directory, fetched


def open_model(gguf_path: str | Path) -> GGUFFile:
    """The model in a file, a first shard or a folder, opened; errors name what is there instead."""
    path = looked_up("gguf_path", gguf_path)
    if not path.exists():
        ref = parse_reference(str(gguf_path)) if isinstance(gguf_path, str) else None
        hint = f" To load it from the Hub: Model.from_pretrained({gguf_path!r})" if ref else " Check the path"
        raise ModelNotFoundError(f"gguf_path {gguf_path}: no such file or folder.{hint}.")
    gguf = GGUFFile(_only_model(path) if path.is_dir() else path)
    kind = companion(gguf)
    if kind:
        raise LoadError(f"{gguf.path} is {kind}, not a model. Pass the GGUF file of the model itself as gguf_path.")
    return gguf


def companion(gguf: GGUFFile) -> str | None:
    """What a GGUF file is when it is no model of its own, by its own words; None for a model."""
    for key in ("general.type", "general.architecture"):
        kind = gguf.metadata.get(key)
        if isinstance(kind, str) and kind in COMPANIONS:
            return COMPANIONS[kind]
    return None


def _only_model(folder: Path) -> Path:
    """The one model in a folder or its subfolders; LoadError lists them when there are several."""
    found = [p for pattern in ("*", "*/*") for p in sorted(folder.glob(pattern)) if p.suffix.lower() == ".gguf" and p.name[0] != "." and p.is_file()]  # fmt: skip
    pointers: list[Path] = []
    models: list[Path] = []
    others: list[str] = []
    unreadable: list[Path] = []
    for path in _first_shards(found):
        if pointer_size(path) is not None:
            pointers.append(path)
            continue
        try:
            with GGUFFile(path) as gguf:
                kind = companion(gguf)
        except QTransformersError as e:
            kind = None
            others.append(f"{path.relative_to(folder)} cannot be opened: {e}")
            unreadable.append(path)
        if kind is None:
            models.append(path)
        else:
            others.append(f"{path.relative_to(folder)} is {kind}")
    if len(models) == 1:
        return models[0]
    aside = "".join(f"\n  {line}" for line in others)
    if models:
        names = ", ".join(str(p.relative_to(folder)) for p in models)
        such = next((p for p in models if p not in unreadable), models[0])
        raise LoadError(f"{folder} holds {len(models)} models: {names}. Pass the path of one, such as {such}.{aside}")
    if pointers:
        names = ", ".join(str(p.relative_to(folder)) for p in pointers)
        remedy = lfs_remedy([pointers[0].relative_to(folder).as_posix()], folder)
        raise ModelNotFoundError(f"gguf_path {folder}: {names}: git-LFS pointers, not the files themselves. {remedy}{aside}")  # fmt: skip
    if any(folder.glob("*.safetensors")) or (folder / "config.json").exists():
        remedy = (
            "It looks like an original model: pass it as model_path, or make a GGUF of it with qtransformers convert"
        )
    elif (folder / PIPELINE).exists():
        remedy = "It is a pipeline of diffusers: make a GGUF of its transformer with qtransformers convert"
    else:
        remedy = "Pass the path of a .gguf file"
    raise ModelNotFoundError(f"gguf_path {folder} holds no GGUF model. {remedy}.{aside}")


def _first_shards(paths: list[Path]) -> list[Path]:
    """One path a model: shards stand for their first, or, when that is missing, for the lowest there is."""
    chosen: dict[tuple[Path, str], Path] = {}
    for path in sorted(paths):
        shard = _SHARD.fullmatch(path.name)
        key = (path.parent, f"{shard['stem']}/{shard['count']}" if shard else path.name)
        chosen.setdefault(key, path)
    return list(chosen.values())


def _report(gguf: GGUFFile | None, directory: Path | None, fetched: Fetched | None) -> Report:
    size = gguf.nbytes if gguf else 0
    sizes, pointers = weight_sizes(directory) if directory and not fetched else ({}, set[str]())
    if fetched and fetched.weights:
        sizes = dict(fetched.weights)
    skipped = sum(sizes.values())
    n = f"{len(pointers)} of them " if len(pointers) < len(sizes) else ""
    where = "on the Hub" if fetched else f"in model_path, {n}git-LFS pointers" if pointers else "in model_path"
    return Report(
        fetched=fetched.fetched if fetched else 0,
        skipped=skipped,
        full=skipped or (2 * sum(t.n_values for t in gguf.tensors.values()) if gguf else 0),
        full_is=f"{len(sizes)} weight file{'s' if len(sizes) > 1 else ''} {where}" if sizes else "at 16 bits a weight",
        gguf=size,
        on_disk=0 if fetched else sum(size for name, size in sizes.items() if name not in pointers),
        hub=fetched is not None,
        notes=(fetched.note,) if fetched and fetched.note else (),
    )
