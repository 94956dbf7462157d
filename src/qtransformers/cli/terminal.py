"""What reaches the terminal: plain text only, colour where wanted, progress where it helps. All but answers goes to stderr."""

from __future__ import annotations

import re
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any, TextIO

from qtransformers.settings import Settings

# C0 without tab and newline, DEL, C1, and the marks that reorder what follows: a file must not steer the terminal.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
MOST_WARNINGS = 1000  # that a server remembers, whatever requests hold
STYLES = {"dim": "2", "bold": "1", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}

COLOURS = {"fits": "green", "tight": "yellow", "does not fit": "red", "unknown": "yellow"}  # of verdicts


def count(n: int) -> str:
    """Parameters for people: `11.9 billion`."""
    return f"{n / 1e9:.3g} billion" if n >= 1e9 else f"{n / 1e6:.3g} million"


def printable(text: str) -> str:
    """`text` with control characters spelled out, tabs and newlines kept."""
    return _CONTROL.sub(lambda m: f"\\x{ord(m[0]):02x}" if ord(m[0]) < 256 else f"\\u{ord(m[0]):04x}", text)


def wants_color(choice: str, stream: TextIO) -> bool:
    """Whether to colour what goes to `stream`, for `--color auto|on|off`."""
    return choice == "on" or (choice == "auto" and stream.isatty() and not Settings.from_env().no_color)


def painter(choice: str, stream: TextIO) -> Callable[[str, str], str]:
    """`paint(style, text)`, which colours, or leaves the text alone."""
    if not wants_color(choice, stream):
        return lambda style, text: text
    return lambda style, text: f"\x1b[{STYLES[style]}m{text}\x1b[0m"


def note(text: str, style: str = "", color: str = "auto") -> None:
    """A line on stderr, its control characters spelled out."""
    text = printable(text)
    print(painter(color, sys.stderr)(style, text) if style else text, file=sys.stderr, flush=True)


@contextmanager
def progress(title: str, color: str = "auto", unit: str = "bytes") -> Iterator[Callable[[int, int], None]]:
    """Yield `update(done, total)`; draws a bar on stderr once a second has passed, and only on a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    started, bar = time.monotonic(), None

    def update(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            if time.monotonic() - started < 1:
                return
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )

            console = Console(stderr=True, no_color=not wants_color(color, sys.stderr))
            in_bytes = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
            counts = in_bytes if unit == "bytes" else (MofNCompleteColumn(), TextColumn(unit))
            bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                *counts,
                console=console,
                transient=True,
            )
            bar.start()
            bar.add_task(title, total=total)
        bar.update(bar.task_ids[0], completed=done, total=total)

    try:
        yield update
    finally:
        if bar is not None:
            bar.stop()


@contextmanager
def watched(
    title: str, look: Callable[[], tuple[int, int]], color: str = "auto", unit: str = "tokens"
) -> Iterator[None]:
    """A bar beside work that does not report by itself: `look()` gives (done, total) whenever it is asked."""
    if not sys.stderr.isatty():
        yield
        return
    done = Event()

    def watch() -> None:
        with progress(title, color, unit) as update:
            while not done.wait(0.1):
                update(*look())

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def plain_warnings(color: str = "auto") -> Iterator[set[str]]:
    """Warnings as lines on stderr, each once; yields those said so far."""
    said: set[str] = set()

    def show(message: Warning | str, *where: Any, **more: Any) -> None:
        if str(message) not in said and len(said) < MOST_WARNINGS:
            said.add(str(message))
            note(f"warning: {message}", "yellow", color)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        yield said


def table(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Rows as lines with aligned columns, those in `right` to the right; the last is as wide as it is."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    lines = []
    for row in rows:
        cells = [
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines
