"""The load of a diffusion transformer, decided from headers alone: everything that is wrong is told, and nothing allocated before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qtransformers.archs.diffusion import ALL, DiffusionSpec, Layout
from qtransformers.archs.hparams import Hyperparameters
from qtransformers.archs.spec import Problem
from qtransformers.gguf import GGUFFile
from qtransformers.load.config import raise_problems
from qtransformers.load.diffusion.annotations import (
    BIASES_KEY,
    CONFIG_KEY,
    LAYOUT_KEY,
    annotated,
    of_keys,
    other_biases,
    other_layout,
)
from qtransformers.load.diffusion.detection import Detected, detect
from qtransformers.load.diffusion.matching import Part, match
from qtransformers.load.diffusion.settings import read_settings


@dataclass(frozen=True, eq=False)
class DiffusionPlan:
    """A load decided and checked, with nothing allocated yet."""

    file: str
    spec: DiffusionSpec
    layout: Layout
    config: Hyperparameters  # keyword arguments of the class, with their origins
    extra: Mapping[str, Any]  # settings of a given config that the spec does not know
    parts: tuple[Part, ...]
    warnings: tuple[str, ...] = ()

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights as stored."""
        return sum({id(p.tensor): p.tensor.nbytes for p in self.parts}.values())


def plan_diffusion(
    gguf: GGUFFile,
    config: Mapping[str, Any] | None = None,
    config_file: str = "config",
    specs: Sequence[DiffusionSpec] = ALL,
) -> DiffusionPlan:
    """The plan of a file with the settings that `config`, the file's metadata, its shapes or published models give, in this order.

    LoadError or UnsupportedError with everything that is wrong; ConfigError naming the settings that only a config can tell.
    """
    return plan_of(detect(gguf, specs), str(gguf.path), gguf.metadata, config, config_file, "loaded")


def plan_of(
    found: Detected, file: str, metadata: Mapping[str, Any], config: Mapping[str, Any] | None, config_file: str, to_be: str
) -> DiffusionPlan:  # fmt: skip
    """The plan of tensors that were detected, with the metadata beside them; errors say that `file` cannot be `to_be`."""
    spec = found.spec
    said, key = annotated(metadata, file), CONFIG_KEY
    if said is None and spec.keys:
        said, key = of_keys(spec, metadata), "metadata"
    settings, extra, problems = read_settings(found, file, said, config, config_file, key)
    headline = f"{file} cannot be {to_be} as {spec.title}"
    problems += other_layout(metadata.get(LAYOUT_KEY), found, file)
    raise_problems(headline, problems)
    parts, misfits = match(spec, found.layout, settings, found.tensors, settings.origins)
    grave = any(p.grade != "warning" for p in misfits)
    other = other_biases(metadata.get(BIASES_KEY), parts, file) if not grave else ()
    raise_problems(headline, [*(Problem(f"{file}: {p.text}", p.grade) for p in misfits), *other])
    notes = [p.text for p in problems if p.grade == "warning"]
    notes += [f"{file}: {p.text}" for p in misfits if p.grade == "warning"]
    return DiffusionPlan(file, spec, found.layout, settings, extra, parts, (*found.warnings, *notes))
