"""Build source archive and wheel, mend the wheel for other Linux distributions, and try it where nothing else is: `wheel.py DIST`."""

import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections import Counter
from functools import partial
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "benchmarks"), str(ROOT / "src")]
from results import fastest, publish, table  # noqa: E402

MOST_BYTES = 20e6
ROUNDS = 9  # of importing it
KINDS = {"so": "kernels", "pyd": "kernels", "gguf": "demo model", "py": "Python", "js": "page", "css": "page", "html": "page"}  # fmt: skip


def main(dist: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "built"
        linux = sys.platform.startswith("linux")
        run(sys.executable, "-m", "build", "--outdir", built, ".")
        (wheel,) = built.glob("*.whl")
        dist.mkdir(exist_ok=True)
        if linux:
            run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", dist, wheel)
        else:
            shutil.copy(wheel, dist)
        for archive in built.glob("*.tar.gz"):
            shutil.copy(archive, dist)
        mended = max(dist.glob("*.whl"), key=lambda path: path.stat().st_mtime)
        size = mended.stat().st_size
        if size > MOST_BYTES:
            sys.exit(f"{mended} has {size / 1e6:.1f} MB; expected at most {MOST_BYTES / 1e6:.0f}")
        seconds = try_out(mended, Path(folder) / "fresh")
        publish(__file__, "The wheel", f"{contents(mended)}\n\n{fits(mended, seconds)}", how="make wheel")


def contents(wheel: Path) -> str:
    """What is in a wheel, by kind, as it is packed."""
    kinds: Counter[str] = Counter()
    with ZipFile(wheel) as packed:
        for file in packed.infolist():
            kinds[KINDS.get(file.filename.rpartition(".")[2], "the rest")] += file.compress_size
    rows = [(kind, f"{size / 1e6:.2f}") for kind, size in kinds.most_common()]
    return table(("in the wheel, packed", "MB"), [*rows, (f"`{wheel.name}`", f"{wheel.stat().st_size / 1e6:.2f}")])


def fits(wheel: Path, seconds: float) -> str:
    """Where a wheel can be installed, and how long it takes to import."""
    _, _, python, abi, platforms = wheel.stem.split("-")
    return (
        f"It is for `{python}-{abi}` on {' and '.join(f'`{name}`' for name in platforms.split('.'))} (manylinux: at least this glibc). "
        f"Installed without a compiler in an environment of its own, it lets the demo model answer, and `import qtransformers` takes {1000 * seconds:.0f} ms "
        f"more than Python alone (fastest of {ROUNDS} each)."
    )


def try_out(wheel: Path, folder: Path) -> float:
    """Install a wheel in an environment of its own, whose PATH has no compiler, and let the demo model answer there; seconds of its import."""
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "CC", "CXX"))}
    env |= {"PATH": str(programs), "HF_HUB_OFFLINE": "1"}
    python = programs / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:", wheel.resolve(), env=env, cwd=folder)  # fmt: skip
    run(python, Path(__file__).with_name("wheel_check.py").resolve(), env=env, cwd=folder)
    words = {"import": "import qtransformers", "alone": ""}
    calls = {name: partial(run, python, "-c", word, env=env, cwd=folder) for name, word in words.items()}
    taken = fastest(calls, ROUNDS)
    return taken["import"] - taken["alone"]


def run(*words: object, **more: object) -> None:
    subprocess.run(list(map(str, words)), check=True, **more)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
