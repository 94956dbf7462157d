"""Whole pipelines of diffusers around a GGUF transformer, and pictures from them."""

from __future__ import annotations

import inspect
import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import accelerate
import diffusers
import torch
import transformers

from qtransformers.checks import path as a_path
from qtransformers.checks import shown
from qtransformers.diffusers.loading import check_device, check_mapping, load_transformer
from qtransformers.diffusers.lora import load_lora
from qtransformers.errors import ConfigError, LoadError, ModelNotFoundError, QTransformersError, UnsupportedError
from qtransformers.gguf import GGUFFile
from qtransformers.kernels.table import ACCURACY
from qtransformers.load.config import read_json
from qtransformers.load.diffusion import annotated, detect
from qtransformers.load.hub import Hub, fetch_files, the_hub
from qtransformers.load.references import parse_reference
from qtransformers.settings import Settings

Offload = Literal["none", "model", "group", "sequential"]
SIZES = (16, 16384)  # pixels of a side
STEPS = 10_000


def load_pipeline(
    gguf_path: str | Path,
    base: str | Path | None = None,
    *,
    text_encoders: Mapping[str, str | Path] | None = None,
    config: Mapping[str, Any] | str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
    accuracy: str = ACCURACY,
    offload: Offload = "none",
    loras: Mapping[str | Path, float] | None = None,
    settings: Settings | None = None,
    hub: Hub | None = None,
) -> Any:
    """A pipeline of diffusers whose transformer is that of a GGUF file; all else comes from `base`, a pipeline's folder or Hub id.

    Of `base` the transformer's weights are neither needed nor fetched, and neither are those of `text_encoders`, GGUF files by the
    name of the component (`text_encoder`, `text_encoder_2`, ...). `offload` other than none keeps parts in main memory until a
    GPU `device` needs them: whole models, groups of layers, or single layers. `loras` are adapters and their weights.

    Settings of `base` that contradict those in the file are an error; `config` takes their place where it is given, {} too.
    Errors of `load_transformer`; ModelNotFoundError and NetworkError for `base`; LoadError where it is a pipeline of another model.
    """
    if offload not in get_args(Offload):
        raise ConfigError(f"offload={shown(offload)}; expected one of {', '.join(get_args(Offload))}.")
    device, kind = check_device(device, dtype)
    if offload != "none" and device.type == "cpu":
        raise ConfigError(f"offload={offload!r} moves parts to a GPU and back, but device is the CPU. Leave offload out, or pass device='cuda'.")  # fmt: skip
    if base is not None and not isinstance(base, (str, Path)):
        raise ConfigError(f"base={shown(base)}; expected the folder or Hub id of a pipeline.")
    text_encoders = check_mapping("text_encoders", text_encoders or {}, "GGUF files by the names of components")
    loras = check_mapping("loras", loras or {}, "weights by the paths of adapters")
    gguf = GGUFFile(a_path("gguf_path", gguf_path))
    spec = detect(gguf).spec
    if base is None:
        such = f", such as {spec.base}" if spec.base else ""
        raise ConfigError(f"{gguf.path} holds the transformer of {spec.title} only. Pass base=, the folder or Hub id of a pipeline that has the rest: text encoders, VAE, scheduler{such}.")  # fmt: skip
    hub = the_hub(settings, hub)
    index, index_file = read_index(base, hub)
    component = next((name for name in ("transformer", "unet") if name in index), "")
    of_base = index.get(component)
    if not isinstance(of_base, Sequence) or of_base[-1] != spec.class_name:
        raise LoadError(f"{index_file}: the pipeline's {component or 'transformer'} is {shown(of_base)}, but {gguf.path} is a {spec.class_name}. Pass base= of the model it was made from.")  # fmt: skip
    if config is None and (annotated(gguf.metadata, str(gguf.path)) is None or _has_config(base, component, hub)):
        config = base
    parts: dict[str, Any] = {}
    for name, path in text_encoders.items():
        if not isinstance(index.get(name), Sequence):
            there = ", ".join(n for n in index if n.startswith("text_encoder"))
            raise ConfigError(f"text_encoders={shown(name)}; {index_file} has {there or 'no text encoder'}.")
        from qtransformers.diffusers.encoders import load_text_encoder

        parts[name] = load_text_encoder(path, component_config(base, name, hub), dtype=kind, accuracy=accuracy)
    parts[component] = load_transformer(gguf.path, config, dtype=kind, accuracy=accuracy, settings=settings, hub=hub)
    for path, weight in loras.items():
        load_lora(parts[component], path, weight=weight)
    pipe = _assembled(base, parts, kind, hub)
    pipe.set_progress_bar_config(disable=True)
    return _placed(pipe, device, offload)


