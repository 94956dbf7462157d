"""Models of transformers with the weights of a GGUF file: built without memory, then filled tensor by tensor."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qtransformers.checks import shown
from qtransformers.errors import ConfigError, LoadError, MissingExtraError, QTransformersError, UnsupportedError
from qtransformers.kernels.table import ACCURACY, check_accuracy
from qtransformers.load import prepare, resolve
from qtransformers.load.devices import Devices
from qtransformers.load.findings import ranges
from qtransformers.load.hub import Hub
from qtransformers.load.prepare import Prepared
from qtransformers.load.source import Sources
from qtransformers.machine import gpus
from qtransformers.settings import Settings
from qtransformers.tensor import QTensor
from qtransformers.torch import ops
from qtransformers.torch.filling import Filler
from qtransformers.torch.modules import QuantEmbedding, QuantExperts, QuantJoined, QuantLinear, QuantTransposed
from qtransformers.torch.places import Outline
from qtransformers.torch.weight import QuantWeight

OLDEST = 5  # of transformers: since then its classes keep experts as stacks
_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Origin:
    """Where a model's weights came from; `plain` has the tensor of the file for each parameter that is not quantised, `blocks` names the others."""

    file: str
    plain: Mapping[str, str]
    blocks: frozenset[str]


# Methods of transformers' classes that would write or change blocks as if they were floats
REFUSED = {
    "save_pretrained": "would write quantised blocks that transformers cannot read. Use qtransformers.torch.save_gguf, or dequantized(model).save_pretrained",
    "push_to_hub": "would upload quantised blocks that transformers cannot read. Upload the file of qtransformers.torch.save_gguf",
    "resize_token_embeddings": "cannot add rows to quantised blocks. Resize dequantized(model) and save it with save_gguf",
}


@dataclass(frozen=True)
class Refusal:
    """Stands in for a method: UnsupportedError with the reason, nothing where there is none."""

    reason: str

    def __call__(self, *args: Any, **options: Any) -> None:
        """See the class."""
        if self.reason:
            raise UnsupportedError(f"{self.reason}.")


def load_transformers(
    model_path: str | Path,
    gguf_path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | str | None = None,
    accuracy: str = ACCURACY,
    model_class: Any = None,
    settings: Settings | None = None,
    hub: Hub | None = None,
    **options: Any,
) -> Any:
    """A model of transformers, built from the config of `model_path`, with the quantised weights of `gguf_path`.

    `device` is the CPU, where matrices stay in the file's map, or a GPU. `model_path` is a directory or a Hub id; its weights
    are neither needed nor read. Norms become parameters of `dtype` (float32 on the CPU, else bfloat16). `accuracy` is that of products (kernels.cpu.bind);
    `model_class` is built instead of the one that transformers chooses; `options` go to its `from_config`, such as
    `attn_implementation`. Parameters do not require gradients, which reach inputs.

    Warns of what a file says and nothing reads. LoadError or UnsupportedError with everything that is wrong with file, config or class; errors of `load.resolve`;
    MissingExtraError without transformers.
    """
    transformers = _transformers()
    check_accuracy(accuracy)
    device = _device(device)
    kind = _dtype(dtype, device)
    sources = resolve(gguf_path, model_path, settings, hub)
    prepared = prepare(sources)
    for text in prepared.plan.warnings:
        warnings.warn(text, stacklevel=2)
    model = _on_meta(transformers, sources, prepared, kind, model_class, options)
    fill(model, prepared, sources, kind, accuracy)
    if "generation_config.json" in sources.files and model.can_generate():
        model.generation_config = transformers.GenerationConfig.from_pretrained(sources.model_dir)
    model.requires_grad_(False)
    model.eval()
    return model if device.type == "cpu" else _sent(model, device)


