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
