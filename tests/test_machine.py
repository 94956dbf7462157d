import mmap

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
