"""The only reader of environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qtransformers.errors import ConfigError

PREFIX = "QTRANSFORMERS_"
MAX_THREADS = 4096  # as csrc/pool.cpp


@dataclass(frozen=True)
class Settings:
    """What the environment says; explicit arguments always win over it."""

    threads: int | None = None  # worker threads; None: one per core this process may use
    isa: str | None = None  # instruction set of the kernels; None: the best this machine has
    offline: bool = False  # never touch the network (HF_HUB_OFFLINE)
    no_color: bool = False
    state_home: Path = Path("~/.local/state")  # where programs keep what should survive them (XDG_STATE_HOME)

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Read `QTRANSFORMERS_*` and the usual Hugging Face and terminal variables; ConfigError on a bad value."""
        env = os.environ if env is None else env
        return cls(
            threads=_threads(env, PREFIX + "THREADS"),
            isa=env.get(PREFIX + "ISA") or None,
            offline=env.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"),
            no_color=bool(env.get("NO_COLOR")),
            state_home=Path(env.get("XDG_STATE_HOME") or "~/.local/state"),
        )


def flag_from_env(name: str, env: Mapping[str, str] | None = None) -> str | None:
    """The value of `QTRANSFORMERS_<NAME>` for a command-line flag, or None."""
    env = os.environ if env is None else env
    return env.get(PREFIX + name.upper().replace("-", "_")) or None


def _threads(env: Mapping[str, str], key: str) -> int | None:
    text = env.get(key)
    if not text:
        return None
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 1 <= value <= MAX_THREADS:
        raise ConfigError(
            f"{key} is {text!r:.60}; expected a whole number from 1 to {MAX_THREADS}. Correct or unset it."
        )
    return value
