"""What lies in a model directory or repository: the files we read, the weights we leave, pointers, shards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

# All that `model_path` is ever asked for. Nothing else is opened or downloaded.
ALLOWED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    "chat_templates/*.jinja",
    "additional_chat_templates/*.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
)
# Full-size weights, best layout first: repositories often hold the same weights twice.
WEIGHTS = ("model*.safetensors", "*.safetensors", "pytorch_model*.bin", "*.bin", "*.pth", "*.pt")
ALLOWED_BYTES = 256 << 20  # of one file; the largest tokenizers in use have about 35 MB
POINTER_START = b"version https://git-lfs.github.com/spec/v1"


def is_allowed(name: str) -> bool:
    """Whether `model_path` may be asked for this file, a path relative to it with forward slashes."""
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in ALLOWED)


def auxiliary_files(directory: Path) -> dict[str, Path]:
    """The allow-listed files of a directory that exist, by relative name."""
    found = {}
    for pattern in ALLOWED:
        for path in sorted(directory.glob(pattern)):
            if path.is_file():
                found[path.relative_to(directory).as_posix()] = path
    return found


def full_weights(sizes: Mapping[str, int]) -> dict[str, int]:
    """The files of one full set of unquantised weights among `sizes` (bytes by relative name); empty when there is none."""
    for pattern in WEIGHTS:
        found = {name: n for name, n in sizes.items() if "/" not in name and fnmatchcase(name, pattern)}
        if found:
            return found
    return {}


def pointer_size(path: Path) -> int | None:
    """Bytes of the file a git-LFS pointer stands for; None when `path` is no pointer."""
    if path.stat().st_size > 1024:
        return None
    raw = path.read_bytes()
    if not raw.startswith(POINTER_START):
        return None
    size = re.search(rb"^size (\d{1,18})$", raw, re.MULTILINE)
    return int(size.group(1)) if size else 0


def weight_sizes(directory: Path) -> tuple[dict[str, int], int]:
    """One full set of unquantised weights in a directory, in real bytes also where pointers stand; how many are pointers."""
    pointers: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for path in directory.iterdir():
        if path.is_file() and any(fnmatchcase(path.name, pattern) for pattern in WEIGHTS):
            real = pointer_size(path)
            sizes[path.name] = path.stat().st_size if real is None else real
            if real is not None:
                pointers[path.name] = real
    chosen = full_weights(sizes)
    return chosen, len(chosen.keys() & pointers.keys())


def lfs_remedy(names: Iterable[str], directory: Path) -> str:
    """The command that turns pointers into files."""
    return f'In {directory}, run: git lfs pull --include="{",".join(sorted(names))}"'


def size_text(n: int) -> str:
    """Bytes for people, in decimal units: `4.92 GB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale:
            return f"{n / scale:.3g} {unit}" if n < 1000 * scale else f"{n / scale:.0f} {unit}"
    return f"{n} bytes"