def _sent(model: Any, device: torch.device) -> Any:
    """The model on a GPU; UnsupportedError with every type that has no kernel there, before anything is sent."""
    from qtransformers.kernels.triton.upload import Upload
    from qtransformers.kernels.triton.weights import why_not

    weights = [m for m in model.modules() if isinstance(m, QuantWeight)]
    if reasons := sorted({reason for w in weights if (reason := why_not(w.quant_type))}):
        raise UnsupportedError(f"device={str(device)!r}: {'; '.join(reasons)}. Use device='cpu', or a file of another quantisation.")  # fmt: skip
    with Upload(device, sum(w.blocks.nbytes for w in weights)) as upload:
        for w in weights:
            w.blocks = upload.blocks(w.tensor.data).view(w.blocks.shape)
    return model.to(device)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as e:
        raise MissingExtraError(
            "load_transformers needs transformers, which is not installed: pip install 'qtransformers[torch]'"
        ) from e
    if int(transformers.__version__.split(".")[0]) < OLDEST:
        raise MissingExtraError(f"transformers {transformers.__version__} is installed; expected {OLDEST}.0 or newer: pip install -U 'qtransformers[torch]'")  # fmt: skip
    return transformers


def _device(device: str | torch.device) -> torch.device:
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as e:
        raise ConfigError(f"device={shown(device)}; expected a device of torch, such as 'cpu' or 'cuda'.") from e
    if found.type not in ops.HOMES:
        raise UnsupportedError(
            f"device={str(found)!r}: there are kernels for quantised weights on {' and '.join(ops.HOMES)} only."
        )
    if found.type == "cuda":
        name, devices = f"cuda:{found.index or 0}", Devices.of(gpus())
        if name in devices.reasons:
            raise UnsupportedError(f"device={str(found)!r}: {devices.reasons[name]}. Use device='cpu'.")
        if name not in devices.free or not torch.cuda.is_available():
            there = ", ".join(devices.free) or "no CUDA device"
            raise ConfigError(f"device={str(found)!r}: the system shows {there}, torch {torch.__version__} {torch.cuda.device_count()} of them. Use device='cpu'.")  # fmt: skip
    return found


def _dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f"dtype={shown(dtype)}; expected a floating dtype of torch, such as torch.float32.")
    return found


def _on_meta(
    transformers: Any, sources: Sources, prepared: Prepared, dtype: torch.dtype, model_class: Any, options: Mapping[str, Any]
) -> Any:  # fmt: skip
    """The class that config.json asks for, without memory."""
    file = sources.files.get("config.json")
    if file is None:
        raise LoadError(f"{sources.model_dir or 'model_path=None'}: no config.json, which says how to build the model. Pass the directory or Hub id of the original model as model_path.")  # fmt: skip
    encoder = prepared.spec.kind == "encoder"
    auto = model_class or (transformers.AutoModel if encoder else transformers.AutoModelForCausalLM)
    if encoder and model_class is None and prepared.spec.id == "bert":
        options = {"add_pooling_layer": False, **options}  # a GGUF file has none
    try:
        config = transformers.AutoConfig.from_pretrained(file.parent, trust_remote_code=False).get_text_config()
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # of the weights that stay where they are
        build = auto._from_config if hasattr(auto, "_from_config") else auto.from_config
        with torch.device("meta"):
            return build(config, dtype=dtype, **options)
    except QTransformersError:
        raise
    except Exception as e:  # whatever a class says to a config that is not its own
        raise UnsupportedError(
            f"{file}: transformers {transformers.__version__} cannot build a model of it ({type(e).__name__}: {e}). "
            "Update transformers, or pass model_class=."
        ) from e


