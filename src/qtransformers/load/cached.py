"""GGUF models in the cache of the Hub, as its manager (huggingface_hub.scan_cache_dir) knows them: listed, removed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtransformers.errors import ConfigError, ModelNotFoundError
from qtransformers.load.hub import Hub, cache_folder, repository_folder
from qtransformers.load.references import Reference, is_wanted, parse_reference, quants


@dataclass(frozen=True)
class CachedModel:
    """One quantisation of a repository at one commit."""

    repo: str
    quant: str
    commit: str
    files: tuple[Path, ...]  # in the snapshot, in order of shards
    blobs: tuple[Path, ...]  # what lies behind them
    nbytes: int
    modified: float  # seconds since 1970

    @property
    def name(self) -> str:
        """What every verb takes as MODEL."""
        return f"{self.repo}:{self.quant}"


def models(hub: Hub) -> list[CachedModel]:
    """Every GGUF model in the cache, by name; none where there is no cache."""
    return sorted((m for repo in _repositories(hub) for m in _models_of(repo)), key=lambda m: (m.name, m.commit))


def unfinished(hub: Hub) -> dict[str, int]:
    """Bytes of downloads that were interrupted, by repository."""
    found: dict[str, int] = {}
    for part in sorted(cache_folder(hub).glob("models--*/blobs/*.incomplete")):
        repo = part.parents[1].name.removeprefix("models--").replace("--", "/", 1)
        found[repo] = found.get(repo, 0) + part.stat().st_size
    return found


@dataclass(frozen=True)
class Removal:
    """What is to go: files of snapshots, blobs that nothing else uses, or all of a repository."""

    ref: Reference
    models: tuple[CachedModel, ...]
    links: tuple[Path, ...]
    blobs: tuple[Path, ...]
    whole: Path | None = None  # the folder of the repository, where all of it goes
    nbytes: int = 0  # of disk that becomes free

    def execute(self) -> None:
        """Remove it."""
        if self.whole is not None:
            shutil.rmtree(self.whole)
            return
        for path in (*self.links, *self.blobs):
            path.unlink(missing_ok=True)
        for folder in {parent for link in self.links for parent in link.parents}:
            if "snapshots" in folder.parts[:-1]:
                with suppress(OSError):  # not empty
                    folder.rmdir()


def plan_removal(text: str, hub: Hub) -> Removal:
    """What `rm user/repo[:QUANT]` would remove: only what the manager of the cache counts to that repository.

    ConfigError for a path; ModelNotFoundError, with what there is, for what is not in the cache.
    """
    ref = parse_reference(text)
    if ref is None or Path(text).exists():
        raise ConfigError(f"{text!r} is no model of the Hub's cache; expected user/repo or user/repo:QUANT. Delete files of your own by hand.")  # fmt: skip
    repo = next((r for r in _repositories(hub) if r.repo_id == ref.repo), None)
    if repo is None:
        there = ", ".join(sorted({m.name for m in models(hub)})[:8]) or "no model"
        raise ModelNotFoundError(f"{ref.repo} is not in the cache, {cache_folder(hub)}. It has {there}.")
    found = [
        m for m in _models_of(repo) if ref.quant is None or is_wanted(m.quant, [p.name for p in m.files], ref.quant)
    ]
    if ref.quant is None:
        # Not by the manager's delete_revisions: it knows commits only, and copies of a repository share them.
        folder = repository_folder(ref.repo, hub)
        if Path(repo.repo_path) != folder or folder.is_symlink():
            raise ConfigError(f"{repo.repo_path} is no folder that the cache made. Remove it by hand.")
        return Removal(ref, tuple(found), (), (), folder, repo.size_on_disk)
    if not found:
        labels = ", ".join(sorted({m.quant for m in _models_of(repo)})) or "no GGUF file"
        raise ModelNotFoundError(f"{ref.repo} in the cache has no quant {ref.quant}. It has {labels}.")
    links = tuple(dict.fromkeys(path for m in found for path in m.files))
    going = {path for m in found for path in m.blobs}
    kept = {Path(f.blob_path) for r in repo.revisions for f in r.files if Path(f.file_path) not in links}
    own = Path(repo.repo_path) / "blobs"
    blobs = tuple(sorted(b for b in going - kept if b.parent == own))
    return Removal(ref, tuple(found), links, blobs, None, sum(b.stat().st_size for b in blobs))


def _repositories(hub: Hub) -> Iterator[Any]:
    from huggingface_hub import scan_cache_dir

    if cache_folder(hub).is_dir():
        yield from (repo for repo in scan_cache_dir(cache_folder(hub)).repos if repo.repo_type == "model")


def _models_of(repo: Any) -> Iterator[CachedModel]:
    for revision in repo.revisions:
        root = Path(revision.snapshot_path)
        files = {Path(f.file_path).relative_to(root).as_posix(): f for f in revision.files}
        for (label, _), names in quants({name: f.size_on_disk for name, f in files.items()}).items():
            these = [files[name] for name in names]
            yield CachedModel(
                repo.repo_id,
                label,
                revision.commit_hash,
                tuple(Path(f.file_path) for f in these),
                tuple(Path(f.blob_path) for f in these),
                sum(f.size_on_disk for f in these),
                max(f.blob_last_modified for f in these),
            )
