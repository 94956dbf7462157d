"""What this machine has: read from the system, never guessed; None where the system does not say."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from qtransformers.settings import usable_cores

_CGROUP_MEMORY = ("memory.max", "memory/memory.limit_in_bytes")  # version 2, version 1
_NO_LIMIT = 1 << 60  # version 1 says "unlimited" as a huge number


@dataclass(frozen=True)
class Memory:
    """Bytes of main memory."""

    total: int | None
    available: int | None  # what new processes may take without swapping
    limit: int | None  # the cgroup's, None when there is none

    @property
    def usable(self) -> int | None:
        """The least of what is available and what the cgroup allows."""
        known = [n for n in (self.available, self.limit) if n is not None]
        return min(known) if known else None


@dataclass(frozen=True)
class Cores:
    """Cores by who counts them."""

    installed: int
    usable: int  # affinity and cgroup quota considered


def cpu_name() -> str:
    """The processor's name as it states it."""
    for line in _lines("/proc/cpuinfo"):
        if line.startswith(("model name", "Hardware")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> Cores:
    """Cores installed and usable by this process."""
    return Cores(os.cpu_count() or 1, usable_cores())


def memory(root: Path = Path("/")) -> Memory:
    """Main memory of the system mounted at `root`."""
    found = {}
    for line in _lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if value.split()[1:] == ["kB"]:
            found[name] = int(value.split()[0]) * 1024
    limit = next((n for name in _CGROUP_MEMORY if (n := _number(root / "sys/fs/cgroup" / name)) is not None), None)
    if limit is not None and limit >= _NO_LIMIT:
        limit = None
    return Memory(found.get("MemTotal"), found.get("MemAvailable"), limit)


def huge_pages() -> str | None:
    """Mode of transparent huge pages: always, madvise or never."""
    for line in _lines("/sys/kernel/mm/transparent_hugepage/enabled"):
        return line.partition("[")[2].partition("]")[0] or None
    return None


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    for line in _lines(path):
        return int(line) if line.strip().isdigit() else None
    return None
