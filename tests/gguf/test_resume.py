import os
import subprocess
import sys

import numpy as np
import pytest

from qtransformers.errors import ConfigError, QTransformersError
from qtransformers.gguf import GGUFFile, GGUFWriter

SHAPES = [("a", (64,)), ("empty", (0,)), ("b", (8, 64)), ("c", (100, 33)), ("d", (5,))]
SPECS = [(name, shape, "F32") for name, shape in SHAPES]
VALUES = {name: np.random.default_rng(i).standard_normal(shape).astype(np.float32) for i, (name, shape) in enumerate(SHAPES)}  # fmt: skip
METADATA = {"general.architecture": "llama"}


def write(path, until=None, error=KeyboardInterrupt, resume="key", **more):
    """Write all tensors, or stop before `until`; how many were there already."""
    with GGUFWriter(path, METADATA, SPECS, resume=resume, **more) as writer:
        for name, _ in SHAPES[writer.finished :]:
            if name == until:
                raise error
            writer.write(name, VALUES[name])
    return writer.finished


def parts(folder):
    return sorted(p.name for p in folder.iterdir() if p.name.endswith(".part"))


@pytest.mark.parametrize("more", [{}, {"max_bytes": 3000}, {"max_tensors": 1}, {"max_tensors": 2}])
@pytest.mark.parametrize("until, at_least", [("a", 0), ("b", 0), ("c", 1), ("d", 2)])
def test_an_interrupted_file_is_gone_on_with(until, at_least, more, tmp_path):
    more = {**more, "max_bytes": 20_000} if "max_bytes" in more else more
    whole, again = tmp_path / "whole.gguf", tmp_path / "again.gguf"
    write(whole, **more)
    with pytest.raises(KeyboardInterrupt):
        write(again, until, **more)
    assert parts(tmp_path) and not list(tmp_path.glob("again*.gguf"))
    assert write(again, **more) >= at_least
    assert not parts(tmp_path)
    made = {p.name.replace("again", "whole"): p.read_bytes() for p in tmp_path.glob("again*")}
    assert made == {p.name: p.read_bytes() for p in tmp_path.glob("whole*")} and made


def test_what_was_lost_of_the_end_is_written_again(tmp_path):
    path = tmp_path / "x.gguf"
    with pytest.raises(KeyboardInterrupt):
        write(path, "d")
    left = tmp_path / parts(tmp_path)[0]
    size = left.stat().st_size
    for cut in (size - 1, size // 2, 40, 0):
        os.truncate(left, cut)
        with pytest.raises(KeyboardInterrupt):
            write(path, "d")
        assert left.stat().st_size == size
    write(path)
    with GGUFFile(path) as file:
        for name, values in VALUES.items():
            np.testing.assert_array_equal(file.tensors[name].numpy(), values)


def test_other_data_begin_anew_and_clear_what_was_left(tmp_path):
    path = tmp_path / "x.gguf"
    with pytest.raises(KeyboardInterrupt):
        write(path, "d", resume="one")
    one = parts(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write(path, "d", resume="two")
    assert len(parts(tmp_path)) == 1 and parts(tmp_path) != one
    left = tmp_path / parts(tmp_path)[0]
    raw = left.read_bytes()
    left.write_bytes(raw[:30] + b"X" + raw[31:])  # a header that is not this one's
    assert write(path, resume="two") == 0


def test_errors_of_ours_leave_nothing_behind(tmp_path):
    with pytest.raises(ConfigError):
        write(tmp_path / "x.gguf", "c", ConfigError)
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_are_refused(tmp_path):
    with GGUFWriter(tmp_path / "x.gguf", METADATA, SPECS, resume="key") as writer:
        with pytest.raises(ConfigError, match=r"x\.gguf is being written by another process"):
            write(tmp_path / "x.gguf")
        for name, values in VALUES.items():
            writer.write(name, values)
    assert GGUFFile(tmp_path / "x.gguf").tensors["c"].numpy().shape == (100, 33)


FULL = """
import resource, signal, sys
sys.path.insert(0, sys.argv[2])
from test_resume import write
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
write(Path(sys.argv[1]))
"""


def test_a_full_disk_leaves_no_half_file_under_the_final_name(tmp_path, request):
    """A limit on the size of files stands in for the disk."""
    path = tmp_path / "x.gguf"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path), str(request.path.parent)], capture_output=True, text=True, check=False
    )
    assert done.returncode and "x.gguf: File too large; what is written so far is kept" in done.stderr
    assert not path.exists() and len(parts(tmp_path)) == 1
    assert write(path) == 2  # the third was cut off
    np.testing.assert_array_equal(GGUFFile(path).tensors["c"].numpy(), VALUES["c"])


def test_without_resume_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with (
        pytest.raises(QTransformersError, match=r"No space left on device; nothing is left behind"),
        GGUFWriter(tmp_path / "x.gguf", METADATA, SPECS) as writer,
    ):
        monkeypatch.setattr(os, "fsync", full)
        for name, values in VALUES.items():
            writer.write(name, values)
    assert list(tmp_path.iterdir()) == []
