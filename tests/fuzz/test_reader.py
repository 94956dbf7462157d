"""The reader on damaged files: GGUFError, or a load that is really valid; never another error, a hang, or memory."""

import os
import re
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from fuzz.mutate import Mutator, truncations
from qtransformers.errors import GGUFError
from qtransformers.gguf import GGUFFile, GGUFWriter, TensorSpec, Typed
from qtransformers.gguf.header import align_up
from qtransformers.gguf.values import VALUE_NAMES
from qtransformers.types import TYPES

LIMIT = 64 << 20  # bytes beyond the file's size
SECONDS = 5  # for one file


class Hang(BaseException):
    """One file took too long."""


def hang(number, frame):
    raise Hang


class Victim:
    """A copy of a good file whose header is damaged again and again; the data behind it stays."""

    def __init__(self, good: Path, folder: Path):
        self.raw = good.read_bytes()
        self.path = folder / "victim.gguf"
        self.path.write_bytes(self.raw)
        self.file = open(self.path, "r+b", buffering=0)  # noqa: SIM115
        self.refused = self.valid = 0
        self.slowest = 0.0

    def damage(self, header: bytes, size: int):
        os.pwrite(self.file.fileno(), header, 0)
        self.file.truncate(size)

    def repair(self, header: bytes, size: int):
        os.pwrite(self.file.fileno(), self.raw[: len(header)], 0)
        if size < len(self.raw):
            os.pwrite(self.file.fileno(), self.raw[size:], size)
        self.file.truncate(len(self.raw))

    def open(self, what):
        """Open the file as it is now and use all of it."""
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        began = time.perf_counter()
        try:
            with GGUFFile(self.path) as model:
                use(model)
            self.valid += 1
        except GGUFError as e:
            assert "victim.gguf" in str(e), f"{what}: {e}"
            self.refused += 1
        except BaseException as e:
            pytest.fail(f"{what}: {type(e).__name__}: {e}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        self.slowest = max(self.slowest, time.perf_counter() - began)


def use(model):
    """Decode every value; read every page of every tensor; count what there is."""
    for key in model.metadata:
        value, (kind, length) = model.metadata[key], model.metadata.info(key)
        if length is None:
            assert isinstance(value, (int, float, bool, str)), key
            repr(value)
        else:
            assert len(value) == length and (isinstance(value, list) == (kind == "arr[str]")), key
            if kind != "arr[str]":
                value.sum()
    end = model.data_offset
    for name, tensor in model.tensors.items():
        assert tensor.name == name and tensor.nbytes == tensor.data.size == tensor.n_rows * tensor.row_bytes
        tensor.data[::4096].sum()
        tensor.data[-1:].sum()
    for place in model.tensors.infos():
        assert model.data_offset + place.offset == end and end + place.nbytes <= model.nbytes
        end = align_up(end + place.nbytes, model.alignment)


def peak_memory():
    """The most resident memory so far, in bytes."""
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def zoo(path, big_endian):
    """A small file with every type of value and of tensor."""
    kinds = [k for k in VALUE_NAMES if k != "str"]
    metadata = {"general.architecture": "flux", "tokenizer.ggml.tokens": ["a", "b"], "x.block_count": 3}
    metadata |= {f"a.{k}": Typed(k, True if k == "bool" else 1) for k in kinds}
    metadata |= {f"b.{k}": Typed(k, [k == "bool" or 1, k != "bool" and 0]) for k in kinds} | {"b.str": ["x", "", "yz"]}
    specs = [
        TensorSpec(f"t.{t.name}", (2, t.block_size)[i % 2 :], t)
        for i, t in enumerate(TYPES.values())
        if not t.activation
    ]
    with GGUFWriter(path, metadata, specs, big_endian=big_endian, alignment=64) as writer:
        for spec in specs:
            writer.write(spec.name, bytes(spec.nbytes))
    return path


@contextmanager
def watched(victim):
    """A check that hangs end, and that memory stays."""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc and interval timers")
    victim.open("the good file")
    assert victim.valid == 1
    before = signal.signal(signal.SIGALRM, hang)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    base = peak_memory()
    yield victim
    signal.signal(signal.SIGALRM, before)
    victim.file.close()
    grown = peak_memory() - base
    print(
        f"{victim.refused} refused, {victim.valid - 1} valid, slowest {1e3 * victim.slowest:.1f} ms, peak memory "
        f"+{grown / 2**20:.1f} MB for a file of {len(victim.raw) / 2**20:.1f} MB"
    )
    assert grown < LIMIT + len(victim.raw)


@pytest.fixture
def victim(data, tmp_path):
    """The demo file."""
    with watched(Victim(data / "demo-Q8_0.gguf", tmp_path)) as victim:
        yield victim


def truncate(victim, n):
    with GGUFFile(victim.path) as model:
        needed = model.data_offset + max(i.offset + i.nbytes for i in model.tensors.infos())
    for size in truncations(victim.raw, n):
        victim.damage(b"", size)
        refused = victim.refused
        victim.open(f"cut to {size} bytes")
        assert (victim.refused == refused) == (size >= needed), f"cut to {size} bytes of {needed} needed"
        victim.repair(b"", size)
    assert victim.path.read_bytes() == victim.raw


def mutate(victim, start, stop):
    mutator = Mutator(victim.raw)
    for i in range(start, stop):
        header = mutator.header(i)
        size = len(victim.raw) + len(header) - mutator.end
        victim.damage(header, size)
        victim.open(f"mutation {i}")
        victim.repair(header, size)
    assert victim.path.read_bytes() == victim.raw
    assert victim.refused > (stop - start) / 4 and victim.valid > (stop - start) / 20  # both sides are exercised


def test_some_truncations(victim):
    truncate(victim, 200)


def test_some_mutations(victim):
    mutate(victim, 0, 2000)


@pytest.mark.parametrize("big_endian", [False, True])
def test_some_mutations_of_every_type(tmp_path, big_endian):
    with watched(Victim(zoo(tmp_path / "zoo.gguf", big_endian), tmp_path)) as victim:
        mutate(victim, 0, 1000)


@pytest.mark.slow
@pytest.mark.parametrize("big_endian", [False, True])
def test_20000_mutations_of_every_type(tmp_path, big_endian):
    with watched(Victim(zoo(tmp_path / "zoo.gguf", big_endian), tmp_path)) as victim:
        mutate(victim, 0, 20_000)


@pytest.mark.slow
def test_2000_truncations(victim):
    truncate(victim, 2000)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(10))
def test_100000_mutations(victim, part):
    mutate(victim, 10_000 * part, 10_000 * (part + 1))
