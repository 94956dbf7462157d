"""Tiny models for `load_transformers`: those of archs, in several types."""

import dataclasses
from pathlib import Path

import numpy as np
import torch

from archs import encoders
from archs.cases import CASES
from archs.models import Case, gguf, prompt, reference
from qtransformers.convert import convert
from qtransformers.gguf import GGUFFile, GGUFWriter
from qtransformers.quants import quantize
from qtransformers.types import BY_NAME

WIDE = {
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "head_dim": 32,
}  # for blocks of 256


def make(name: str, folder: Path, type: str = "Q8_0") -> tuple[Path, Path]:
    """A checkpoint's folder and its GGUF file."""
    if name in CASES:
        case = dataclasses.replace(CASES[name], type=type)
        return folder / name, gguf(reference(case, name), folder, name, case)
    case, model, _ = encoders.encoder(name)
    encoders.gguf(model, folder, name, "cls")
    source = folder / f"{name}-cls"
    return source, convert(source, folder / f"{name}.gguf", type)


def wide(name: str, folder: Path, **config) -> tuple[Path, Path]:
    """The same in F32, of a shape that blocks of 256 fit."""
    case: Case = dataclasses.replace(CASES[name], config={**CASES[name].config, **WIDE, **config}, type="F32")
    return folder / name, gguf(reference(case, name), folder, name, case)


def in_type(path: Path, type: str) -> Path:
    """A copy of a file with its matrices in another type."""
    with GGUFFile(path) as file:
        wanted = {
            t.name: BY_NAME[type] if len(t.shape) > 1 and "_norm" not in t.name and "gate_inp" not in t.name else t.type
            for t in file.tensors.values()
        }
        out = path.with_name(f"{path.stem}-{type}.gguf")
        metadata = {key: file.metadata.encoded(key) for key in file.metadata}
        with GGUFWriter(out, metadata, [(t.name, t.shape, wanted[t.name]) for t in file.tensors.values()]) as writer:
            for t in file.tensors.values():
                writer.write(t.name, quantize(t.dequantize().reshape(-1), wanted[t.name]))
    return out


def ids(n: int = 24, below: int = 256) -> torch.Tensor:
    """A prompt `[1, n]`."""
    return torch.tensor([prompt(n)]) % below


def outputs(model, tokens) -> np.ndarray:
    """Logits, or hidden states, `[T, n]`."""
    with torch.no_grad():
        found = model(tokens)
    return (found.logits if "logits" in found else found.last_hidden_state)[0].float().numpy()


def decoded(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file as floats."""
    with GGUFFile(path) as file:
        return {name: t.dequantize() for name, t in file.tensors.items()}
