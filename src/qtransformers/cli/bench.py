"""How fast a model runs here, beside what the machine can do at most.

pp: a prompt of so many tokens; tg: tokens one after another, with `@` so many before them; a batch of n: n texts at once.
GB/s counts weights, keys and values that each step reads. Plain reads of as many bytes and plain multiplications take turns
with the measurements, for speeds of shared machines move.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from qtransformers import machine
from qtransformers.cli.flags import add_flags
from qtransformers.cli.terminal import note, printable, progress, table
from qtransformers.machine import usable_cores
from qtransformers.settings import Settings

if TYPE_CHECKING:
    from qtransformers.cli.measure import Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL and what to measure."""
    parser.add_argument("model", metavar="MODEL", help="a GGUF file or folder, `demo`, or user/repo:QUANT from the Hub")
    parser.add_argument(
        "-p",
        "--prompt",
        metavar="N",
        type=_counts,
        default=(256,),
        help="prompt lengths, comma-separated (default: 256)",
    )
    parser.add_argument("-n", "--gen", metavar="N", type=_count, default=32, help="tokens to generate (default: 32)")
    parser.add_argument(
        "-b", "--batch", metavar="N", type=_counts, default=(1, 2, 4, 8), help="texts at once (default: 1,2,4,8)"
    )
    parser.add_argument(
        "-d", "--depth", metavar="N", type=_depths, default=(0,), help="tokens before the generated ones (default: 0)"
    )
    add_flags(parser, "threads", "cache", "accuracy", "placement", "json")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print a row a measurement on stdout, then what it was measured on."""
    from qtransformers.cli.measure import measure
    from qtransformers.kernels.table import ACCURACY
    from qtransformers.load import load
    from qtransformers.load.hub import resolve_model
    from qtransformers.native import lib

    settings = Settings.from_env()
    threads = args.threads or settings.threads or usable_cores()
    cache, accuracy = args.cache or "f16", args.accuracy or ACCURACY
    placement = args.placement or "cpu"
    path = resolve_model(args.model)
    with progress("sending weights to the GPU", args.color) as sent:
        loaded = load(
            path,
            cache=cache,
            accuracy=accuracy,
            placement=placement,
            progress=lambda done, total, speed: sent(done, total),
        )
    plan = loaded.plan
    if loaded.spec.kind == "encoder":
        note(f"{plan.file} is an encoder, which generates nothing: only prompts are measured.", color=args.color)
    with progress("measuring", args.color, "tests") as update:
        results = measure(loaded, threads, args.prompt, args.gen, args.batch, args.depth, update)
    about = {
        "model": plan.file, "architecture": plan.architecture, "weights_bytes": plan.weights_bytes, "cache": cache, "accuracy": accuracy,
        "cpu": machine.cpu_name(), "isa": lib.isa(settings.isa or ""), "threads": threads, "devices": plan.devices,
    }  # fmt: skip
    if args.json:
        json.dump(about | {"results": [asdict(r) for r in results]}, sys.stdout, indent=2)
        print()
    else:
        rows = [("test", "tok/s", "GB/s", "of read", "GOPS", "of peak"), *map(_cells, results)]
        print("\n".join(table(rows, right=range(1, 6))))
        print(printable("  " + _about(about, results)))
    return 0


def _about(about: dict[str, Any], results: Sequence[Result]) -> str:
    """A line on the model, the machine and its limits."""
    reads = [r.plain_read_gb_per_second for r in results if r.plain_read_gb_per_second is not None]
    peaks = [r.peak_gops for r in results if r.peak_gops is not None]
    limits = [f"plain reads {median(reads):.1f} GB/s"] if reads else []
    limits += [f"peak {median(peaks):.0f} GOPS"] if peaks else []
    model = (
        f"{Path(about['model']).name} ({about['architecture']}), cache {about['cache']}, accuracy {about['accuracy']}"
    )
    return f"{model}; {about['cpu']}, {about['isa']}, {about['threads']} threads{''.join(f', {device}' for device in about['devices'])}; {', '.join(limits)}"


def _cells(r: Result) -> tuple[str, ...]:
    def cell(value: float | None, form: str) -> str:
        return "" if value is None else form.format(value)

    return (
        r.test, f"{r.tokens_per_second:.1f}", cell(r.gb_per_second, "{:.1f}"), cell(r.of_plain_read, "{:.0%}"),
        cell(r.gops, "{:.0f}"), cell(r.of_peak, "{:.0%}"),
    )  # fmt: skip


def _count(text: str, minimum: int = 1) -> int:
    if not text.isascii() or not text.isdigit() or not minimum <= int(text) <= 1 << 20:
        raise argparse.ArgumentTypeError(f"{text!r}; expected whole numbers from {minimum} to {1 << 20}")
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in text.split(","))


def _depths(text: str) -> tuple[int, ...]:
    return tuple(_count(part, 0) for part in text.split(","))