def fill(model: Any, prepared: Prepared, sources: Sources, dtype: torch.dtype, accuracy: str) -> None:
    """Give a model that is on the meta device its weights; LoadError with all that do not fit, and nothing changed."""
    gguf = sources.gguf
    assert gguf is not None  # `prepare` refuses without
    outline = Outline(model)
    filler = Filler(outline, prepared.hparams, dtype, accuracy)
    for planned in prepared.plan.tensors:
        tensor = gguf.tensors[planned.slot.name]
        if planned.slot.spec.from_config is not None or (planned.role == "output" and outline.head is None):
            continue  # computed by the class from its config, which was compared; or of no use to it
        filler.add(planned.slot, QTensor(tensor.name, tensor.type, planned.shape, tensor.data, tensor.file))
    installed = filler.install()
    tied = _tied(outline, installed, prepared.plan.ties)
    missing = [name for name in outline.tensors if name not in filler.filled and name not in tied]
    problems = [
        *filler.problems,
        *(f"{name} is missing: nothing in the file has its values" for name in _by_layer(missing)),
    ]
    if problems:
        raise LoadError("\n  ".join((f"{gguf.path} does not fill the {type(model).__name__} of {sources.files['config.json']}, {len(problems)} problems:", *problems)))  # fmt: skip
    for path, module in {**installed, **tied}.items():
        _replace(model, path.removesuffix(".weight"), module)
    for name, values in filler.plain.items():
        set_tensor(model, name, values)
    compute_buffers(model)
    blocks = frozenset(m.name for m in model.modules() if isinstance(m, QuantWeight))
    model.gguf = Origin(str(gguf.path), filler.origins, blocks)
    for name, reason in REFUSED.items():
        setattr(model, name, Refusal(f"{name} {reason}"))
    model.tie_weights = Refusal("")  # they share their blocks, or the file has each


def _tied(outline: Outline, installed: Mapping[str, nn.Module], ties: Mapping[str, str]) -> dict[str, nn.Module]:
    """The output layer over the embedding's blocks, by the name of its weight, where the file has none of its own."""
    if not ties or outline.head is None:
        return {}
    path = next(path for path, module in outline.modules.items() if module is outline.head)
    source = next((m for m in installed.values() if isinstance(m, QuantEmbedding) and "token_embd" in m.weight.name), None)  # fmt: skip
    return {} if source is None or path in installed else {f"{path}.weight": QuantLinear(source.weight)}


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def set_tensor(model: nn.Module, name: str, values: torch.Tensor) -> None:
    """Values in place of a parameter or a buffer."""
    path, _, own = name.rpartition(".")
    module = model.get_submodule(path)
    if own in module._buffers:
        module._buffers[own] = values
    else:
        frozen = nn.Parameter(values, requires_grad=False)
        setattr(module, own, values if isinstance(values, nn.Parameter) else frozen)


def compute_buffers(model: Any) -> None:
    """Give buffers that no file has, such as frequencies of rope, the values that the class computes; LoadError if it does not."""
    waiting: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = waiting[f"{path}.{name}"] = _unset(buffer)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor._is_hf_initialized = not any(tensor is w for w in waiting.values())
    for module in model.modules():
        if isinstance(module, (QuantWeight, QuantLinear, QuantEmbedding, QuantJoined, QuantTransposed, QuantExperts)):
            vars(module)["_is_hf_initialized"] = True
    model.initialize_weights()
    left = [name for name in waiting if _same(model.get_buffer(name), _unset(waiting[name]))]
    left += [name for name, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if left:
        raise LoadError(f"{type(model).__name__} does not say what {', '.join(_by_layer(left))} should hold. Update transformers, or report the class.")  # fmt: skip


def _unset(like: torch.Tensor) -> torch.Tensor:
    """Values that no class computes."""
    odd = float("nan") if like.is_floating_point() else 0 if like.dtype is torch.bool else torch.iinfo(like.dtype).min
    return torch.full(like.shape, odd, dtype=like.dtype)


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.numel() > 0 and torch.equal(*(x.isnan() if x.is_floating_point() else x for x in (a, b)))


def _by_layer(names: Iterable[str]) -> Iterator[str]:
    """Names, those that differ in their first number only as one: `model.layers.0-3.mlp.gate.weight`."""
    layers: dict[str, list[int]] = {}
    for name in names:
        found = _LAYER.search(name)
        key = _LAYER.sub(".{i}.", name, 1)
        layers.setdefault(key, []).append(int(found[1]) if found else -1)
    for key, numbers in layers.items():
        yield key.replace("{i}", ranges(numbers))
