import io
import os
import signal
import subprocess
import sys

import pytest


def _environment(extra):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("QTRANSFORMERS_", "HF_")) and k != "NO_COLOR"}
    return kept | {"HF_HUB_OFFLINE": "1"} | extra


@pytest.fixture(autouse=True)
def _interruptible():
    """SIGINT works although the tests may run in the background, where shells have it ignored; children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def command(tmp_path):
    """Run the command as a user would: `command("show", file, stdin=..., env={...})`, nothing on stdin by default."""

    def run(*words, stdin="", env=None):
        return subprocess.run(
            [sys.executable, "-m", "qtransformers", *map(str, words)],
            input=stdin,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=120,
            check=False,
            env=_environment({"HOME": str(tmp_path), **(env or {})}),
        )

    return run


class _Interrupting(io.StringIO):
    def __init__(self, pieces):
        super().__init__()
        self.left = pieces

    def write(self, text):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


@pytest.fixture
def interrupting(monkeypatch):
    """A standard output during which, after some pieces, Ctrl-C is pressed."""

    def install(pieces):
        out = _Interrupting(pieces)
        monkeypatch.setattr(sys, "stdout", out)
        return out

    return install