def _has_config(base: str | Path, component: str, hub: Hub) -> bool:
    """Whether a pipeline comes with the config of its transformer, to be held against what a file says of itself."""
    file = f"{component}/config.json"
    if Path(base).is_dir():
        return (Path(base) / file).is_file()
    ref = parse_reference(str(base))
    return ref is not None and bool(fetch_files(ref, (file,), hub))


def _assembled(base: str | Path, parts: Mapping[str, Any], dtype: torch.dtype, hub: Hub) -> Any:
    """The pipeline of `base` with these parts in place of its own."""
    ref = None if Path(base).is_dir() else parse_reference(str(base))
    where = {"cache_dir": hub.cache_dir, "token": hub.token, "local_files_only": hub.offline} if ref else {}
    if ref:
        where["revision"] = ref.revision
    try:
        pipelines: Any = diffusers.DiffusionPipeline  # untyped there
        with _quiet():
            return pipelines.from_pretrained(ref.repo if ref else str(base), dtype=dtype, **where, **parts)
    except Exception as e:  # whatever classes say to files that are not theirs
        raise LoadError(f"{base}: diffusers {diffusers.__version__} cannot build the pipeline ({type(e).__name__}: {e}). Fetch its files again, or pass another base=.") from e  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars of diffusers and transformers while parts are read, which is done in a moment; afterwards as it was."""
    loud = [log for log in (diffusers.utils.logging, transformers.utils.logging) if log.is_progress_bar_enabled()]
    for log in loud:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in loud:
            log.enable_progress_bar()


def _placed(pipe: Any, device: torch.device, offload: Offload) -> Any:
    if offload == "none":
        return pipe.to(device)
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        ours = {name: part for name, part in pipe.components.items() if getattr(part, "gguf", None)}
        for name in ours:  # out of its sight: diffusers takes hooks away that it finds, and leaves blocks, which are buffers, on the GPU
            setattr(pipe, name, None)
        pipe.enable_sequential_cpu_offload(device=device)
        for name, part in ours.items():
            setattr(pipe, name, part)
            accelerate.cpu_offload(part, device, offload_buffers=True)
    else:
        pipe.enable_group_offload(onload_device=device, offload_type="leaf_level")
    return pipe


def read_index(base: str | Path, hub: Hub) -> tuple[dict[str, Any], str]:
    """model_index.json of a pipeline and its path; ModelNotFoundError where there is none."""
    if Path(base).is_dir():
        path = Path(base) / "model_index.json"
        if not path.is_file():
            raise ModelNotFoundError(
                f"base={str(base)!r} has no model_index.json; expected the folder of a pipeline of diffusers."
            )
        return read_json(path), str(path)
    found = _from_hub(base, ("model_index.json",), hub)
    return read_json(found), str(found)


def component_config(base: str | Path, name: str, hub: Hub) -> Path:
    """config.json of a part of a pipeline; ModelNotFoundError where there is none."""
    file = f"{name}/config.json"
    path = Path(base) / file if Path(base).is_dir() else _from_hub(base, (file,), hub)
    if not path.is_file():
        raise ModelNotFoundError(
            f"{path} is missing; expected the config of the pipeline's {name}. Fetch the pipeline again."
        )
    return path


def _from_hub(base: str | Path, files: tuple[str, ...], hub: Hub) -> Path:
    ref = parse_reference(str(base))
    if ref is None or ref.quant:
        raise ModelNotFoundError(f"base={str(base)!r}: no such folder, and not a Hub id either (user/repo or user/repo@revision). Check the path.")  # fmt: skip
    found = fetch_files(ref, files, hub)
    if not found:
        raise ModelNotFoundError(f"{ref} on the Hub has no {files[0]}; expected a pipeline of diffusers.")
    return next(iter(found.values()))


@dataclass(frozen=True)
class Picture:
    """What to paint; None leaves it to the pipeline, whose default is the model's."""

    prompt: str
    negative: str | None = None
    steps: int | None = None
    width: int | None = None  # pixels
    height: int | None = None
    guidance: float | None = None
    seed: int | None = None  # None: another one each time
    count: int = 1

    def __post_init__(self) -> None:
        """ConfigError for a field that cannot be honoured."""
        for name in ("width", "height"):
            _whole(name, getattr(self, name), *SIZES)
        _whole("steps", self.steps, 1, STEPS)
        _whole("seed", self.seed, 0, 2**63 - 1)
        _whole("count", self.count, 1, 64)
        if not isinstance(self.prompt, str) or (self.negative is not None and not isinstance(self.negative, str)):
            raise ConfigError(f"prompt is {shown(self.prompt)}; expected text.")
        g = self.guidance
        if g is not None and (isinstance(g, bool) or not isinstance(g, (int, float)) or not 0 <= g <= 1000):
            raise ConfigError(f"guidance is {shown(g)}; expected a number from 0 to 1000.")


