"""Tensor names of Hugging Face checkpoints and of GGUF files, both read from the architecture's spec."""

from __future__ import annotations

from qtransformers.archs.spec import ArchSpec, Slot


def by_gguf_name(spec: ArchSpec, n_layers: int) -> dict[str, Slot]:
    """Every tensor a model of `n_layers` may have, by its name in a GGUF file."""
    return {slot.name: slot for slot in spec.slots(n_layers)}


def by_hf_name(spec: ArchSpec, n_layers: int) -> dict[str, Slot]:
    """Every tensor a checkpoint of `n_layers` may have, by its name there."""
    return {slot.hf: slot for slot in spec.slots(n_layers) if slot.hf}
