"""The floors of docs/architecture.md: imports run downward, and within a floor from right to left."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "qtransformers"

FLOORS = (
    ("errors", "checks", "settings", "machine", "types", "native"),
    ("quants", "tensor", "gguf"),
    ("kernels",),
    ("cache", "nn"),
    ("archs",),
    ("load", "sampling", "constrain"),
    ("generate",),
    ("options", "model", "convert", "quantize", "torch", "diffusers", "serve", "cli"),
)
ORDER = {name: (floor, place) for floor, names in enumerate(FLOORS) for place, name in enumerate(names)}


def modules():
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        if parts not in (("__init__",), ("__main__",)):
            yield path, parts[0]


def imported(path):
    """The parts of the package that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            head, _, rest = name.partition(".")
            if head == "qtransformers":
                yield node.lineno, rest.split(".")[0]


@pytest.mark.parametrize("path, part", [pytest.param(p, part, id=str(p.relative_to(SOURCE))) for p, part in modules()])
def test_imports_run_downward(path, part):
    assert part in ORDER, f"{path} has no floor: give it one here and in docs/architecture.md"
    for line, target in imported(path):
        if target == part or target.startswith("_") or target not in ORDER:
            continue  # itself, the extension, __version__
        assert ORDER[target] < ORDER[part], f"{path}:{line}: {part} may not import {target}"


def test_the_drawing_shows_these_floors():
    drawing = (SOURCE.parent.parent / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")[1]
    drawn = dict(re.findall(r"^ +(\d) +\| (.*?) *\|$", drawing, re.MULTILINE))
    there = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    for floor, names in enumerate(FLOORS):
        assert re.findall(r"\b([a-z]+)(?:\.py|/)(?= |$)", drawn[str(floor)]) == [n for n in names if n in there]


def test_only_settings_reads_the_environment():
    for path, part in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
                assert part == "settings", f"{path}:{node.lineno}: environment variables are read in settings.py only"


def test_only_native_imports_the_extension():
    for path, part in modules():
        for line, target in imported(path):
            assert target != "_native" or part == "native", f"{path}:{line}: the extension is reached through native.py"


LONGEST = 450  # lines of a file, which one reads in a sitting


def test_files_are_read_in_a_sitting():
    for folder, suffixes in ((SOURCE, {".py"}), (SOURCE.parents[1] / "csrc", {".h", ".cpp"})):
        for path in folder.rglob("*"):
            if path.suffix in suffixes:
                n = len(path.read_text(encoding="utf-8").splitlines())
                assert n <= LONGEST, f"{path} has {n} lines; expected at most {LONGEST}: split it by subject"


# Lines of which mypy or ruff overlooks something, by file: these may only become fewer.
SILENCED = {
    "cli/completion.py": 1,
    "gguf/headers.py": 1,
    "kernels/__init__.py": 1,
    "load/download.py": 3,
    "load/survey.py": 2,
    "quantize/journal.py": 1,
    "serve/run.py": 4,
    "tensor.py": 1,
    "torch/conv.py": 3,
    "torch/modules.py": 2,
}


def test_no_more_is_silenced():
    for path, _ in modules():
        n = sum(bool(re.search("# (?:noqa|type: ignore)", line)) for line in path.read_text().splitlines())
        most = SILENCED.get(path.relative_to(SOURCE).as_posix(), 0)
        assert n <= most, f"{path} silences {n} lines; expected at most {most}: mend them by a better type or shape"
