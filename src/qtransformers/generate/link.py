"""Connections between processes that share a model's layers: `torch.distributed` (gloo, and NCCL between GPUs)."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.checks import shown
from qtransformers.errors import ConfigError, MissingExtraError, NetworkError, UnsupportedError
from qtransformers.load.stages import Part

ARRIVAL = 600.0  # seconds in which all stages have to come, and in which each answers


@dataclass(frozen=True)
class Meeting:
    """Where stages find each other: `HOST:PORT/N`, of which the first listens on the port and N is how many there are."""

    host: str
    port: int
    n: int = 0  # 0: the first stage knows

    @classmethod
    def parse(cls, text: Any, counted: bool = True) -> Meeting:
        """Of `HOST:PORT/N`, or not `counted` of `HOST:PORT`; ConfigError for anything else."""
        expected = "HOST:PORT/N such as 10.0.0.1:29500/2" if counted else "HOST:PORT such as 10.0.0.1:29500"
        try:
            place, slash, n = text.partition("/")
            host, _, port = place.rpartition(":")
            found = cls(host.strip("[]"), int(port), int(n) if slash else 0)
        except (AttributeError, ValueError):
            raise ConfigError(f"stages={shown(text)}; expected {expected}.") from None
        if not host or not 0 < found.port < 65536 or bool(slash) != counted or (counted and not 2 <= found.n <= 1024):
            raise ConfigError(f"stages={shown(text)}; expected {expected}, with N from 2 to 1024.")
        return found


class Link:
    """One stage's connections to the others. NetworkError names the one that is gone."""

    def __init__(self, meeting: Meeting, part: Part, store: Any, timeout: float = ARRIVAL) -> None:
        dist = distributed()
        self.part = part
        self._store = store
        self._timeout = timedelta(seconds=timeout)
        self._nccl: Any = None
        try:
            self._group = dist.ProcessGroupGloo(dist.PrefixStore("gloo", store), part.rank, part.n, self._timeout)
        except RuntimeError as e:
            raise NetworkError(f"stages: the {part.n} stages that met at {meeting.host}:{meeting.port} cannot reach each other: {first_line(e)} GLOO_SOCKET_IFNAME names the interface to use.") from None  # fmt: skip

    def over_nccl(self) -> None:
        """Let activations go from GPU to GPU."""
        dist = distributed()
        self._nccl = dist.ProcessGroupNCCL(dist.PrefixStore("nccl", self._store), self.part.rank, self.part.n)

    def close(self) -> None:
        """End all connections."""
        self._group = self._nccl = self._store = None

    def send(self, x: Any, to: int) -> None:
        """Give an array or tensor to another stage, and wait until it has left."""
        self._pass(x, to, lambda group, tensor: group.send([tensor], to, 0))

    def receive(self, x: Any, source: int) -> None:
        """Fill an array or tensor with what another stage sends."""
        if isinstance(x, np.ndarray) or self._nccl is not None:
            self._pass(x, source, lambda group, tensor: group.recv([tensor], source, 0))
            return
        here = np.empty(tuple(x.shape), np.float32)
        self.receive(here, source)
        x.copy_(_tensor(here))

    def _pass(self, x: Any, other: int, work: Callable[[Any, Any], Any]) -> None:
        group = self._group
        if isinstance(x, np.ndarray):
            x = _tensor(x)
        elif self._nccl is not None:
            group = self._nccl
        else:
            x = x.cpu()
        said = ""
        try:
            work(group, x).wait()
        except RuntimeError as e:
            said = first_line(e)
        del group  # or the error below would keep the connections open, by its traceback
        if said:
            raise self.gone(other, said)

    def gone(self, other: int, said: str) -> NetworkError:
        """The error for a lost stage: the first that was missed by any of them, which the others are told through the store."""
        with suppress(RuntimeError):  # the store may be gone too
            first = self._store.compare_set("lost", "", str(other)) if self.part.rank else self._first_lost(other)
            other = int(first)
        return NetworkError(
            f"stage {other} of {self.part.n} (ranks 0 to {self.part.n - 1}) is gone: {said} Its own output says why. Start all stages again."
        )

    def _first_lost(self, other: int) -> str:
        """What a stage that lost its neighbour may have noted before it left; else what is seen from here."""
        end = time.monotonic() + 1
        while other != 1 and not self._store.check(["lost"]) and time.monotonic() < end:
            time.sleep(0.02)
        return self._store.get("lost").decode() if self._store.check(["lost"]) else str(other)


def distributed() -> Any:
    """torch.distributed; MissingExtraError or UnsupportedError where there is none."""
    try:
        import torch.distributed as dist
    except ImportError:
        raise MissingExtraError("stages are joined by torch.distributed, and torch is not installed. Install it: pip install 'qtransformers[torch]'") from None  # fmt: skip
    if not dist.is_available() or not hasattr(dist, "ProcessGroupGloo"):
        raise UnsupportedError("stages: this torch was built without torch.distributed and gloo. Install another one.")
    return dist


def _tensor(x: NDArray[Any]) -> Any:
    import torch

    return torch.from_numpy(x)


def first_line(error: Exception) -> str:
    """The first line of what torch says, without where in its source."""
    line = (str(error).splitlines() or [""])[0].strip()
    return line.rpartition("] ")[2].partition(". This is typically")[0].rstrip(".") + "."


def wait_for(there: Callable[[], bool], otherwise: str) -> None:
    """Wait so that Ctrl-C ends it."""
    end = time.monotonic() + ARRIVAL
    while not there():
        if time.monotonic() > end:
            raise NetworkError(f"{otherwise} within {ARRIVAL:.0f} seconds. Start it, or check address and firewall.")
        time.sleep(0.05)


def listens(meeting: Meeting) -> bool:
    """Whether the first stage is there."""
    try:
        socket.create_connection((meeting.host, meeting.port), timeout=5).close()
    except OSError:
        return False
    return True
