"""What the benchmarks share: measuring in turns, and a section for each script in RESULTS.md."""

import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from qtransformers.machine import cores, cpu_name

RESULTS = Path(__file__).parent / "RESULTS.md"


def fastest(
    calls: Mapping[str, Callable[[], object]], rounds: int = 5, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Seconds of the fastest of `rounds` runs of each call; the calls take turns, so that all see the same machine.

    For calls of one thread, `time.thread_time` leaves out what other processes take.
    """
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            start = clock()
            call()
            best[name] = min(best[name], clock() - start)
    return best


def machine() -> str:
    """The machine in a line, with how busy it was."""
    found = cores()
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{cpu_name()}, {found.usable} of {found.installed} cores usable{load}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, the first column left, numbers right."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def command(script: str) -> str:
    """How the script was called, without the folders of this machine."""
    words, arguments = [Path(script).name], iter(sys.argv[1:])
    for word in arguments:
        value = next(arguments, "") if word.startswith("--") and "=" not in word else ""
        if "/" not in word + value:
            words += [word, value] if value else [word]
    return " ".join(words)


def publish(
    script: str, title: str, body: str, path: Path = RESULTS, how: str | None = None, instead: str | None = None
) -> None:  # fmt: skip
    """Print a section and put it in RESULTS.md, in place of the one of the same title; sections stand by script, then title.

    `how` is the command that measures it, where that is not a script of benchmarks/; `instead` is the title of a section that goes.
    """
    how = how or f"python benchmarks/{command(script)}"
    section = f"## {title}\n<!-- {Path(script).name} -->\n{time.strftime('%Y-%m-%d')}, {machine()}. `{how}`\n\n{body.strip()}\n"
    print(section)
    old = (
        path.read_text(encoding="utf-8")
        if path.exists()
        else "# Results\nEach section is written by the script it names.\n"
    )
    head, *sections = re.split(r"^(?=## )", old, flags=re.MULTILINE)
    kept = {}
    for text in [*sections, section]:
        named, made_by = re.match(r"## (.*)\n<!-- (\S+) -->", text).groups()
        kept[made_by, named] = text.rstrip() + "\n"
    if instead is not None:
        kept.pop((Path(script).name, instead), None)
    path.write_text(head.rstrip() + "\n\n" + "\n".join(kept[key] for key in sorted(kept)), encoding="utf-8")
