"""The architectures, by the name a GGUF file gives them."""

from __future__ import annotations

from qtransformers.archs import llama
from qtransformers.archs.spec import ArchSpec, HParam, Hyperparameters, Problem, Slot, TensorSpec, dimension
from qtransformers.errors import UnsupportedError

SPECS: dict[str, ArchSpec] = {name: spec for spec in (llama.SPEC,) for name in (spec.id, *spec.aliases)}

__all__ = [
    "SPECS",
    "ArchSpec",
    "HParam",
    "Hyperparameters",
    "Problem",
    "Slot",
    "TensorSpec",
    "dimension",
    "spec_of",
]


def spec_of(architecture: str, file: str) -> ArchSpec:
    """The spec of `general.architecture`; UnsupportedError listing what there is."""
    if architecture not in SPECS:
        known = ", ".join(sorted(SPECS))
        raise UnsupportedError(f"{file}: general.architecture is {architecture!r}; this version runs {known}.")
    return SPECS[architecture]
