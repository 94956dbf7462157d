"""What a diffusion transformer takes while it runs, by its header alone, and whether that fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qtransformers.errors import ConfigError, LoadError, UnsupportedError
from qtransformers.gguf import GGUFFile
from qtransformers.load.diffusion import Detected, DiffusionPlan, Part, detect, plan_diffusion
from qtransformers.load.files import memory_text
from qtransformers.load.fit import CONTEXT_BYTES, Budget, Fit, Need, Remedy
from qtransformers.load.footprint import page_tables
from qtransformers.tensor import QTensor

PROGRAM_BYTES = 504 << 20  # the interpreter with torch 2.13 for CPUs and diffusers 0.42, as imported
WIDEST = 4  # arrays of the widest layer that a step of diffusers holds at its peak: 3.3 in Flux.1, 1.6 in SD3, by resident memory
TOKENS = 4096 + 512  # of 1024 x 1024 pixels, 16 x 16 each, and of text


@dataclass(frozen=True, eq=False)
class Outlook:
    """What there is to say of a file before it is loaded, also where it cannot be: then there is no plan, but `problems`."""

    file: str
    found: Detected
    plan: DiffusionPlan | None
    problems: tuple[str, ...]

    @property
    def tensors(self) -> Mapping[str, QTensor]:
        """Those of the file."""
        return self.found.tensors

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return sum(t.n_values for t in self.tensors.values())

    @property
    def weights_bytes(self) -> int:
        """Of all tensors as stored."""
        return sum(t.nbytes for t in self.tensors.values())

    def temporaries(self, tokens: int) -> int:
        """Bytes of a step at its peak, about."""
        if self.plan:
            return step_bytes(self.plan.parts, tokens)
        return _widest((t.shape for t in self.tensors.values()), tokens)

    def groups(self) -> dict[tuple[str, str], list[QTensor]]:
        """Tensors by role and type, in the file's order; what no plan tells is `other`."""
        roles: dict[str, str] = {}
        for part in self.plan.parts if self.plan else ():
            roles.setdefault(part.tensor.name, "bias" if part.declared.part == "bias" else part.declared.row.role)
        found: dict[tuple[str, str], list[QTensor]] = {}
        for t in self.tensors.values():
            found.setdefault((roles.get(t.name, "other"), t.type.name), []).append(t)
        return found


def step_bytes(parts: Iterable[Part], tokens: int) -> int:
    """Bytes of a step at its peak, about: WIDEST times what the widest layer takes and gives for all tokens, in float32."""
    return _widest((part.declared.shape for part in parts if part.declared.row.role != "modulation"), tokens)


def _widest(shapes: Iterable[tuple[int, ...]], tokens: int) -> int:
    return 4 * tokens * WIDEST * max((sum(shape) for shape in shapes if len(shape) == 2), default=0)


def outlook(gguf: GGUFFile, config: Mapping[str, Any] | None = None, config_file: str = "config") -> Outlook:
    """The plan of a file, or what is wrong with it; UnsupportedError for none that we know."""
    found, file = detect(gguf), str(gguf.path)
    try:
        return Outlook(file, found, plan_diffusion(gguf, config, config_file), ())
    except (LoadError, UnsupportedError, ConfigError) as e:
        return Outlook(file, found, None, (str(e),))


def fit_diffusion(weights: int, step: int, budget: Budget) -> Fit:
    """Hold bytes of weights and of a step against main memory, or against each GPU where there are any: it runs on one of them."""
    if budget.devices:
        needs = tuple(Need(d, weights, 0, 0, step, 0, CONTEXT_BYTES, n) for d, n in budget.devices.items())
        needs = (min(needs, key=lambda n: n.model - (n.have or 0)),)  # the one with the most room
    else:
        system = page_tables(weights) + budget.spare
        needs = (Need("cpu", weights, 0, 0, step, PROGRAM_BYTES, system, budget.ram),)
    (need,) = needs
    remedies = [Remedy("a file of fewer bits a weight, or smaller pictures")] * (need.verdict == "does not fit")
    return Fit(needs, tuple(remedies))


def rows(found: Outlook) -> list[str]:
    """The tensors for people, one line a role and type."""
    return [
        f"  {role:<14} {type_name:<8} {len(ts):>5} tensors {memory_text(sum(t.nbytes for t in ts)):>10}"
        for (role, type_name), ts in found.groups().items()
    ]
