"""The C++ string walk under the compiler's sanitizers."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = ["-std=c++20", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.mark.slow
def test_the_walk_under_sanitizers(tmp_path):
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "empty.cpp").write_text("int main() {}\n")
    if subprocess.run([compiler, *FLAGS, "empty.cpp"], cwd=tmp_path, capture_output=True, check=False).returncode:
        pytest.skip(f"{compiler} has no sanitizers")
    build = [
        compiler,
        *FLAGS,
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{ROOT / 'csrc'}",
        str(ROOT / "tests/fuzz/walk.cpp"),
        "-o",
        "walk",
    ]
    subprocess.run(build, cwd=tmp_path, check=True)
    env = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    done = subprocess.run(
        [tmp_path / "walk", "2000000"], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "strings whole in 2000000 buffers" in done.stdout
    print(done.stdout)
