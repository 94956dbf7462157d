"""Tensor names of Hugging Face checkpoints and of GGUF files, both read from the architecture's spec."""

from __future__ import annotations

from qtransformers.archs.spec import ArchSpec, Slot


def by_gguf_name(spec: ArchSpec, n_layers: int) -> dict[str, Slot]:
    """Every tensor a model of `n_layers` may have, by its name in a GGUF file."""
    return {slot.name: slot for slot in spec.slots(n_layers)}


def by_hf_name(spec: ArchSpec, n_layers: int) -> dict[str, Slot]:
    """Every tensor a checkpoint of `n_layers` may have, by its name there."""
    return {slot.hf: slot for slot in spec.slots(n_layers) if slot.hf}


def hf_to_gguf(name: str, spec: ArchSpec, n_layers: int) -> str | None:
    """The GGUF name of a checkpoint's tensor, or None when the architecture has no such tensor."""
    slot = by_hf_name(spec, n_layers).get(name)
    return slot.name if slot else None


def gguf_to_hf(name: str, spec: ArchSpec, n_layers: int) -> str | None:
    """The checkpoint's name of a GGUF tensor, or None when it has none there."""
    slot = by_gguf_name(spec, n_layers).get(name)
    return (slot.hf or None) if slot else None
