"""Which type a diffusion transformer should have on a machine: its steps are bound by arithmetic, so memory and quality decide."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from qtransformers.convert.diffusion import DiffusionSource, is_diffusion_model, known, of_model, opened
from qtransformers.convert.plan import Asked
from qtransformers.errors import ConfigError
from qtransformers.load.diffusion import is_diffusion, tensors_of
from qtransformers.load.diffusion_fit import TOKENS, fit_diffusion, step_bytes
from qtransformers.load.fit import Budget, Verdict
from qtransformers.load.source import Sources

# Best first, with what is worth its time of convert's methods (benchmarks/RESULTS.md, diffusion_learning.py)
METHODS = {
    "F16": "", "Q8_0": "", "Q6_K": "", "Q5_K_M": "", "Q4_K_M": "--refine", "Q4_K_S": "--awq --refine", "Q3_K_M": "--awq --refine", "Q2_K": "--awq --refine",
}  # fmt: skip
SMALLEST = "not even the smallest type fits: make smaller pictures (--ctx-size), or take a smaller model or more memory"


@dataclass(frozen=True)
class PictureOption:
    """A diffusion transformer in a file type on a machine."""

    file_type: str
    nbytes: int  # of weights
    needed: int  # bytes of device memory while it runs
    verdict: Verdict
    method: str  # flags of convert beside the type


@dataclass(frozen=True)
class PictureAdvice:
    """The options, best quality first, and which to take; None where not even the smallest fits."""

    model: str
    title: str
    device: str
    tokens: int  # of picture and text
    options: tuple[PictureOption, ...]
    best: PictureOption | None
    why: str
    quantised: bool = False  # whether the model given is so already

    @property
    def command(self) -> str:
        """How to make it."""
        if self.best is None:
            return ""
        words = "qtransformers convert", "ORIGINAL" if self.quantised else self.model, "-t", self.best.file_type
        return " ".join((*words, self.best.method)).strip()


def source_of(path: Path | None, sources: Sources | None) -> DiffusionSource | None:
    """A model on disk, or on the Hub with its GGUF header as `sources`, as a diffusion model; None where it is another."""
    if path is not None:
        return opened(path, outline=True) if is_diffusion_model(path) else None
    gguf = sources.gguf if sources else None
    return DiffusionSource(Path(gguf.path), tensors_of(gguf), gguf=gguf) if gguf and is_diffusion(gguf) else None


def advise_picture(model: str, source: DiffusionSource, budget: Budget, tokens: int | None = None) -> PictureAdvice:
    """What to do with a diffusion model on a machine with `budget`, for pictures of so many tokens (default: 1024 x 1024 pixels).

    Errors as for `convert.plan_conversion`; the text encoders and the VAE come on top.
    """
    try:
        found, tokens = known(source), tokens or TOKENS
    except ConfigError as e:
        raise ConfigError(
            f"{str(e).partition(' Pass config=')[0]} Give the folder of the pipeline, whose config says it."
        ) from e
    options, device = [], "cpu"
    for file_type, method in METHODS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of quantising anew: nothing is written
            plan = of_model(found, Asked(file_type, learns=True, force=True), file=str(source.path))
        (need,) = (fit := fit_diffusion(plan.nbytes, step_bytes(found.parts, tokens), budget)).needs
        device = need.device
        options.append(PictureOption(file_type, plan.nbytes, need.model + need.system, fit.verdict, method))
    best, why = _choose(options, bool(budget.devices))
    quantised = any(t.type.is_quantized for t in source.tensors.values())
    if quantised and best is not None:
        why += f". {Path(model).name} is quantised already, which no type undoes: ORIGINAL is the model it was made of"
    return PictureAdvice(model, found.spec.title, device, tokens, tuple(options), best, why, quantised)


def _choose(options: list[PictureOption], gpu: bool) -> tuple[PictureOption | None, str]:
    fitting = [o for o in options if o.verdict == "fits" and (gpu or o.file_type != "F16")]
    if not fitting:
        tight = [o for o in options if o.verdict == "tight"]
        return (
            (tight[-1], "it fits only just: text encoders and the VAE will want memory too")
            if tight
            else (None, SMALLEST)
        )
    if fitting[0].file_type == "F16":
        return fitting[0], "it fits on the GPU as it is: nothing is lost, and no step has anything to decode"
    if fitting[0].file_type == "Q8_0":
        return fitting[0], "it loses next to nothing, and fewer bits would not be faster: steps are bound by arithmetic"
    return fitting[0], "the best type that fits: fewer bits would not be faster, for steps are bound by arithmetic"
