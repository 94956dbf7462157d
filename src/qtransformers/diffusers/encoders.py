"""Text encoders of pipelines from GGUF files: T5, UMT5, CLIP and Qwen2.5-VL by their specs, language models by `load_transformers`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import accelerate
import torch
import transformers

from qtransformers.archs.diffusion.text import ENCODERS, QWEN2_VL, T5
from qtransformers.checks import path as a_path
from qtransformers.checks import shown
from qtransformers.diffusers.loading import Origin, check_device, fill, names
from qtransformers.errors import ConfigError, UnsupportedError
from qtransformers.gguf import GGUFFile
from qtransformers.kernels.table import ACCURACY, check_accuracy
from qtransformers.load.config import read_json, text_config
from qtransformers.load.diffusion import DiffusionPlan, plan_diffusion
from qtransformers.torch import load_transformers

OURS = (
    "gated",
    "biases_each_layer",
    "kv_size",
    "rope_theta",
    "mrope_section",
)  # settings of the spec that are none of the class
SIGHT = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")  # what Qwen2.5-VL sees


def load_text_encoder(
    gguf_path: str | Path,
    config: Mapping[str, Any] | str | Path | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    accuracy: str = ACCURACY,
) -> Any:
    """A text encoder of transformers with the weights of a GGUF file, which stay in its map; on the CPU, to be moved from there.

    T5 and UMT5 in llama.cpp's names (`t5encoder`, or the encoder of a whole `t5`) or those of transformers, CLIP in those of
    transformers; the text part of Qwen2.5-VL in llama.cpp's names (`qwen2vl`), which refuses pictures; every language model of `load_transformers`, of which `config` must be the folder or file with config.json:
    its `architectures` say which class is built. Settings that no tensor shows come from `config`, the file, or a published model.

    LoadError or UnsupportedError with everything that is wrong; ConfigError for an argument.
    """
    _, kind = check_device("cpu", dtype)
    check_accuracy(accuracy)
    gguf = GGUFFile(a_path("gguf_path", gguf_path))
    said = gguf.metadata.get("general.architecture")
    from qtransformers.archs import SPECS

    if isinstance(said, str) and said in SPECS:
        return _language_model(gguf, config, kind, accuracy)
    given, name = (config, "config=") if config is None or isinstance(config, Mapping) else _read(config)
    if said == QWEN2_VL.id and given is not None:
        given = _of_text(given, name)
    plan = plan_diffusion(gguf, given, name, ENCODERS)
    for text in plan.warnings:
        warnings.warn(text, stacklevel=2)
    model = _built(plan)
    ties = {"encoder.embed_tokens": "shared"} if plan.spec is T5 else {}
    fill(model, plan, kind, accuracy, ties)
    model.requires_grad_(False)
    model.eval()
    model.gguf = Origin(plan, names(model))
    if plan.spec is QWEN2_VL:
        model.register_forward_pre_hook(_blind, with_kwargs=True)
    return model


def _of_text(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the config of Qwen2.5-VL says of its text part, rotation as the spec has it; UnsupportedError for one that is stretched."""
    said = text_config(config)
    rope = next((r for k in ("rope_parameters", "rope_scaling") if isinstance(r := said.get(k), Mapping)), {})
    if (kind := rope.get("rope_type", rope.get("type"))) not in (None, "default", "mrope"):
        raise UnsupportedError(f"{name}: rope type is {shown(kind)}; expected default or mrope. Pass the config of this model.")  # fmt: skip
    told = {**said, **{k: rope[k] for k in ("rope_theta", "mrope_section") if k in rope}}
    return {p.name: told[p.name] for p in QWEN2_VL.hparams if p.name in told}


def _blind(module: Any, args: Any, options: Mapping[str, Any]) -> None:
    """Nothing that would be seen is left out silently."""
    if seen := [name for name in SIGHT if options.get(name) is not None]:
        raise UnsupportedError(f"{module.gguf.plan.file} has the text part of Qwen2.5-VL only, and cannot see {', '.join(seen)}. Leave this text encoder to the pipeline's own.")  # fmt: skip


def _built(plan: DiffusionPlan) -> Any:
    """The class of a plan, its parameters without memory."""
    name = plan.spec.class_name
    if plan.config.get("biases_each_layer"):
        name = "UMT5EncoderModel"
    made = getattr(transformers, name)
    options = {k: v for k, v in {**plan.extra, **plan.config}.items() if k not in OURS}
    if plan.spec is QWEN2_VL:
        rope = {"rope_theta": plan.config["rope_theta"], "mrope_section": list(plan.config["mrope_section"])}
        options["rope_parameters"] = {"rope_type": "default", **rope}
    try:
        with accelerate.init_empty_weights(include_buffers=False):
            return made(made.config_class(**options))
    except Exception as e:  # whatever a class says to settings that are not its own
        raise UnsupportedError(f"{plan.file}: transformers {transformers.__version__} cannot build {name} of its settings ({type(e).__name__}: {e}). Pass the config of this model.") from e  # fmt: skip


def _language_model(gguf: GGUFFile, config: Any, dtype: torch.dtype, accuracy: str) -> Any:
    if config is None or isinstance(config, Mapping):
        raise ConfigError(f"{gguf.path} is a language model; pass config=, the folder with its config.json, which says what class the pipeline wants.")  # fmt: skip
    settings, file = _read(config)
    wanted = settings.get("architectures")
    name = wanted[0] if isinstance(wanted, list) and wanted and isinstance(wanted[0], str) else ""
    made = getattr(transformers, name, None)
    if not isinstance(made, type):
        raise UnsupportedError(
            f"{file}: architectures is {wanted!r}; expected a class of transformers {transformers.__version__}."
        )
    return load_transformers(Path(file).parent, gguf.path, dtype=dtype, accuracy=accuracy, model_class=made)


def _read(config: Any) -> tuple[dict[str, Any], str]:
    path = a_path("config", config)
    file = path / "config.json" if path.is_dir() else path
    return read_json(file), str(file)
