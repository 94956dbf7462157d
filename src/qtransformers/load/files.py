"""What lies in a model directory or repository: the files we read, the weights we leave, pointers, shards."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from qtransformers.checks import shown
from qtransformers.errors import ConfigError, ModelNotFoundError

# All that `model_path` is ever asked for. Nothing else is opened or downloaded.
ALLOWED = (
    "config.json",
    "hf_quant_config.json",
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
TOKENIZER_JSON = "tokenizer.json"
SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
BYTE_LEVEL = ("vocab.json", "merges.txt")
# Full-size weights, best layout first: repositories often hold the same weights twice.
WEIGHTS = ("model*.safetensors", "*.safetensors", "pytorch_model*.bin", "*.bin", "*.pth", "*.pt")
ALLOWED_BYTES = 256 << 20  # of one file; the largest tokenizers in use have about 35 MB
POINTER_START = b"version https://git-lfs.github.com/spec/v1"


def is_allowed(name: str) -> bool:
    """Whether `model_path` may be asked for this file, a path relative to it with forward slashes."""
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in ALLOWED)


def looked_up(name: str, given: str | Path) -> Path:
    """`given` as a path that the system can look up."""
    if not str(given):
        raise ConfigError(f"{name} is empty; expected a path. Leave it out if there is none.")
    try:
        path = Path(given).expanduser()
        path.exists()
    except (OSError, RuntimeError) as e:  # too long, not allowed; RuntimeError: a user without a home
        raise ModelNotFoundError(f"{name} {shown(str(given))}: {getattr(e, 'strerror', None) or e}. Check the path.") from e  # fmt: skip
    return path


def auxiliary_files(directory: Path) -> dict[str, Path]:
    """The allow-listed files of a directory that exist, by relative name."""
    found = {}
    for pattern in ALLOWED:
        for path in sorted(directory.glob(pattern)):
            if path.is_file():
                found[path.relative_to(directory).as_posix()] = path
    return found


def tokenizer_file(names: Collection[str]) -> str | None:
    """The file among `names` that a tokenizer is read from even where a GGUF has its own."""
    return next((name for name in (TOKENIZER_JSON, *SENTENCEPIECE) if name in names), None)


def other_tokenizer_files(names: Collection[str]) -> list[str]:
    """The files among `names` that hold a tokenizer and serve only where there is no other, or not at all."""
    known = (*SENTENCEPIECE, *BYTE_LEVEL, "vocab.txt", "tekken.json")
    return [name for name in known if name in names and name != tokenizer_file(names)]


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


def weight_sizes(directory: Path) -> tuple[dict[str, int], set[str]]:
    """One full set of unquantised weights in a directory, in real bytes also where pointers stand; which are pointers."""
    pointers: set[str] = set()
    sizes: dict[str, int] = {}
    for path in directory.iterdir():
        if path.is_file() and any(fnmatchcase(path.name, pattern) for pattern in WEIGHTS):
            real = pointer_size(path)
            sizes[path.name] = path.stat().st_size if real is None else real
            if real is not None:
                pointers.add(path.name)
    chosen = full_weights(sizes)
    return chosen, chosen.keys() & pointers


def lfs_remedy(names: Iterable[str], directory: Path) -> str:
    """The command that turns pointers into files."""
    return f'In {directory}, run: git lfs pull --include="{",".join(sorted(names))}"'


def size_text(n: int) -> str:
    """Bytes for people, in decimal units: `4.92 GB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale:
            return f"{n / scale:.3g} {unit}" if n < 1000 * scale else f"{n / scale:.0f} {unit}"
    return f"{n} bytes"


def memory_text(n: int) -> str:
    """Bytes for people, in binary units as memory is sold: `4.58 GiB`."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n >= scale:
            return f"{n / scale:.3g} {unit}" if n < 1000 * scale else f"{n / scale:,.0f} {unit}"
    return f"{n} bytes"
