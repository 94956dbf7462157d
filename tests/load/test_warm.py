import threading
from pathlib import Path

import pytest

from qtransformers import machine
from qtransformers.errors import InsufficientMemoryError
from qtransformers.gguf import GGUFFile, split
from qtransformers.load import load, warm
from qtransformers.machine import Memory


@pytest.fixture
def shards(data, tmp_path):
    with GGUFFile(split(data / "demo-Q8_0.gguf", tmp_path / "demo", max_tensors=20)[0]) as file:
        yield file


def resident(file):
    """Bytes of the maps of a file that are in the page table, by the kernel's own account."""
    total = 0
    names = [str(p) for p in file.paths]
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines(keepends=True):
        if "-" in line.split()[0]:
            inside = any(line.rstrip().endswith(n) for n in names)
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.parametrize("system", [True, False])
def test_all_of_all_files_is_read(shards, monkeypatch, system):
    if not system:
        monkeypatch.setattr(machine, "populate", lambda part: False)  # an older kernel
    monkeypatch.setattr(warm, "STEP", 1 << 20)
    seen = []
    warm.preload(shards, lambda done, total: seen.append((done, total)))
    assert [total for _, total in seen] == [shards.nbytes] * len(seen)
    done = [n for n, _ in seen]
    assert done == sorted(done) and done[-1] == shards.nbytes and len(done) > 3
    assert resident(shards) >= shards.nbytes


def test_the_background_ends_when_told(shards, monkeypatch):
    reached, go_on = threading.Event(), threading.Event()
    parts = []

    def slow(part):
        parts.append(len(part))
        reached.set()
        go_on.wait(20)
        return True

    monkeypatch.setattr(machine, "populate", slow)
    monkeypatch.setattr(warm, "STEP", 1 << 16)
    end = warm.in_background(shards)
    assert reached.wait(20)
    go_on.set()
    end()
    assert sum(parts) <= shards.nbytes
    n = len(parts)
    shards.close()
    assert len(parts) == n and not [t for t in threading.enumerate() if t.name == "weights"]


def test_locking(shards, monkeypatch):
    limit = machine.lock_limit()
    if limit is None or limit > shards.nbytes + (1 << 20):
        warm.lock(shards)
        assert resident(shards) >= shards.nbytes
    monkeypatch.setattr(machine, "lock", lambda part: "Cannot allocate memory")
    monkeypatch.setattr(machine, "lock_limit", lambda: 8 << 20)
    with pytest.raises(InsufficientMemoryError, match=r"mlock: .*Cannot allocate memory \(this process may lock 8 MiB\).*ulimit -l unlimited"):  # fmt: skip
        warm.lock(shards)


def test_the_system_says_why_it_does_not_lock(data):
    with GGUFFile(data / "demo-Q8_0.gguf") as file:
        view = file.views()[0]
        assert machine.lock(view) == ""
    gone = view.ctypes.data + (1 << 46)  # nothing is mapped there

    class Nowhere:
        class ctypes:
            data = gone

        def __len__(self):
            return 4096

    assert machine.lock(Nowhere())


def test_a_model_that_exceeds_free_memory_is_told(data, monkeypatch):
    import qtransformers.load as module

    read = []
    monkeypatch.setattr(
        "qtransformers.load.warm.in_background", lambda gguf, views: read.append(gguf) or (lambda: None)
    )
    monkeypatch.setattr(module, "memory", lambda: Memory(8 << 30, 57 << 20, None))
    (warning,) = load(data / "demo-Q8_0.gguf").plan.warnings
    assert "of memory, and 57 MiB are free" in warning and "of the weights in memory" in warning
    assert not read, "nothing is read ahead that has no room"
    monkeypatch.setattr(module, "memory", lambda: Memory(8 << 30, 4 << 30, None))
    assert not load(data / "demo-Q8_0.gguf").plan.warnings and len(read) == 1


def test_a_load_keeps_or_reads_what_it_is_asked_to(data, tmp_path):
    """Both are looked at in the process's own accounts, with a file that nothing else maps."""
    path = tmp_path / "own.gguf"
    path.write_bytes((data / "demo-Q8_0.gguf").read_bytes())
    kept = load(path, preload=True)
    assert resident(kept.sources.gguf) >= kept.sources.gguf.nbytes
    limit = machine.lock_limit()
    if limit is not None and limit < kept.sources.gguf.nbytes + (1 << 20):
        pytest.skip("this process may not lock so much")
    before = locked()
    held = load(path, mlock=True)
    assert locked() - before >= held.sources.gguf.nbytes - (1 << 16)


def locked():
    """Bytes that the process has locked."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmLck:"))
    return int(line.split()[1]) * 1024
