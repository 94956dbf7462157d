"""What an installation holds. `make test` installs the package first; from a source tree this is skipped."""

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"


@pytest.fixture(scope="module")
def installed():
    try:
        found = files("qtransformers")
    except PackageNotFoundError:
        pytest.skip("the package is not installed; `make test` installs it")
    return [str(f) for f in found or []]


@pytest.mark.parametrize(
    "file", ["data/demo.gguf", "py.typed", "quants/codebooks/iq1.txt", "__main__.py", "cli/run.py", "archs/llama.py"]
)
def test_holds(file, installed):
    assert f"qtransformers/{file}" in installed


def test_holds_every_file_of_the_source(installed):
    there = {
        p.relative_to(SOURCE).as_posix() for p in SOURCE.rglob("*") if p.is_file() and "__pycache__" not in p.parts
    }
    assert {f for f in there if not Path(f).name.startswith("_native.")} <= set(installed)


def test_holds_one_extension_and_nothing_stray(installed):
    inside = [f for f in installed if f.startswith("qtransformers/") and "__pycache__" not in f]
    allowed = (".py", ".txt", ".gguf", ".html", ".css", ".js", ".svg", "/py.typed")
    others = [f for f in inside if not f.endswith(allowed)]
    assert len(others) == 1 and others[0].startswith("qtransformers/_native.")
    outside = [f for f in installed if not f.startswith(("qtransformers", "../"))]
    assert outside == []
    assert not [f for f in installed if "test" in f or f.endswith((".cpp", ".h"))]


def test_demo_stays_small(installed):
    demo = next(f for f in files("qtransformers") or [] if str(f).endswith("demo.gguf"))
    assert demo.size is None or demo.size <= 5_000_000
