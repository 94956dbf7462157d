import mmap
import os
import subprocess
import sys

import numpy as np
import pytest

from qtransformers import machine


def write(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


MEMINFO = "MemTotal:       16000 kB\nMemFree: 1 kB\nMemAvailable:    8000 kB\nHugePages_Total:       3\n"


def test_memory_without_a_limit(tmp_path):
    write(tmp_path, "proc/meminfo", MEMINFO)
    write(tmp_path, "sys/fs/cgroup/memory.max", "max\n")
    found = machine.memory(tmp_path)
    assert found == machine.Memory(16000 * 1024, 8000 * 1024, None)
    assert found.usable == 8000 * 1024


def test_memory_under_a_cgroup(tmp_path):
    write(tmp_path, "proc/meminfo", MEMINFO)
    write(tmp_path, "sys/fs/cgroup/memory.max", "1048576\n")
    assert machine.memory(tmp_path).usable == 1048576


def test_the_old_cgroup_spells_unlimited_as_a_number(tmp_path):
    write(tmp_path, "proc/meminfo", MEMINFO)
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", str(2**63 - 4096))
    assert machine.memory(tmp_path).limit is None


def test_nothing_is_guessed(tmp_path):
    assert machine.memory(tmp_path) == machine.Memory(None, None, None)
    assert machine.memory(tmp_path).usable is None


def test_this_machine_has_cores_and_a_name():
    found = machine.cores()
    assert 1 <= found.usable <= found.installed
    assert machine.cpu_name()


def test_what_a_cgroup_has_left_counts_its_page_cache_as_free(tmp_path):
    write(tmp_path, "proc/meminfo", MEMINFO)
    write(tmp_path, "proc/self/cgroup", "0::/user/box\n")
    write(tmp_path, "sys/fs/cgroup/user/box/memory.max", "1000000\n")
    write(tmp_path, "sys/fs/cgroup/user/box/memory.current", "700000\n")
    write(tmp_path, "sys/fs/cgroup/user/box/memory.stat", "anon 100000\nactive_file 250000\ninactive_file 150000\n")
    found = machine.memory(tmp_path)
    assert (found.limit, found.room, found.usable) == (1000000, 700000, 700000)


def test_the_tightest_of_the_cgroups_around_counts(tmp_path):
    write(tmp_path, "proc/meminfo", MEMINFO)
    write(tmp_path, "proc/self/cgroup", "0::/user/box\n")
    write(tmp_path, "sys/fs/cgroup/user/box/memory.max", "max\n")
    write(tmp_path, "sys/fs/cgroup/user/memory.max", "500000\n")
    write(tmp_path, "sys/fs/cgroup/user/memory.current", "450000\n")
    assert machine.memory(tmp_path).usable == 50000


def test_version_1_with_a_path_of_its_own(tmp_path):
    write(tmp_path, "proc/meminfo", MEMINFO)
    write(tmp_path, "proc/self/cgroup", "5:cpu:/x\n4:memory:/docker/abc\n0::/\n")
    write(tmp_path, "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "2000000\n")
    write(tmp_path, "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes", "1500000\n")
    write(tmp_path, "sys/fs/cgroup/memory/docker/abc/memory.stat", "total_inactive_file 300000\ntotal_active_file 0\n")
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", str(2**63 - 4096))
    found = machine.memory(tmp_path)
    assert (found.limit, found.room) == (2000000, 800000)


def test_a_path_out_of_the_tree_is_not_followed(tmp_path):
    write(tmp_path, "proc/meminfo", MEMINFO)
    write(tmp_path, "proc/self/cgroup", "0::/../..\n")
    write(tmp_path, "sys/memory.max", "1\n")
    assert machine.memory(tmp_path).limit is None


def test_resident_memory_of_this_process():
    before = machine.resident()
    if before is None:
        pytest.skip("no /proc here")
    with mmap.mmap(-1, 32 << 20) as fresh:
        fresh.write(b"x" * (32 << 20))
        assert machine.resident() - before >= 0.9 * (32 << 20)


def test_what_of_a_file_is_in_memory(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"x" * 100_000)
    with open(path, "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        assert machine.in_cache(view) in (100_000, None)
        del view
        assert machine.huge_mapped(path) in (0, None)


def siblings(root, *groups):
    """Cores, each the list of CPUs it shows as, as the kernel writes it."""
    for group in groups:
        ends = [int(n) for n in group.replace(",", "-").split("-")]
        for n in ends if "," in group else range(ends[0], ends[-1] + 1):
            write(root, f"sys/devices/system/cpu/cpu{n}/topology/core_cpus_list", group + "\n")


def test_cores_are_those_of_the_affinity_at_most():
    assert 1 <= machine.usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_a_process_bound_to_one_cpu_gets_one_thread():
    script = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from qtransformers import machine; print(machine.usable_cores())"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, check=True).stdout == b"1\n"


def test_threads_of_one_core_count_once(tmp_path):
    siblings(tmp_path, "0,4", "1,5", "2,6", "3,7")
    assert machine.usable_cores(tmp_path, range(8)) == 4
    assert machine.usable_cores(tmp_path, {1, 5}) == 1
    assert machine.usable_cores(tmp_path, {4, 5, 6}) == 3  # its second threads are as good as its first


def test_without_a_word_from_the_system_every_cpu_is_a_core(tmp_path):
    assert machine.usable_cores(tmp_path, range(6)) == 6
    assert machine.usable_cores(tmp_path, set()) == 1


@pytest.mark.parametrize("allowed, cores", [(range(12), 2), ({0, 1, 9}, 1), (range(4, 12), 8), ({3, 4, 5}, 1)])
def test_of_a_hybrid_processor_the_fast_cores_count(allowed, cores, tmp_path):
    """Two fast cores of two threads, eight slow ones; where the affinity leaves none of the fast, the slow."""
    siblings(tmp_path, "0-1", "2-3", *map(str, range(4, 12)))
    write(tmp_path, "sys/devices/cpu_core/cpus", "0-3\n")
    write(tmp_path, "sys/devices/cpu_atom/cpus", "4-11\n")
    assert machine.usable_cores(tmp_path, allowed) == cores


def test_capacities_tell_fast_cores_too(tmp_path):
    for n, capacity in enumerate([250, 250, 250, 250, 850, 850, 850, 1024]):
        write(tmp_path, f"sys/devices/system/cpu/cpu{n}/cpu_capacity", f"{capacity}\n")
    assert machine.usable_cores(tmp_path, range(8)) == 4
    assert machine.usable_cores(tmp_path, range(3)) == 3


@pytest.mark.parametrize("quota, cores", [("max 100000", 8), ("350000 100000", 3), ("50000 100000", 1), ("1600000 100000", 8), ("100000 0", 8), ("", 8), ("rubbish", 8), ("0 100000", 1)])  # fmt: skip
def test_the_quota_of_a_cgroup_is_kept_to(quota, cores, tmp_path):
    write(tmp_path, "proc/self/cgroup", "0::/user.slice/job\n")
    write(tmp_path, "sys/fs/cgroup/user.slice/job/cpu.max", quota + "\n")
    assert machine.usable_cores(tmp_path, range(8)) == cores


def test_the_tightest_quota_around_counts(tmp_path):
    write(tmp_path, "proc/self/cgroup", "0::/user.slice/job\n")
    write(tmp_path, "sys/fs/cgroup/user.slice/job/cpu.max", "600000 100000\n")
    write(tmp_path, "sys/fs/cgroup/user.slice/cpu.max", "200000 100000\n")
    assert machine.usable_cores(tmp_path, range(8)) == 2
    write(tmp_path, "sys/fs/cgroup/cpu.max", "100000 100000\n")  # a container that sees itself as the root
    assert machine.usable_cores(tmp_path, range(8)) == 1


@pytest.mark.parametrize("quota, cores", [("-1", 8), ("250000", 2)])
def test_the_old_cgroup_has_a_quota_too(quota, cores, tmp_path):
    write(tmp_path, "proc/self/cgroup", "4:memory:/m\n3:cpu,cpuacct:/docker/abc\n0::/\n")
    write(tmp_path, "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us", quota + "\n")
    write(tmp_path, "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us", "100000\n")
    assert machine.usable_cores(tmp_path, range(8)) == cores


@pytest.mark.parametrize("text", ["", "x", "3-", "-3", "0-99999999999", "1,,2", "\0"])
def test_a_list_that_cannot_be_read_stops_nothing(text, tmp_path):
    write(tmp_path, "sys/devices/cpu_core/cpus", text)
    write(tmp_path, "sys/devices/system/cpu/cpu0/topology/core_cpus_list", text)
    assert 1 <= machine.usable_cores(tmp_path, range(4)) <= 4


class Driver:
    """libcuda and libnvidia-ml of a machine with one card, or with none that works."""

    UUID = bytes(range(16))

    def __init__(self, works=True):
        self.works = works

    def __call__(self, name):
        if name not in ("libcuda.so.1", "libnvidia-ml.so.1"):
            raise OSError(name)
        return self

    def __getattr__(self, name):
        assert name.startswith(("cu", "nvml")), name
        return lambda *args: self.answer(name, *(getattr(a, "_obj", a) for a in args))

    def answer(self, name, *args):
        if name == "cuInit":
            return 0 if self.works else 100
        if name in ("cuDeviceGetCount", "cuDeviceGet"):
            args[0].value = 1 if name == "cuDeviceGetCount" else args[1]
        elif name == "cuDeviceTotalMem_v2":
            args[0].value = 24 << 30
        elif name == "cuDeviceGetName":
            args[0].value = b"A card"
        elif name == "cuDeviceGetAttribute":
            args[0].value = {75: 8, 76: 9}[args[1]]
        elif name == "cuDeviceGetUuid":
            args[0][:] = self.UUID
        elif name == "nvmlDeviceGetHandleByUUID":
            assert args[0] == b"GPU-00010203-0405-0607-0809-0a0b0c0d0e0f"
        elif name == "nvmlDeviceGetMemoryInfo":
            args[1].total, args[1].free = 24 << 30, 20 << 30
        return 0


def test_cards_are_what_their_driver_says(monkeypatch):
    monkeypatch.setattr(machine.ctypes, "CDLL", Driver())
    assert machine.gpus() == [machine.Gpu("A card", 24 << 30, 20 << 30, (8, 9))]
    monkeypatch.setattr(machine.ctypes, "CDLL", Driver(works=False))
    assert machine.gpus() == []


def test_without_a_driver_there_is_no_card(monkeypatch):
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    assert machine.gpus() == []
