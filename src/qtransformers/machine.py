"""What this machine has: read from the system, never guessed; None where the system does not say."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PAGE_SIZE = mmap.PAGESIZE  # bytes
_CGROUPS = "sys/fs/cgroup"
_POPULATE_READ = 22  # of madvise, Linux 5.14 and later
_MOST_CPUS = 1 << 16
_NO_LIMIT = 1 << 60  # version 1 says "unlimited" as a huge number


@dataclass(frozen=True)
class _Controller:
    """The files of a version of cgroups, and its names of page cache, which gives way."""

    folder: str  # of memory
    cpu: str
    limit: str
    used: str
    cached: tuple[str, ...]


_FAST = 0.6  # of the capacity of the fastest core: below, a core is there to save power
_V2 = _Controller("", "", "memory.max", "memory.current", ("inactive_file", "active_file"))
_V1 = _Controller(
    "memory", "cpu", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
)


@dataclass(frozen=True)
class Memory:
    """Bytes of main memory."""

    total: int | None
    available: int | None  # what new processes may take without swapping; page cache gives way and counts as such
    limit: int | None  # the tightest of the cgroup and those around it, None when there is none
    room: int | None = None  # what that cgroup has left, its page cache counted as free

    @property
    def usable(self) -> int | None:
        """The least of what is available and what the cgroup allows."""
        known = [n for n in (self.available, self.limit if self.room is None else self.room) if n is not None]
        return min(known) if known else None


@dataclass(frozen=True)
class Cores:
    """Cores by who counts them."""

    installed: int
    usable: int  # what usable_cores() counts


def cpu_name() -> str:
    """The processor's name as it states it."""
    for line in _lines("/proc/cpuinfo"):
        if line.startswith(("model name", "Hardware")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> Cores:
    """Cores installed and usable by this process."""
    return Cores(os.cpu_count() or 1, usable_cores())


def usable_cores(root: Path = Path("/"), allowed: Collection[int] | None = None) -> int:
    """Threads worth having: the cores among the `allowed` CPUs (None: this process's affinity) of the system at `root`.

    Of a hybrid processor the fast cores count, where any is allowed; threads of one core count once; CPU quotas of the cgroup and
    those around it, in either version, are kept to. At least 1.
    """
    if allowed is None:
        affinity = getattr(os, "sched_getaffinity", None)
        allowed = affinity(0) if affinity else range(os.cpu_count() or 1)
    system = root / "sys/devices"
    shared = {n: frozenset(_cpus(system / f"system/cpu/cpu{n}/topology/core_cpus_list")) or {n} for n in allowed}
    found = len({min(shared[n]) for n in _fast(system, allowed)})
    return max(1, min([found, *(int(quota) for quota in _quotas(root))]))


def _fast(system: Path, allowed: Collection[int]) -> Collection[int]:
    """Those of the CPUs that are not there to save power; all of them where no other is allowed or the system does not say."""
    fast = _cpus(system / "cpu_core/cpus") & set(allowed)  # Intel
    if not fast:
        capacity = {n: _number(system / f"system/cpu/cpu{n}/cpu_capacity") or 0 for n in allowed}
        most = max(capacity.values(), default=0)
        fast = {n for n, size in capacity.items() if size >= _FAST * most}
    return fast or allowed


def _cpus(path: Path) -> set[int]:
    """Of a list as the kernel writes it: 0-3,8,10-11."""
    found: set[int] = set()
    for part in ",".join(_lines(path)).split(","):
        first, _, last = part.strip().partition("-")
        if first.isdigit() and (last or first).isdigit():
            found.update(range(int(first), min(int(last or first), _MOST_CPUS) + 1))
    return found


def _quotas(root: Path) -> Iterator[float]:
    """CPUs' worth of time a second that the cgroup of this process and each one around it allow."""
    for kind, path in _memberships(root, "cpu"):
        for here in _around(root / _CGROUPS / kind.cpu, path):
            if kind is _V2:
                quota, period, *_ = [*" ".join(_lines(here / "cpu.max")).split(), "", ""]
            else:
                quota, period = (" ".join(_lines(here / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
            if quota.isdigit() and period.isdigit() and int(period):
                yield int(quota) / int(period)


def memory(root: Path = Path("/")) -> Memory:
    """Main memory of the system mounted at `root`."""
    found = {}
    for line in _lines(root / "proc/meminfo"):
        name, _, value = line.partition(":")
        if value.split()[1:] == ["kB"]:
            found[name] = int(value.split()[0]) * 1024
    groups = [(limit, left) for limit, left in _cgroups(root) if limit < _NO_LIMIT]
    limit = min((limit for limit, _ in groups), default=None)
    room = min((left for _, left in groups if left is not None), default=None)
    return Memory(found.get("MemTotal"), found.get("MemAvailable"), limit, room)


def resident() -> int | None:
    """Bytes of main memory that this process has in use, files it has mapped included."""
    return _pages(1)


def mapped() -> int | None:
    """Bytes of `resident` that are of files, which other processes may share."""
    return _pages(2)


def _pages(field: int) -> int | None:
    for line in _lines("/proc/self/statm"):
        return int(line.split()[field]) * os.sysconf("SC_PAGE_SIZE")
    return None


def in_cache(view: NDArray[np.uint8]) -> int | None:
    """Bytes of a mapped file, given from its beginning, that are in the page cache; None where the system does not say."""
    mincore = _system_call("mincore")
    if mincore is None:
        return None
    import numpy as np  # what only looks at the machine starts without it

    found, step = 0, 1 << 30
    for start in range(0, len(view), step):
        part = view[start : start + step]
        pages = np.zeros(-(-len(part) // mmap.PAGESIZE), np.uint8)
        if mincore(ctypes.c_void_p(part.ctypes.data), ctypes.c_size_t(len(part)), ctypes.c_void_p(pages.ctypes.data)):
            return None
        found += int((pages & 1).sum()) * mmap.PAGESIZE
    return min(found, len(view))


def populate(part: NDArray[np.uint8]) -> bool:
    """Bring mapped bytes into memory and into the page table, the interpreter free meanwhile; False where the system cannot."""
    madvise = _system_call("madvise")
    if madvise is None or not sys.platform.startswith("linux"):
        return False
    start, length = _whole_pages(part)
    return bool(madvise(start, length, ctypes.c_int(_POPULATE_READ)) == 0)


def forget(part: NDArray[np.uint8]) -> None:
    """Let bytes of a mapped file go from this process's memory; they come back when they are read. Other bytes stay."""
    _advise(part, getattr(mmap, "MADV_DONTNEED", 0), whole=True)


def expect(part: NDArray[np.uint8]) -> None:
    """Have the system read bytes of a mapped file ahead, without waiting for them. Other bytes stay."""
    _advise(part, getattr(mmap, "MADV_WILLNEED", 0), whole=False)


def _advise(part: NDArray[np.uint8], what: int, whole: bool) -> None:
    """Advice on the pages of a map that hold these bytes, `whole`: and no others."""
    base: Any = part
    while (inner := getattr(base, "obj", getattr(base, "base", None))) is not None:
        base = inner
    madvise = _system_call("madvise")
    if madvise is None or not sys.platform.startswith("linux") or not isinstance(base, mmap.mmap):
        return
    first, last = part.ctypes.data, part.ctypes.data + len(part)
    start, stop = (-(-first // PAGE_SIZE), last // PAGE_SIZE) if whole else (first // PAGE_SIZE, -(-last // PAGE_SIZE))
    if stop > start:
        madvise(ctypes.c_void_p(start * PAGE_SIZE), ctypes.c_size_t((stop - start) * PAGE_SIZE), ctypes.c_int(what))


def lock(part: NDArray[np.uint8]) -> str:
    """Keep mapped bytes in main memory; why that is refused, "" when it is not."""
    mlock = _system_call("mlock")
    if mlock is None:
        return "the system has no way to do that"
    return os.strerror(ctypes.get_errno()) if mlock(*_whole_pages(part)) else ""


def lock_limit() -> int | None:
    """Bytes that this process may lock; None without a limit, or where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def trim() -> None:
    """Give memory that was freed back to the system, where the C library keeps it (glibc)."""
    give_back = _system_call("malloc_trim")
    if give_back is not None:
        give_back(ctypes.c_size_t(0))


def _system_call(name: str) -> Any:
    try:
        return getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError, TypeError):
        return None


def _whole_pages(part: NDArray[np.uint8]) -> tuple[ctypes.c_void_p, ctypes.c_size_t]:
    """The pages that hold some bytes, as the system takes them."""
    before = part.ctypes.data % PAGE_SIZE
    return ctypes.c_void_p(part.ctypes.data - before), ctypes.c_size_t(len(part) + before)


def huge_mapped(path: Path) -> int | None:
    """Bytes of a file that this process has mapped in huge pages (FilePmdMapped); None where the system does not say."""
    total, inside = None, False
    for line in _lines("/proc/self/smaps"):
        head = line.split(None, 5)
        if "-" in head[0]:
            inside = len(head) > 5 and head[5] == str(path.resolve())
        elif inside and head[0] == "FilePmdMapped:":
            total = (total or 0) + int(head[1]) * 1024
    return total


def _cgroups(root: Path) -> Iterator[tuple[int, int | None]]:
    """Limit and what is left of it, of the cgroup of this process and each one around it that has a limit."""
    for kind, path in _memberships(root, "memory"):
        for here in _around(root / _CGROUPS / kind.folder, path):
            limit, used = _number(here / kind.limit), _number(here / kind.used)
            if limit is None:
                continue
            stat = dict(line.split(None, 1) for line in _lines(here / "memory.stat") if " " in line)
            cached = sum(int(stat[name]) for name in kind.cached if stat.get(name, "").isdigit())
            yield limit, None if used is None else max(0, limit - max(0, used - cached))


def _around(folder: Path, path: Path) -> Iterator[Path]:
    """The folders of a cgroup and of those around it."""
    inside = [p for p in (path, *path.parents) if ".." not in p.parts]
    for part in dict.fromkeys((*inside, Path("/"))):
        yield folder / part.relative_to("/")


def _memberships(root: Path, controller: str) -> Iterator[tuple[_Controller, Path]]:
    """The cgroup of this process in either version, the root where the system does not say."""
    found = {0: Path("/"), 1: Path("/")}
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path.startswith("/") and (number == "0" or controller in controllers.split(",")):
            found[0 if number == "0" else 1] = Path(path)
    yield _V2, found[0]
    yield _V1, found[1]


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


@dataclass(frozen=True)
class Gpu:
    """A CUDA device as its driver states it."""

    name: str
    total: int  # bytes
    free: int  # bytes; the total where the driver does not say
    capability: tuple[int, int]


def gpus() -> list[Gpu]:
    """The CUDA devices that this process may use, in CUDA's order; none without a driver."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return []
    return [gpu for i in range(count.value) if (gpu := _gpu(cuda, i)) is not None]


def _gpu(cuda: Any, index: int) -> Gpu | None:
    device, total, name, uuid = (
        ctypes.c_int(),
        ctypes.c_size_t(),
        ctypes.create_string_buffer(128),
        (ctypes.c_ubyte * 16)(),
    )
    version = [ctypes.c_int(), ctypes.c_int()]
    failed = cuda.cuDeviceGet(ctypes.byref(device), index) or cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    for number, attribute in zip(version, (75, 76), strict=True):
        failed = failed or cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
    if failed or cuda.cuDeviceGetName(name, 128, device):
        return None
    free = _free(bytes(uuid)) if not cuda.cuDeviceGetUuid(uuid, device) else None
    return Gpu(
        name.value.decode(errors="replace"),
        total.value,
        total.value if free is None else free,
        (version[0].value, version[1].value),
    )


def _free(uuid: bytes) -> int | None:
    """Free bytes of a device, without the half a gigabyte that a context of our own would take."""

    class Info(ctypes.Structure):
        _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))

    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    h = uuid.hex()
    spelled = f"GPU-{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}".encode()
    handle, info = ctypes.c_void_p(), Info()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(spelled, ctypes.byref(handle)):
        return None
    return None if nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(info)) else info.free
