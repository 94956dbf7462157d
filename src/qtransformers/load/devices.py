"""The GPUs of this machine: which may be used, and why others may not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from qtransformers.errors import ConfigError, UnsupportedError
from qtransformers.load.placement import parse
from qtransformers.machine import Gpu

OLDEST = (8, 0)  # compute capability: bfloat16 in tensor cores
EXTRA = "pip install 'qtransformers[torch]'"


@dataclass(frozen=True)
class Devices:
    """Free bytes of the GPUs that may be used, by name; of others, why not."""

    free: Mapping[str, int]
    reasons: Mapping[str, str]

    @classmethod
    def of(cls, gpus: Sequence[Gpu]) -> Devices:
        """What can be used of the GPUs that a machine has."""
        missing = [name for name in ("torch", "triton") if gpus and find_spec(name) is None]
        free, reasons = {}, {}
        for i, gpu in enumerate(gpus):
            name = f"cuda:{i}"
            if missing:
                reasons[name] = f"{name} ({gpu.name}) needs {' and '.join(missing)}: {EXTRA}"
            elif gpu.capability < OLDEST:
                has, least = (".".join(map(str, version)) for version in (gpu.capability, OLDEST))
                reasons[name] = f"{name} ({gpu.name}) has compute capability {has}; the kernels need {least} or newer"
            else:
                free[name] = gpu.free
        return cls(free, reasons)

    def check(self, placement: str) -> None:
        """UnsupportedError where a placement names a GPU that cannot be used, ConfigError where it names one that is not there."""
        if placement.endswith(".json"):
            return  # `placement.resolve` reads it and knows what there is
        said = parse(placement)
        for device in dict.fromkeys([*(e.device for e in said.entries), said.rest or "auto"]):
            if device in self.reasons:
                raise UnsupportedError(
                    f"placement={placement!r}: {self.reasons[device]}. Leave it out, or use the CPU."
                )
            if device.startswith("cuda") and not self.free:
                raise ConfigError(f"placement={placement!r}: there is no {device}: the system shows no CUDA device. Use cpu or auto.")  # fmt: skip