def _whole(name: str, value: Any, low: int, high: int) -> None:
    if value is not None and (type(value) is not int or not low <= value <= high):
        raise ConfigError(f"{name} is {shown(value)}; expected a whole number from {low} to {high}.")


@dataclass(frozen=True)
class Painted:
    """Pictures (of a video model: frames of each), and the seed they came from."""

    images: list[Any]
    seed: int
    frames: bool = False


def paint(pipe: Any, wish: Picture, progress: Callable[[int, int], None] | None = None, **more: Any) -> Painted:
    """Pictures of a pipeline; `more` goes to it as it is (`prompt_embeds`, `output_type`, ...).

    `progress` is called with (steps done, all); what it raises ends the work. The same seed gives the same pictures. ConfigError for what the pipeline
    cannot do; UnsupportedError where it fails, or its values are no longer finite.
    """
    base: Any = diffusers.DiffusionPipeline  # untyped there
    if not isinstance(pipe, base) or not isinstance(wish, Picture):
        raise ConfigError(f"paint takes a pipeline of diffusers and a Picture; found {type(pipe).__name__} and {type(wish).__name__}.")  # fmt: skip
    if progress is not None and not callable(progress):
        raise ConfigError(f"progress={shown(progress)}; expected a function of (steps done, all).")
    takes = inspect.signature(pipe.__call__).parameters
    seed = secrets.randbelow(2**32) if wish.seed is None else wish.seed
    wanted = {
        "prompt": None if "prompt_embeds" in more else wish.prompt, "negative_prompt": wish.negative,
        "num_inference_steps": wish.steps, "width": wish.width, "height": wish.height, "guidance_scale": wish.guidance,
        "num_images_per_prompt": wish.count if wish.count > 1 else None, **more,
    }  # fmt: skip
    wanted = {name: value for name, value in wanted.items() if value is not None}
    if strange := sorted(wanted.keys() - takes.keys()):
        raise ConfigError(f"{type(pipe).__name__} takes no {', '.join(strange)}. Leave that out.")
    _check_size(pipe, wish)

    def each(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        _check_finite(pipe, tensors.get("latents"), f"step {step + 1}")
        if progress:
            progress(step + 1, pipe.num_timesteps)
        return tensors

    if "callback_on_step_end" in takes:
        wanted["callback_on_step_end"] = each
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.inference_mode(), _listening(pipe):
            made = pipe(**wanted, generator=generator)
    except QTransformersError:
        raise
    except (ValueError, TypeError) as e:
        raise ConfigError(f"{type(pipe).__name__} refuses: {e}") from e
    except IndexError as e:
        raise ConfigError(f"{type(pipe).__name__} failed ({e}): width or height may be more than the model has positions for. Pass smaller ones.") from e  # fmt: skip
    except (RuntimeError, AttributeError) as e:
        raise UnsupportedError(f"{type(pipe).__name__} of diffusers {diffusers.__version__} failed ({type(e).__name__}: {e}).") from e  # fmt: skip
    frames = getattr(made, "frames", None)
    return Painted(list(made.images if frames is None else frames), seed, frames is not None)


def _check_finite(pipe: Any, values: Any, where: str) -> None:
    if isinstance(values, torch.Tensor) and not bool(torch.isfinite(values).all()):
        raise UnsupportedError(f"{type(pipe).__name__}: values are not finite after {where}, and would make no picture. The weights are damaged, or too large for the dtype: fetch the file again, or pass dtype='bfloat16' or 'float32'.")  # fmt: skip


@contextmanager
def _listening(pipe: Any) -> Iterator[None]:
    """What the VAE makes is looked at as well: SDXL's overflows in float16."""
    decoder = getattr(getattr(pipe, "vae", None), "decoder", None)
    if not isinstance(decoder, torch.nn.Module):
        yield
        return
    handle = decoder.register_forward_hook(lambda module, args, made: _check_finite(pipe, made, "the VAE"))
    try:
        yield
    finally:
        handle.remove()


def _check_size(pipe: Any, wish: Picture) -> None:
    """A side must be whole patches: the VAE's factor times the transformer's patch."""
    model = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    patch = getattr(getattr(model, "config", None), "patch_size", 1)
    unit = int(getattr(pipe, "vae_scale_factor", 8)) * (patch if type(patch) is int else 1)
    for name in ("width", "height"):
        side = getattr(wish, name)
        if side is not None and side % unit:
            near = max(unit, round(side / unit) * unit)
            raise ConfigError(f"{name} is {side}; expected a multiple of {unit} pixels, such as {near}.")


def save(painted: Painted, paths: Sequence[Path], facts: Mapping[str, Any]) -> None:
    """Write pictures as PNG (or what the suffix says), frames as GIF or WebP, with how they were made; whole or not at all."""
    from PIL.PngImagePlugin import PngInfo

    if folder := next((path for path in paths if path.is_dir()), None):
        raise ConfigError(f"{folder} is a folder; expected the name of a picture, such as {folder / 'image.png'}.")
    for image, path in zip(painted.images, paths, strict=True):
        partial = path.with_name(f".{path.name}.part")
        suffix = path.suffix.lower().lstrip(".").replace("jpg", "jpeg")
        try:
            if painted.frames:
                image[0].save(partial, format=suffix, save_all=True, append_images=image[1:], duration=60, loop=0)
            elif suffix == "png":
                info = PngInfo()
                info.add_text("parameters", json.dumps(dict(facts)))
                image.save(partial, format="png", pnginfo=info)
            else:
                image.save(partial, format=suffix)
            partial.replace(path)
        except (KeyError, ValueError) as e:
            raise ConfigError(
                f"{path} cannot be written ({e}); expected a name that ends in .png, .jpg or .webp."
            ) from e
        finally:
            partial.unlink(missing_ok=True)


__all__ = [
    "Offload",
    "Painted",
    "Picture",
    "component_config",
    "load_pipeline",
    "paint",
    "read_index",
    "save",
]
