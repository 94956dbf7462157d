"""Text encoders of pipelines from GGUF files: T5, UMT5 and CLIP by their specs, language models by `load_transformers`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers

from qtransformers.archs.diffusion.text import ENCODERS, T5
from qtransformers.diffusers.loading import Origin, check_device, fill, names
from qtransformers.errors import ConfigError, UnsupportedError
from qtransformers.gguf import GGUFFile
from qtransformers.kernels.table import ACCURACY
from qtransformers.load.config import read_json
from qtransformers.load.diffusion import DiffusionPlan, plan_diffusion
from qtransformers.torch import load_transformers

OURS = ("gated", "biases_each_layer")  # settings of the spec that are none of the class


def load_text_encoder(
    gguf_path: str | Path,
    config: Mapping[str, Any] | str | Path | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    accuracy: str = ACCURACY,
) -> Any:
    """A text encoder of transformers with the weights of a GGUF file, which stay in its map; on the CPU, to be moved from there.

    T5 and UMT5 in llama.cpp's names (`t5encoder`, or the encoder of a whole `t5`) or those of transformers, CLIP in those of
    transformers; every language model of `load_transformers`, of which `config` must be the folder or file with config.json:
    its `architectures` say which class is built. Settings that no tensor shows come from `config`, the file, or a published model.

    LoadError or UnsupportedError with everything that is wrong; ConfigError for an argument.
    """
    _, kind = check_device("cpu", dtype)
    gguf = GGUFFile(gguf_path)
    said = gguf.metadata.get("general.architecture")
    from qtransformers.archs import SPECS

    if isinstance(said, str) and said in SPECS:
        return _language_model(gguf, config, kind, accuracy)
    given, name = (config, "config=") if config is None or isinstance(config, Mapping) else _read(Path(config))
    plan = plan_diffusion(gguf, given, name, ENCODERS)
    for text in plan.warnings:
        warnings.warn(text, stacklevel=2)
    model = _built(plan)
    ties = {"encoder.embed_tokens": "shared"} if plan.spec is T5 else {}
    fill(model, plan, kind, accuracy, ties)
    model.requires_grad_(False)
    model.eval()
    model.gguf = Origin(plan, names(model))
    return model


def _built(plan: DiffusionPlan) -> Any:
    """The class of a plan, its parameters without memory."""
    name = plan.spec.class_name
    if plan.config.get("biases_each_layer"):
        name = "UMT5EncoderModel"
    made = getattr(transformers, name)
    options = {k: v for k, v in {**plan.extra, **plan.config}.items() if k not in OURS}
    try:
        with accelerate.init_empty_weights(include_buffers=False):
            return made(made.config_class(**options))
    except Exception as e:  # whatever a class says to settings that are not its own
        raise UnsupportedError(f"{plan.file}: transformers {transformers.__version__} cannot build {name} of its settings ({type(e).__name__}: {e}). Pass the config of this model.") from e  # fmt: skip


def _language_model(gguf: GGUFFile, config: Any, dtype: torch.dtype, accuracy: str) -> Any:
    if config is None or isinstance(config, Mapping):
        raise ConfigError(f"{gguf.path} is a language model; pass config=, the folder with its config.json, which says what class the pipeline wants.")  # fmt: skip
    settings, file = _read(Path(config))
    wanted = settings.get("architectures")
    name = wanted[0] if isinstance(wanted, list) and wanted and isinstance(wanted[0], str) else ""
    made = getattr(transformers, name, None)
    if not isinstance(made, type):
        raise UnsupportedError(
            f"{file}: architectures is {wanted!r}; expected a class of transformers {transformers.__version__}."
        )
    return load_transformers(Path(file).parent, gguf.path, dtype=dtype, accuracy=accuracy, model_class=made)


def _read(path: Path) -> tuple[dict[str, Any], str]:
    file = path / "config.json" if path.is_dir() else path
    return read_json(file), str(file)
