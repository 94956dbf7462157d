"""A mapped file that becomes shorter: the process ends as before, and says why where it was told to."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(
    not hasattr(signal, "SIGBUS"), reason="there a file that is mapped cannot become shorter"
)

READ = """
    import faulthandler, mmap, os, signal, sys, threading
    from qtransformers.native import lib
    f = open(sys.argv[1], "r+b")
    data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    data[60_000]
"""
LOSE = """
    f.truncate(5_000)
    print("reads", flush=True)
    data[60_000]
    print("goes on", flush=True)
"""


def ended(tmp_path, *parts):
    path = tmp_path / "a model.gguf"
    path.write_bytes(bytes(65_536))
    script = "\n".join(textwrap.dedent(part) for part in parts)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONFAULTHANDLER"}
    found = subprocess.run([sys.executable, "-c", script, path], check=False, capture_output=True, text=True, env=environment, timeout=60)  # fmt: skip
    assert found.returncode == -signal.SIGBUS
    return found, path


def test_the_file_and_the_remedy_are_named(tmp_path):
    found, path = ended(tmp_path, READ, "lib.watch_mappings()", "lib.watch_mappings()", LOSE)
    assert found.stdout == "reads\n"
    (line,) = found.stderr.splitlines()
    assert line.startswith(f"qtransformers: {path} has become shorter")
    assert "(mv)" in line


def test_many_threads_say_it_once(tmp_path):
    threads = """
        lib.watch_mappings()
        f.truncate(5_000)
        gate = threading.Barrier(8)
        for _ in range(8): threading.Thread(target=lambda: (gate.wait(), data[60_000])).start()
    """
    found, path = ended(tmp_path, READ, threads)
    assert found.stderr.count(str(path)) == 1


def test_a_handler_of_before_has_its_turn(tmp_path):
    found, path = ended(tmp_path, READ, "faulthandler.enable()", "lib.watch_mappings()", LOSE)
    assert str(path) in found.stderr
    assert "Fatal Python error: Bus error" in found.stderr


def test_a_signal_that_was_sent_is_no_file(tmp_path):
    found, _ = ended(tmp_path, READ, "lib.watch_mappings()", "os.kill(os.getpid(), signal.SIGBUS)")
    assert found.stderr == ""


def test_the_library_alone_changes_no_handler(tmp_path):
    found, _ = ended(tmp_path, READ, "import qtransformers", LOSE)
    assert found.stderr == ""
