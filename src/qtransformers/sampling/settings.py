"""The settings of a request: frozen, checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from qtransformers.checks import flag, real, whole
from qtransformers.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. The defaults are neutral: draw from the model's own distribution.

    ConfigError naming the field for a value of the wrong type or out of range.
    """

    temperature: float = 1.0  # 0 is greedy; below 1 sharper, above flatter
    top_k: int = 0  # only the k likeliest tokens; 0 is off
    top_p: float = (
        1.0  # the fewest likeliest tokens whose probabilities reach p, the one that crosses included; 1 is off
    )
    min_p: float = 0.0  # only tokens at least min_p times as likely as the likeliest; 0 is off
    seed: int | None = None  # the same seed gives the same tokens; None: another one each time

    def __post_init__(self) -> None:
        real("temperature", self.temperature, 0, 100)
        whole("top_k", self.top_k, 0, 2**31 - 1)
        real("top_p", self.top_p, 0, 1)
        real("min_p", self.min_p, 0, 1)
        if self.seed is not None:
            whole("seed", self.seed, 0, 2**64 - 1)

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any]) -> Sampling:
        """What a `generation_config.json` says: its fields over the neutral defaults; `do_sample: false` is greedy."""
        names = {field.name for field in fields(cls)} - {"seed"}
        given = {name: value for name, value in config.items() if name in names and value is not None}
        try:
            if config.get("do_sample") is not None and not flag("do_sample", config["do_sample"]):
                given["temperature"] = 0.0
            return cls(**given)
        except ConfigError as e:
            raise ConfigError(f"generation_config: {e}") from None

    def override(self, **given: Any) -> Sampling:
        """These settings with the ones that are not None replaced; TypeError for a name that is no field."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})
