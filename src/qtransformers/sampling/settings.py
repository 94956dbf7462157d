"""The settings of a request: frozen, hashable, checked once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

from qtransformers.checks import flag, real, shown, text, whole
from qtransformers.errors import ConfigError

MAX_ID = 2**31 - 1
MAX_BIAS = 10_000.0
MAX_BREAKERS, MAX_BREAKER_CHARS = 64, 100


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling` as a request may give them; None leaves the model's own."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    top_n_sigma: float | None
    repetition_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    penalty_range: int | None
    dry_multiplier: float | None
    dry_base: float | None
    dry_allowed_length: int | None
    dry_range: int | None
    dry_breakers: Iterable[str] | None
    xtc_probability: float | None
    xtc_threshold: float | None
    dynatemp_range: float | None
    dynatemp_exponent: float | None
    mirostat_tau: float | None
    mirostat_eta: float | None
    logit_bias: Mapping[int, float] | Iterable[tuple[int, float]] | None
    banned_tokens: Iterable[int] | None
    allowed_tokens: Iterable[int] | None
    seed: int | None


@dataclass(frozen=True, repr=False)
class Sampling:
    """How tokens are chosen. The defaults are neutral: draw from the model's own distribution.

    The order of the stages and what each does: `qtransformers.sampling`. Collections may be given as any iterable, a
    bias also as a mapping; they are kept as sorted tuples. ConfigError naming the field for a value of the wrong type
    or out of range.
    """

    temperature: float = 1.0  # 0 is greedy; below 1 sharper, above flatter
    top_k: int = 0  # only the k likeliest tokens; 0 is off
    top_p: float = (
        1.0  # the fewest likeliest tokens whose probabilities reach p, the one that crosses it included; 1 is off
    )
    min_p: float = 0.0  # only tokens at least min_p times as likely as the likeliest; 0 is off
    typical_p: float = 1.0  # the fewest tokens of nearly expected surprise whose probabilities reach it; 1 is off
    top_n_sigma: float = 0.0  # only logits within so many standard deviations of the largest; 0 is off
    repetition_penalty: float = (
        1.0  # logits of tokens in prompt and answer are divided by it, negative ones multiplied; 1 is off
    )
    frequency_penalty: float = 0.0  # taken from a token's logit each time it is in the answer
    presence_penalty: float = 0.0  # taken once from the logit of each token in the answer
    penalty_range: int = -1  # these three look at so many of the latest tokens; -1 is all
    dry_multiplier: float = (
        0.0  # times dry_base ** (length - dry_allowed_length) is taken from what would repeat more; 0 is off
    )
    dry_base: float = 1.75
    dry_allowed_length: int = 2  # repetitions that are shorter cost nothing
    dry_range: int = -1  # tokens of prompt and answer among which it looks; -1 is all
    dry_breakers: tuple[str, ...] = ("\n", '"', "*", ":")  # texts that no repetition goes beyond
    xtc_probability: float = 0.0  # of leaving out the likeliest tokens but one; 0 is off
    xtc_threshold: float = 0.1  # that those are at least as likely as
    dynatemp_range: float = (
        0.0  # temperature goes from temperature - range, where all is clear, to temperature + range; 0 is off
    )
    dynatemp_exponent: float = 1.0  # of the entropy, over the largest possible, that says where between
    mirostat_tau: float = 0.0  # the surprise in bits that tokens should have on average; 0 is off
    mirostat_eta: float = 0.1  # how fast it is followed
    logit_bias: tuple[tuple[int, float], ...] = ()  # (id, what is added to its logit)
    banned_tokens: tuple[int, ...] = ()  # ids that are never drawn
    allowed_tokens: tuple[int, ...] | None = None  # no other ids are drawn; None: all may be
    seed: int | None = None  # the same seed gives the same tokens; None: another one each time

    def __post_init__(self) -> None:
        for name, (check, least, most) in RANGES.items():
            object.__setattr__(self, name, check(name, getattr(self, name), least, most))
        if self.seed is not None:
            object.__setattr__(self, "seed", whole("seed", self.seed, 0, 2**64 - 1))
        for name, normal in COLLECTIONS.items():
            object.__setattr__(self, name, normal(name, getattr(self, name)))
        if self.xtc_probability and self.mirostat_tau:
            raise ConfigError(
                f"xtc_probability={self.xtc_probability:g} and mirostat_tau={self.mirostat_tau:g} work against each other: "
                "one leaves out the likeliest tokens by chance, the other counts on them. Set one of them to 0."
            )

    def __repr__(self) -> str:
        told = [f for f in fields(self) if getattr(self, f.name) != f.default]
        return f"Sampling({', '.join(f'{f.name}={shown(getattr(self, f.name))}' for f in told)})"

    @classmethod
    def from_generation_config(cls, config: Mapping[str, Any]) -> Sampling:
        """What a `generation_config.json` says: its fields over the neutral defaults; `do_sample: false` is greedy."""
        given = {name: value for name in RANGES if (value := config.get(name)) is not None}
        try:
            if config.get("do_sample") is not None and not flag("do_sample", config["do_sample"]):
                given["temperature"] = 0.0
            return cls(**given)
        except ConfigError as e:
            raise ConfigError(f"generation_config: {e}") from None

    def override(self, **given: Any) -> Sampling:
        """These settings with the ones that are not None replaced; TypeError for a name that is no field."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})


