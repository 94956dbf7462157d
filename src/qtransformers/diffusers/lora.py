"""LoRA for diffusion transformers: low-rank products beside the quantised weights, several at once, fused only on request.

Hu et al. 2021 (arXiv:2106.09685): y = W x + weight * alpha / r * B (A x), with A [r, in] and B [out, r].
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from qtransformers.archs.diffusion import Declared
from qtransformers.checks import path as a_path
from qtransformers.checks import shown
from qtransformers.convert.recipes import that_fits
from qtransformers.diffusers.loading import check_mapping, check_model
from qtransformers.errors import ConfigError, LoadError, ModelNotFoundError, UnsupportedError
from qtransformers.load.adapters import CONFIG, WEIGHTS, lora_scale, unsupported
from qtransformers.load.config import read_json
from qtransformers.load.findings import ANY_LAYER, Findings
from qtransformers.quants import quantize
from qtransformers.tensor import QTensor
from qtransformers.torch import QuantLinear, QuantWeight
from qtransformers.torch.conv import QuantConv2d
from qtransformers.types import BY_NAME

Tensor = torch.Tensor
PREFIXES = ("base_model.model.", "transformer.", "unet.", "model.diffusion_model.", "diffusion_model.", "lora_transformer_", "lora_unet_")  # fmt: skip
ELSEWHERE = re.compile(r"^(text_encoder(_\d)?|lora_te\d?)[._]")  # what text encoders have in the same file
PARTS = {
    **dict.fromkeys((".lora_A.weight", ".lora_down.weight", ".lora.down.weight", ".lora_A.default.weight"), "down"),
    **dict.fromkeys((".lora_B.weight", ".lora_up.weight", ".lora.up.weight", ".lora_B.default.weight"), "up"),
    ".alpha": "alpha",
}
REFUSED = {
    ".dora_scale": "scales whole columns of the sum (DoRA)", ".lora_magnitude_vector": "scales whole columns of the sum (DoRA)",
    ".lora_mid.weight": "is a LoRA of a convolution", ".hada_w1_a": "is a LoHa", ".lokr_w1": "is a LoKr",
    ".diff": "replaces a whole weight", ".diff_b": "replaces a bias", ".lora_B.bias": "changes a bias",
}  # fmt: skip
METADATA = "lora_adapter_metadata"  # of files that diffusers writes
TWICE = "Which of them counts cannot be known: fetch the adapter again, or take one away"
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Pair:
    """What an adapter adds to one layer: `up [out, r] @ down [r, in]`, the scale within `up`."""

    down: Tensor
    up: Tensor


class LoRALinear(nn.Module):
    """A linear layer, or a convolution of single pixels, and what adapters add to it: all of them are one pair of narrow products."""

    down: Tensor  # [r, in] of all adapters, one after the other
    up: Tensor  # [out, r], weighted

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.pairs: dict[str, Pair] = {}
        self.register_buffer("down", torch.empty(0), persistent=False)
        self.register_buffer("up", torch.empty(0), persistent=False)

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Take the adapters in these weights; those that are not named, or weigh 0, are left out."""
        active = [(pair, weights[name]) for name, pair in self.pairs.items() if weights.get(name)]
        like = self.weight if isinstance(self.weight, QuantWeight) else self.weight.data
        place: dict[str, Any] = {"device": self.down.device if like.device.type == "meta" else like.device, "dtype": like.dtype}  # fmt: skip
        self.down = torch.cat([pair.down for pair, _ in active]).to(**place) if active else torch.empty(0, **place)
        self.up = torch.cat([pair.up * w for pair, w in active], 1).to(**place) if active else torch.empty(0, **place)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., out]`, of a convolution `[..., out, height, width]`; in x's dtype."""
        y: Tensor = self.base(x)
        if not self.down.numel():
            return y
        axis = -3 if isinstance(self.base, nn.Conv2d) else -1
        down, up = self.down.to(x), self.up.to(x)  # also where hooks bring layers to x that know nothing of this one
        added: Tensor = (x.movedim(axis, -1) @ down.T) @ up.T
        return y + added.movedim(-1, axis)

    def delta(self) -> Tensor:
        """What the adapters add to the weight `[out, in]`, in float32."""
        return self.up.float() @ self.down.float()

    @property
    def weight(self) -> Any:
        """The layer's own."""
        return self.base.weight

    @property
    def bias(self) -> Any:
        """The layer's own."""
        return self.base.bias

    @property
    def in_features(self) -> int:
        """As the layer's, or its channels."""
        return _sizes(self.base)[1]

    @property
    def out_features(self) -> int:
        """As the layer's, or its channels."""
        return _sizes(self.base)[0]


LAYERS = (nn.Linear, *CONVOLUTIONS, LoRALinear)


def load_lora(model: Any, path: str | Path | Mapping[str, Tensor], name: str = "", weight: float = 1.0) -> str:
    """Add an adapter to a model of `load_transformer`, beside those it has; its name, by default the file's.

    `path` is a safetensors file, a folder as PEFT saves it, or a state: PEFT's and diffusers' names, kohya's, and those of the
    original layout, whose joined matrices (qkv) are shared out. Quantised weights stay as they are. LoadError with everything that
    does not fit, and nothing changed; ModelNotFoundError where there is no file; UnsupportedError for kinds other than LoRA;
    ConfigError for a name in use or a weight that is no number.
    """
    check_model(model)
    if not isinstance(name, str):
        raise ConfigError(f"name={shown(name)}; expected text.")
    if isinstance(path, Mapping):
        strange = next((k for k, v in path.items() if not isinstance(k, str) or not isinstance(v, torch.Tensor)), None)
        if strange is not None:
            raise ConfigError(f"path has {shown(strange)}: {shown(path[strange])}; expected tensors by their names.")
    else:
        path = a_path("path", path)
    name = name or (Path(path).stem if isinstance(path, (str, Path)) else "default")
    if name in adapters(model):
        raise ConfigError(f"the model has an adapter {name!r} already. Pass another name=, or remove_lora(model, {name!r}) first.")  # fmt: skip
    check_weight(name, weight)
    state, config = (path, {}) if isinstance(path, Mapping) else read_state(Path(path).expanduser())
    file = "the adapter" if isinstance(path, Mapping) else str(path)
    pairs = read_pairs(model, state, config, file)
    for target, pair in pairs.items():
        layer = model.get_submodule(target)
        if not isinstance(layer, LoRALinear):
            parent, _, own = target.rpartition(".")
            layer = LoRALinear(layer)
            setattr(model.get_submodule(parent), own, layer)
        layer.pairs[name] = pair
    set_lora(model, {**adapters(model), name: weight})
    return name


def adapters(model: Any) -> dict[str, float]:
    """The adapters of a model and their weights."""
    return dict(getattr(check_model(model), "adapters_", {}))


def set_lora(model: Any, weights: Mapping[str, float]) -> None:
    """Weigh the adapters anew, those not named by 0; ConfigError for a name that the model does not have."""
    known = {name for layer in _layers(check_model(model)) for name in layer.pairs}
    for name, weight in check_mapping("weights", weights, "numbers by the names of adapters").items():
        if name not in known:
            raise ConfigError(f"the model has no adapter {name!r}; it has {', '.join(sorted(known)) or 'none'}.")
        check_weight(name, weight)
    model.adapters_ = {**dict.fromkeys(known, 0.0), **weights}
    for layer in _layers(model):
        layer.weigh(model.adapters_)


def remove_lora(model: Any, name: str | None = None) -> None:
    """Take one adapter away, or all of them; layers are then what they were."""
    check_model(model)
    known = adapters(model)
    if name is not None and (not isinstance(name, str) or name not in known):
        raise ConfigError(f"the model has no adapter {shown(name)}; it has {', '.join(sorted(known)) or 'none'}.")
    for path, layer in [(p, m) for p, m in model.named_modules() if isinstance(m, LoRALinear)]:
        for gone in [n for n in layer.pairs if name in (None, n)]:
            del layer.pairs[gone]
        if not layer.pairs:
            _put_back(model, path, layer.base)
    model.adapters_ = {n: w for n, w in known.items() if name not in (None, n)}
    for layer in _layers(model):
        layer.weigh(model.adapters_)


def fuse_lora(model: Any, type: str | None = None) -> int:
    """Work the adapters into the weights, which are quantised anew: in `type`, or the type each has. Bytes that then lie in memory.

    Rounding happens a second time, so beside the weights they do no harm. ConfigError for an unknown type, and while layers are offloaded; UnsupportedError for one without an encoder.
    """
    check_model(model)
    if type is not None and (not isinstance(type, str) or type.upper() not in BY_NAME):
        raise ConfigError(f"type is {shown(type)}; expected one such as Q8_0.")
    layers = [(p, m) for p, m in model.named_modules() if isinstance(m, LoRALinear)]
    if away := [p for p, m in layers if m.weight.device.type == "meta"]:
        raise ConfigError(f"{away[0]} has no values: the model is offloaded. Fuse adapters first, then offload it.")
    total = 0
    fused: list[tuple[str, nn.Module]] = []
    for path, layer in layers:
        base: Any = layer.base
        if isinstance(base, (QuantLinear, QuantConv2d)):
            total += _fuse_blocks(base, layer.delta(), type, fused, path)
        else:
            made = copy(base)
            made._parameters = dict(base._parameters)  # the copy's own: the layer keeps its weight until all are made
            delta = layer.delta().view(base.weight.shape)
            made.weight = nn.Parameter((base.weight.float() + delta).to(base.weight.dtype), requires_grad=False)
            total += made.weight.nbytes
            fused.append((path, made))
    for path, module in fused:
        _put_back(model, path, module)
    model.adapters_ = {}
    return total


def _fuse_blocks(
    base: QuantLinear | QuantConv2d, delta: Tensor, type: str | None, fused: list[tuple[str, nn.Module]], path: str
) -> int:
    old = base.weight
    kind = that_fits(BY_NAME[type.upper()] if type else old.quant_type, old.shape[-1])
    values = (base.dequantize().float().flatten(1) + delta.to(old.device)).cpu().numpy()
    data = quantize(np.ascontiguousarray(values).reshape(-1), kind)
    weight = QuantWeight(QTensor(old.name, kind, values.shape, data, old.file), old.dtype, old.accuracy).to(old.device)
    bias = None if base.bias is None else base.bias.data
    fused.append(
        (path, QuantLinear(weight, bias) if isinstance(base, QuantLinear) else QuantConv2d(base, weight, bias))
    )
    return data.nbytes


def check_weight(name: str, weight: Any) -> None:
    """ConfigError where it is no finite number."""
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not abs(weight) < 1e6:
        raise ConfigError(f"the weight of adapter {name!r} is {shown(weight)}; expected a number such as 0.8.")


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of an adapter, and PEFT's config of it: of the file's metadata, or of the folder that PEFT saved it to.

    ModelNotFoundError where there is none; LoadError where it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    folder = path if path.is_dir() else path.parent if path.name == WEIGHTS else None
    weights = path / WEIGHTS if path.is_dir() else path
    if not weights.is_file() or (path.is_dir() and not (path / CONFIG).is_file()):
        raise ModelNotFoundError(f"{path}: no adapter there; expected a .safetensors file, or a folder with {CONFIG} and {WEIGHTS}.")  # fmt: skip
    config = read_json(folder / CONFIG) if folder and (folder / CONFIG).is_file() else None
    try:
        with safe_open(weights, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in tuple(file.keys())}
            return state, _told(file.metadata() or {}, path) if config is None else config
    except (SafetensorError, OSError, ValueError) as e:
        raise LoadError(f"{path} cannot be read as safetensors ({e}). Fetch the adapter again, or convert it.") from e


def read_pairs(model: Any, state: Mapping[str, Tensor], config: Mapping[str, Any], file: str) -> dict[str, Pair]:
    """What an adapter adds to each layer, by its path; LoadError or UnsupportedError with everything that does not fit.

    `config` is PEFT's, and may be empty: then alpha is what the state says, or the rank.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    findings = Findings(ANY_LAYER)
    for text in unsupported({"peft_type": "LORA", **config}):
        findings.add(f"{CONFIG}:", text, "unsupported")
    skipped = 0
    for key, values in state.items():
        if ELSEWHERE.match(key):
            skipped += 1
            continue
        refused = next((why for suffix, why in REFUSED.items() if key.endswith(suffix)), None)
        part = next(((suffix, part) for suffix, part in PARTS.items() if key.endswith(suffix)), None)
        if refused or part is None:
            findings.add(
                key, f"{refused or 'is no part of a LoRA'}, which is not supported. Use a plain LoRA.", "unsupported"
            )
            continue
        if part[1] != "alpha" and not values.is_floating_point():
            findings.add(key, f"holds {str(values.dtype).removeprefix('torch.')}; expected floats. Use the adapter as it was before it was quantised.", "unsupported")  # fmt: skip
            continue
        parts = groups.setdefault(_stripped(key.removesuffix(part[0])), {})
        if part[1] in parts:
            findings.add(key, f"is a second {part[1]} of its layer, under another prefix. {TWICE}.")
        parts[part[1]] = values
    targets = _targets(model)
    found: dict[str, Pair] = {}
    for name, parts in groups.items():
        whole = targets.get(name) or targets.get(name.replace(".", "_"))
        if whole is None:
            near = get_close_matches(name, targets, n=2, cutoff=0.75)
            findings.add(name, f"is no linear layer of {type(model).__name__}.{' Nearest: ' + ', '.join(near) + '.' if near else ''} Use an adapter of this model.")  # fmt: skip
        elif whole[0].kernel:
            findings.add(name, f"is a convolution of {whole[0].kernel} pixels, whose LoRA is not supported. Use a LoRA of linear layers and of convolutions of single pixels.", "unsupported")  # fmt: skip
        elif lacking := [p for p in ("down", "up") if p not in parts]:
            findings.add(name, f"has no {lacking[0]} matrix. The file is damaged: fetch it again.")
        else:
            for path, pair in _shared_out(name, whole, parts, config, file, findings):
                if path in found:
                    findings.add(name, f"changes {path}, as another name of the file does. {TWICE}.")
                found[path] = pair
    problems = [str(p) for p in findings.problems()]
    refusals = [p for p in findings.problems() if p.grade == "unsupported"]
    if not groups and not problems:
        problems = ["it has no LoRA for the diffusion transformer"]
    if problems:
        raise (UnsupportedError if refusals else LoadError)("\n  ".join((f"{file} does not fit {type(model).__name__}, {len(problems)} problems:", *problems[:40])))  # fmt: skip
    if skipped:
        warnings.warn(f"{file}: {skipped} tensors for text encoders are left out", stacklevel=3)
    return found


@dataclass(frozen=True)
class Target:
    """A layer that a name stands for: whole, or as rows of a joined matrix."""

    path: str
    ranges: tuple[tuple[int, int], ...]
    height: int  # rows of the joined matrix
    width: int
    kernel: str = ""  # of a convolution of more than single pixels, which is no product


def _targets(model: Any) -> dict[str, list[Target]]:
    """Linear layers and convolutions by every name that an adapter may call them; joined matrices stand for several."""
    modules = dict(model.named_modules())
    layers = {p: m for p, m in modules.items() if isinstance(m, LAYERS) and not p.endswith(".base")}
    found = {path: [Target(path, (), *_sizes(module), _kernel(module))] for path, module in layers.items()}
    plan = getattr(getattr(model, "gguf", None), "plan", None)
    for declared in plan.spec.declared(plan.config) if plan else ():
        path = declared.name.removesuffix(".weight")
        if declared.part == "weight" and declared.origin and path in layers:
            target = _origin_target(declared, path, layers[path])
            own = found.setdefault(declared.origin.name.removesuffix(".weight"), [])
            if target not in own:
                own.append(target)
    return {**{name.replace(".", "_"): targets for name, targets in found.items()}, **found}


def _origin_target(declared: Declared, path: str, module: Any) -> Target:
    assert declared.origin is not None
    out, width = _sizes(module)
    height = max((stop for _, stop in declared.origin.ranges), default=out)
    return Target(path, declared.origin.ranges, height, width, _kernel(module))


def _sizes(module: Any) -> tuple[int, int]:
    """Rows and columns of a layer's weight."""
    conv = isinstance(module, CONVOLUTIONS)
    return (module.out_channels, module.in_channels) if conv else (module.out_features, module.in_features)


def _kernel(module: Any) -> str:
    """`3x3` of a convolution that is no product of each pixel; "" for all other layers."""
    if not isinstance(module, CONVOLUTIONS):
        return ""
    plain = isinstance(module, nn.Conv2d) and module.kernel_size == module.stride == module.dilation == (1, 1)
    product = plain and module.groups == 1 and module.padding in (0, (0, 0), "valid", "same")
    return "" if product else "x".join(map(str, module.kernel_size))


def _shared_out(
    name: str,
    targets: list[Target],
    parts: Mapping[str, Tensor],
    config: Mapping[str, Any],
    file: str,
    findings: Findings,
) -> Iterator[tuple[str, Pair]]:
    down, up = parts["down"], parts["up"]
    if down.ndim == 4 and down.shape[2:] == (1, 1):  # kohya writes those of 1x1 convolutions so
        down, up = down.flatten(1), up.flatten(1)
    height, width = max(t.height for t in targets), targets[0].width
    rank = down.shape[0] if down.ndim else 0
    if down.ndim != 2 or up.ndim != 2 or down.shape[1] != width or up.shape != (height, rank) or not rank:
        findings.add(name, f"has matrices {list(down.shape)} and {list(up.shape)}; expected [r, {width}] and [{height}, r]. Use an adapter of this model.")  # fmt: skip
        return
    told = {"r": rank, "lora_alpha": rank, **config}
    if "alpha" in parts:
        if parts["alpha"].numel() != 1:
            findings.add(name, f"has an alpha of {parts['alpha'].numel()} values; expected one. The file is damaged: fetch it again.")  # fmt: skip
            return
        told |= {"lora_alpha": float(parts["alpha"]), "alpha_pattern": {}}
    down, up = down.float(), up.float() * lora_scale(told, name if "." in name else targets[0].path, file, rank)
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        findings.add(name, "holds values that are not finite. The file is damaged: fetch it again.")
        return
    for target in targets:
        rows = torch.cat([up[start:stop] for start, stop in target.ranges]) if target.ranges else up
        yield target.path, Pair(down, rows)


def _told(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """PEFT's config as diffusers writes it into a file's metadata, each key after the name of its component."""
    try:
        config = json.loads(metadata.get(METADATA, "{}"))
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise LoadError(f"{path}: {METADATA} is {shown(metadata[METADATA])}; expected a JSON object. Fetch the adapter again.")  # fmt: skip
    keys = (key.partition(".") for key in config)
    return {own: config[f"{part}.{own}"] for part, _, own in keys if part in ("transformer", "unet")}


def _stripped(name: str) -> str:
    """A name without the prefixes that tools put before it."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _layers(model: Any) -> list[LoRALinear]:
    return [m for m in model.modules() if isinstance(m, LoRALinear)]


def _put_back(model: Any, path: str, module: nn.Module) -> None:
    parent, _, own = path.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
