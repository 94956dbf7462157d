"""Tiny diffusion models as checkpoints on disk, and what files made of them hold, for tests."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file

from qtransformers.archs.diffusion import SPECS
from qtransformers.gguf import GGUFFile
from tiny_diffusion.files import model_of, original_layout, settings

LAYOUTS = ("original", "diffusers")


def layouts(case):
    return LAYOUTS if case.original else ("diffusers",)


def checkpoint(case, layout, folder, dtype=torch.float32, around="", **config):
    """A model and where it lies: a pipeline's folder of diffusers, or one safetensors file, whose tensors have a prefix."""
    model = model_of(case, **config).to(dtype)
    if layout == "diffusers":
        inner = folder / ("unet" if "UNet" in type(model).__name__ else "transformer")
        model.save_pretrained(inner)
        (folder / "model_index.json").write_text(json.dumps({"_class_name": "APipeline"}))
        return model.float(), folder
    there = original_layout(
        SPECS[case.id], settings(case, model), {k: v.float() for k, v in model.state_dict().items()}
    )
    path = folder / "model.safetensors"
    save_file({around + name: values.to(dtype).contiguous() for name, values in there.items()}, path)
    return model.float(), path


def tensors(path):
    with GGUFFile(path) as file:
        return {name: (t.type.name, t.shape, t.data.tobytes()) for name, t in file.tensors.items()}
