"""The architectures, by the name a GGUF file gives them."""

from __future__ import annotations

from qtransformers.archs import (
    bert,
    command_r,
    deepseek,
    gemma,
    glm,
    gpt2,
    gpt_oss,
    granite,
    llama,
    mistral,
    olmo,
    phi,
    qwen,
    qwen3next,
    qwen_moe,
    stablelm,
    starcoder,
)
from qtransformers.archs.hparams import Hyperparameters
from qtransformers.archs.spec import ArchSpec, HParam, Problem, Slot, TensorSpec, dimension
from qtransformers.errors import UnsupportedError

ALL = (
    llama.SPEC,
    qwen.QWEN2,
    qwen_moe.QWEN2MOE,
    qwen.QWEN3,
    qwen_moe.QWEN3MOE,
    gemma.GEMMA2,
    gemma.GEMMA3,
    phi.SPEC,
    mistral.SPEC,
    glm.SPEC,
    granite.SPEC,
    olmo.SPEC,
    command_r.SPEC,
    starcoder.SPEC,
    gpt2.SPEC,
    stablelm.SPEC,
    gpt_oss.SPEC,
    qwen3next.SPEC,
    bert.BERT,
    bert.NOMIC_BERT,
    deepseek.SPEC,
)
SPECS: dict[str, ArchSpec] = {name: spec for spec in ALL for name in (spec.id, *spec.aliases)}

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
