import os
import subprocess
import sys

import pytest


def _environment(extra):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("QTRANSFORMERS_", "HF_")) and k != "NO_COLOR"}
    return kept | {"HF_HUB_OFFLINE": "1"} | extra


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
