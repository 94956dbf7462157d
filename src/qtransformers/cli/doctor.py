"""Check this machine and this installation: what was found, what is wrong, what to do. Ends with 1 when something is."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from qtransformers import __version__, machine
from qtransformers.cli.flags import add_flags
from qtransformers.cli.terminal import painter, printable, table
from qtransformers.errors import ConfigError, QTransformersError
from qtransformers.settings import Settings

QUESTION, ANSWER = "What is 7 plus 5?", "7 plus 5 is 12."
EXTRAS = {  # extra: the packages it brings
    "torch": ("torch", "transformers"),
    "diffusers": ("diffusers",),
    "serve": ("starlette", "uvicorn", "httptools", "msgspec", "prometheus_client"),
    "ray": ("ray",),
}
COLOURS = {"ok": "green", "warning": "yellow", "failed": "red"}


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    what: str
    found: str
    state: Literal["ok", "warning", "failed"] = "ok"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No operands."""
    add_flags(parser, "json", "threads")


def run(args: argparse.Namespace) -> int:
    """Print the findings on stdout; 1 when a check failed."""
    findings = [f for check in CHECKS for f in _guarded(check, args.threads)]
    if args.json:
        json.dump([asdict(f) for f in findings], sys.stdout, indent=2)
        print()
    else:
        paint = painter(args.color, sys.stdout)
        rows = table([(f.state, f.what, printable(f.found)) for f in findings])
        for finding, row in zip(findings, rows, strict=True):
            print(row.replace(finding.state, paint(COLOURS[finding.state], finding.state), 1))
    return int(any(f.state == "failed" for f in findings))


def _guarded(check: Callable[[int | None], Iterator[Finding]], threads: int | None) -> Iterator[Finding]:
    """A check that breaks is a finding, so the others still run."""
    try:
        yield from check(threads)
    except QTransformersError as e:
        yield Finding(check.__name__.strip("_"), str(e), "failed")
    except Exception as e:
        yield Finding(check.__name__.strip("_"), f"{type(e).__name__}: {e}", "failed")


def _versions(threads: int | None) -> Iterator[Finding]:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    yield Finding("version", f"qtransformers {__version__}, {python}, {platform.system()} {platform.machine()}")


def _processor(threads: int | None) -> Iterator[Finding]:
    settings, cores = Settings.from_env(), machine.cores()
    chosen = threads or settings.threads or cores.usable
    yield Finding("processor", machine.cpu_name())
    state: Literal["ok", "warning"] = "warning" if chosen > cores.usable else "ok"
    yield Finding("cores", f"{cores.usable} usable of {cores.installed}, {chosen} threads", state)


def _memory(threads: int | None) -> Iterator[Finding]:
    from qtransformers.load.files import size_text

    found = machine.memory()
    if found.total is None or found.available is None:
        yield Finding("memory", "the system does not say", "warning")
    else:
        limit = f", limited to {size_text(found.limit)} by the cgroup" if found.limit else ""
        yield Finding("memory", f"{size_text(found.available)} available of {size_text(found.total)}{limit}")
    mode = machine.huge_pages()
    if mode == "never":
        text = (
            "never: weights are read more slowly. As root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        )
        yield Finding("huge pages", text, "warning")
    else:
        yield Finding("huge pages", mode or "none on this system")


def _gpus(threads: int | None) -> Iterator[Finding]:
    from qtransformers.load.devices import Devices
    from qtransformers.load.files import memory_text

    found = machine.gpus()
    reasons = Devices.of(found).reasons
    for i, gpu in enumerate(found):
        version = ".".join(map(str, gpu.capability))
        text = f"{gpu.name}, compute capability {version}, {memory_text(gpu.free)} free of {memory_text(gpu.total)}"
        reason = reasons.get(f"cuda:{i}")
        yield Finding(f"cuda:{i}", f"not used: {reason}" if reason else text, "warning" if reason else "ok")
    if not found:
        yield Finding("gpu", "none that CUDA shows")


def _extension(threads: int | None) -> Iterator[Finding]:
    from qtransformers.native import lib

    wanted, has = Settings.from_env().isa or "", ", ".join(lib.isas())
    try:
        yield Finding("extension", f"{Path(lib.__file__).name}, instruction set {lib.isa(wanted)} of {has}")
    except ConfigError as e:
        raise ConfigError(f"QTRANSFORMERS_ISA: {e} Correct or unset it.") from None


def _extras(threads: int | None) -> Iterator[Finding]:
    for extra, packages in EXTRAS.items():
        found = {p: _version(p) for p in packages}
        missing = [p for p, v in found.items() if v is None]
        if missing:
            yield Finding(f"extra {extra}", f"not installed: pip install 'qtransformers[{extra}]'")
        else:
            yield Finding(f"extra {extra}", ", ".join(f"{p} {v}" for p, v in found.items()))


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _hub(threads: int | None) -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE)
    n_models = sum(1 for _ in folder.glob("models--*")) if folder.is_dir() else 0
    offline = ", offline" if Settings.from_env().offline else ""
    yield Finding("hub cache", f"{folder}, {n_models} models{offline}")


def _answer(threads: int | None) -> Iterator[Finding]:
    from qtransformers.load.hub import resolve_model
    from qtransformers.model import Model

    started = time.perf_counter()
    with Model.load(gguf_path=resolve_model("demo"), threads=threads) as model:
        loaded = time.perf_counter() - started
        found = model.chat([{"role": "user", "content": QUESTION}], temperature=0)
    if found.text.strip() == ANSWER:
        yield Finding("demo model", f"loaded in {loaded:.2f} s; {QUESTION} {ANSWER}")
    else:
        text = f"{QUESTION} It answers {found.text!r}; expected {ANSWER!r}. Try QTRANSFORMERS_ISA=generic, and report this."
        yield Finding("demo model", text, "failed")


CHECKS = (_versions, _processor, _memory, _gpus, _extension, _extras, _hub, _answer)