# Field -> what checks it, least, most
RANGES: dict[str, tuple[Callable[[str, Any, Any, Any], Any], float, float]] = {
    "temperature": (real, 0, 100),
    "top_k": (whole, 0, MAX_ID),
    "top_p": (real, 0, 1),
    "min_p": (real, 0, 1),
    "typical_p": (real, 0, 1),
    "top_n_sigma": (real, 0, 1000),
    "repetition_penalty": (real, 1e-3, 100),
    "frequency_penalty": (real, -100, 100),
    "presence_penalty": (real, -100, 100),
    "penalty_range": (whole, -1, MAX_ID),
    "dry_multiplier": (real, 0, 100),
    "dry_base": (real, 1, 100),
    "dry_allowed_length": (whole, 1, MAX_ID),
    "dry_range": (whole, -1, MAX_ID),
    "xtc_probability": (real, 0, 1),
    "xtc_threshold": (real, 0, 1),
    "dynatemp_range": (real, 0, 100),
    "dynatemp_exponent": (real, 0, 100),
    "mirostat_tau": (real, 0, 100),
    "mirostat_eta": (real, 0, 1),
}


def _items(name: str, value: Any, expected: str) -> list[Any]:
    if not isinstance(value, (str, bytes, Mapping)):
        try:
            return list(value)
        except TypeError:
            pass
    raise ConfigError(f"{name}={shown(value)}; expected {expected}.")


def _ids(name: str, value: Any) -> tuple[int, ...]:
    items = _items(name, value, "a list of token ids")
    return tuple(sorted({whole(f"{name}[{i}]", id, 0, MAX_ID) for i, id in enumerate(items)}))


def _allowed(name: str, value: Any) -> tuple[int, ...] | None:
    ids = None if value is None else _ids(name, value)
    if ids == ():
        raise ConfigError(f"{name}={shown(value)} allows no token. Name at least one, or leave it out to allow all.")
    return ids


def _bias(name: str, value: Any) -> tuple[tuple[int, float], ...]:
    expected = "a mapping from token ids to numbers"
    found: dict[int, float] = {}
    for i, pair in enumerate(value.items() if isinstance(value, Mapping) else _items(name, value, expected)):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ConfigError(f"{name}[{i}]={shown(pair)}; expected {expected}.")
        id = whole(f"{name}: token id", pair[0], 0, MAX_ID)
        if id in found:
            raise ConfigError(f"{name} names token {id} twice. Keep one of its values.")
        found[id] = real(f"{name}[{id}]", pair[1], -MAX_BIAS, MAX_BIAS)
    return tuple(sorted(found.items()))


def _texts(name: str, value: Any) -> tuple[str, ...]:
    items = _items(name, value, "a list of texts")
    if len(items) > MAX_BREAKERS:
        raise ConfigError(f"{name} has {len(items):,} texts; expected at most {MAX_BREAKERS}.")
    for i, item in enumerate(items):
        if not 0 < len(text(f"{name}[{i}]", item)) <= MAX_BREAKER_CHARS:
            raise ConfigError(f"{name}[{i}] has {len(item):,} characters; expected 1 to {MAX_BREAKER_CHARS}.")
    return tuple(sorted(set(items)))


# Field -> what makes a sorted tuple of it, or refuses
COLLECTIONS: dict[str, Callable[[str, Any], Any]] = {
    "dry_breakers": _texts,
    "logit_bias": _bias,
    "banned_tokens": _ids,
    "allowed_tokens": _allowed,
}
