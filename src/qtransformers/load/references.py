"""What `user/repo:QUANT` stands for: which repository, and which of its files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qtransformers.errors import ModelNotFoundError

DEFAULT_QUANT = "Q4_K_M"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_REPO = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>[^\s:@]+))?(?::(?P<quant>[A-Za-z0-9][A-Za-z0-9._/-]*))?"
)
_PAGE = re.compile(
    r"(?:https?://)?(?:hf\.co|huggingface\.co)/([^/\s]+/[^/\s?]+)(?:/(?:blob|resolve|tree)/([^/\s]+)(?:/(\S+\.gguf))?)?/?(?:\?\S*)?"
)
_SHARD = re.compile(r"(?P<stem>.+)-(?P<no>\d{5})-of-(?P<count>\d{5})")
_QUANT = re.compile(
    r"(?:^|[-._/])(?P<quant>(?:UD-)?(?:I?Q|TQ|FP?|BF|MXFP|NVFP)\d+(?:_[A-Z0-9]+)*)(?=$|[-.])", re.IGNORECASE
)
_FP = re.compile(r"^fp(?=\d)", re.IGNORECASE)  # many write FP16 for F16
_COMPANION = re.compile(r"(^|/|[-._])(mmproj|imatrix)([-._]|$)", re.IGNORECASE)  # a listing has nothing but names


@dataclass(frozen=True)
class Reference:
    """`user/repo`, optionally with `@revision` and `:QUANT` or `:FILE.gguf`."""

    repo: str
    revision: str
    quant: str | None

    def __str__(self) -> str:
        return self.repo if self.revision == "main" else f"{self.repo}@{self.revision}"


def parse_reference(text: str) -> Reference | None:
    """The repository a text names; None when it can only be a path."""
    if page := _PAGE.fullmatch(text):  # as pasted from a browser
        text = page[1] + (f"@{page[2]}" if page[2] else "") + (f":{page[3]}" if page[3] else "")
    match = _REPO.fullmatch(text)
    if not match or ".." in text or (not match["quant"] and text.lower().endswith((".gguf", ".safetensors", ".json"))):
        return None
    return Reference(match["repo"], match["revision"] or "main", match["quant"])


def the_reference(text: str) -> Reference:
    """`user/repo` with what follows it; ModelNotFoundError where a text is neither that nor a path."""
    ref = parse_reference(text)
    if ref is None:
        raise ModelNotFoundError(
            f"{text}: no such file or folder. Expected a path, `demo`, or a Hub repository such as user/repo:{DEFAULT_QUANT}."
        )
    return ref


def choose(sizes: Mapping[str, int], ref: Reference) -> list[str]:
    """The files of the wanted quant among a repository's (bytes by name), in order of shards; ModelNotFoundError lists what there is."""
    models = quants(sizes)
    if not models:
        raise ModelNotFoundError(
            f"{ref} holds no GGUF file. Pass it as model_path, or look for a GGUF repository of the model."
        )
    labels = sorted({label for label, _ in models})
    wanted = ref.quant or DEFAULT_QUANT
    found = [names for (label, _), names in models.items() if is_wanted(label, names, wanted)]
    if not found and ref.quant is None and len(models) == 1:
        found = list(models.values())
    if len(found) == 1:
        return _all_shards(found[0], ref)
    if found:
        which = ", ".join(names[0] for names in found)
        raise ModelNotFoundError(f"{ref} holds several models of quant {wanted}: {which}. Say which: {ref}:{found[0][0]}, for instance.")  # fmt: skip
    raise ModelNotFoundError(f"{ref} has no quant {wanted}. It has {', '.join(labels)}: pass {ref}:{labels[0]}, for instance.")  # fmt: skip


def is_wanted(label: str, names: Sequence[str], wanted: str) -> bool:
    """Whether the model of these files is the one called `wanted`: by its quant, or by the name of a file."""
    name = wanted.casefold()
    if name.endswith(".gguf"):
        return any(name in (n.casefold(), n.casefold().rpartition("/")[2]) for n in names)
    return _FP.sub("f", name) == label.casefold()


def _all_shards(names: list[str], ref: Reference) -> list[str]:
    shard = _SHARD.fullmatch(names[0].rpartition(".")[0])
    count = int(shard["count"]) if shard else 1
    if len(names) != count:
        raise ModelNotFoundError(f"{ref} holds {len(names)} of {count} shards: {', '.join(names)}. Download the model again, or take another quant.")  # fmt: skip
    return names


def quants(sizes: Mapping[str, int]) -> dict[tuple[str, str], list[str]]:
    """The models among file names: (quant, stem) -> files in order of shards."""
    models: dict[tuple[str, str], list[str]] = {}
    for name in sorted(sizes):
        stem, dot, suffix = name.rpartition(".")
        if not dot or suffix.lower() != "gguf" or _COMPANION.search(stem):
            continue
        shard = _SHARD.fullmatch(stem)
        stem = shard["stem"] if shard else stem
        folder, _, base = stem.rpartition("/")
        label = _quant_in(base) or _quant_in(folder) or base
        models.setdefault((label, stem), []).append(name)
    return models


def _quant_in(name: str) -> str:
    """The quant at the end of a name, or the only one in it; "" where there is none."""
    found = list(_QUANT.finditer(name))
    if not found or (len(found) > 1 and found[-1].end() < len(name)):
        return ""
    return _FP.sub("F", found[-1]["quant"]).upper()
