"""Unquantised models on the Hub: their safetensors and everything beside them, for conversion."""

from __future__ import annotations

import re
from pathlib import Path

from qtransformers.errors import LoadError, ModelNotFoundError, NetworkError
from qtransformers.load.checkpoint import DIFFUSERS, INDEX, MAX_HEADER, SINGLE
from qtransformers.load.download import Progress
from qtransformers.load.files import full_weights, is_allowed
from qtransformers.load.hub import Hub, Offer, bring, cached_directory, list_files, remote_parts
from qtransformers.load.references import Reference

PIPELINE = "model_index.json"  # of diffusers
PARTS = ("transformer", "unet")  # of a pipeline that hold its diffusion model


def fetch_checkpoint(ref: Reference, hub: Hub, progress: Progress | None = None) -> Path:
    """Bring a model in safetensors into the cache, with config and tokenizer; the folder.

    Interrupted downloads are continued. ModelNotFoundError: no such repository, or none with safetensors; NetworkError:
    gated, unreachable, or offline and not in the cache.
    """
    try:
        offer = checkpoint_of(ref, hub)
    except NetworkError:
        directory = cached_directory(ref, hub)
        if directory is None or not any((directory / name).is_file() for name in (INDEX, SINGLE, PIPELINE)):
            raise
        return directory
    return bring(offer, hub, progress)


def fetch_headers(ref: Reference, hub: Hub, folder: Path) -> Path:
    """A model's config and tokenizer in `folder`, and its safetensors with holes where the weights are; the folder.

    Of the weights only headers are fetched, by range requests; errors as for `fetch_checkpoint`.
    """
    offer = checkpoint_of(ref, hub)
    weights = [name for name in offer.names if name.endswith(".safetensors")]
    if strange := next((name for name in offer.names if Path(name).is_absolute() or ".." in Path(name).parts), None):
        raise LoadError(f"{ref}: a file is called {strange!r}, which leads out of its folder. Do not trust this repository.")  # fmt: skip
    small = Offer(ref, offer.listing, [name for name in offer.names if name not in weights])
    directory = bring(small, hub)
    for name in small.names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((directory / name).read_bytes())
    for name, size, part in remote_parts(offer, weights, hub):
        length = int.from_bytes(part(0, 8), "little") if size >= 8 else 0
        if not 0 < length <= min(MAX_HEADER, size - 8):
            raise LoadError(
                f"{ref}: {name} claims a header of {length} bytes and has {size}. It is no safetensors file."
            )
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("wb") as file:
            file.write(part(0, 8 + length))
            file.truncate(size)
    return folder


def checkpoint_of(ref: Reference, hub: Hub) -> Offer:
    """The files that make a model in a repository, of a pipeline its diffusion model, by one request; errors as for `fetch_checkpoint`."""
    listing = list_files(ref, hub)
    if PIPELINE in listing.sizes:
        part = next((p for p in PARTS if f"{p}/config.json" in listing.sizes), None)
        if part is None:
            raise ModelNotFoundError(f"{ref} on the Hub is a pipeline of diffusers without {' or '.join(PARTS)}. Pass one that has it.")  # fmt: skip
        whole = re.compile(rf"{part}/{DIFFUSERS}(-\d+-of-\d+)?\.safetensors(\.index\.json)?")  # not those of variants
        files = sorted(name for name in listing.sizes if whole.fullmatch(name))
        if not any(name.endswith(".safetensors") for name in files):
            raise ModelNotFoundError(f"{ref} on the Hub has no {part}/{DIFFUSERS}.safetensors. Pass the original model.")  # fmt: skip
        return Offer(ref, listing, [PIPELINE, f"{part}/config.json", *files])
    weights = [name for name in full_weights(listing.sizes) if name.endswith(".safetensors")]
    if not weights:
        raise ModelNotFoundError(
            f"{ref} on the Hub has no safetensors. For a GGUF model there add its quant, {ref}:Q8_0; else pass the original model."
        )
    others = [name for name in listing.sizes if is_allowed(name) or name == INDEX]
    return Offer(ref, listing, [*sorted(others), *sorted(weights)])
