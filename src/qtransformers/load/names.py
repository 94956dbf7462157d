"""Tensor names of Hugging Face checkpoints and of GGUF files, both read from the architecture's spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtransformers.archs.spec import ArchSpec, Slot


def by_gguf_name(spec: ArchSpec, hparams: Mapping[str, Any]) -> dict[str, Slot]:
    """Every tensor a model of these hyperparameters may have, by its name in a GGUF file."""
    return {slot.name: slot for slot in spec.slots(hparams)}


def by_hf_name(spec: ArchSpec, hparams: Mapping[str, Any]) -> dict[str, Slot]:
    """Every tensor a checkpoint may have, by its name there."""
    return {slot.hf: slot for slot in spec.slots(hparams) if slot.hf}
