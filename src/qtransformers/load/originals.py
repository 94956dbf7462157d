"""Unquantised models on the Hub: their safetensors and everything beside them, for conversion."""

from __future__ import annotations

from pathlib import Path

from qtransformers.errors import ModelNotFoundError, NetworkError
from qtransformers.load.checkpoint import INDEX, SINGLE
from qtransformers.load.download import Progress
from qtransformers.load.files import full_weights, is_allowed
from qtransformers.load.hub import Hub, Offer, Reference, bring, cached_directory, list_files


def fetch_checkpoint(ref: Reference, hub: Hub, progress: Progress | None = None) -> Path:
    """Bring a model in safetensors into the cache, with config and tokenizer; the folder.

    Interrupted downloads are continued. ModelNotFoundError: no such repository, or none with safetensors; NetworkError:
    gated, unreachable, or offline and not in the cache.
    """
    try:
        offer = checkpoint_of(ref, hub)
    except NetworkError:
        directory = cached_directory(ref, hub)
        if directory is None or not any((directory / name).is_file() for name in (INDEX, SINGLE)):
            raise
        return directory
    return bring(offer, hub, progress)


def checkpoint_of(ref: Reference, hub: Hub) -> Offer:
    """The files that make a model in a repository, by one request; errors as for `fetch_checkpoint`."""
    listing = list_files(ref, hub)
    weights = [name for name in full_weights(listing.sizes) if name.endswith(".safetensors")]
    if not weights:
        raise ModelNotFoundError(
            f"{ref} on the Hub has no safetensors. For a GGUF model there add its quant, {ref}:Q8_0; else pass the original model."
        )
    others = [name for name in listing.sizes if is_allowed(name) or name == INDEX]
    return Offer(ref, listing, [*sorted(others), *sorted(weights)])
