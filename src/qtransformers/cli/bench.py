"""How fast a model runs here, beside what the machine can do at most.

pp: a prompt of so many tokens; tg: tokens one after another, with `@` so many before them; a batch of n: n texts at once.
Plain reads of the same weights and plain multiplications take turns with the measurements, for speeds of shared machines move.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from qtransformers.cli.flags import add_flags
from qtransformers.cli.terminal import progress, table
from qtransformers.settings import Settings, usable_cores

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
    add_flags(parser, "threads", "cache", "accuracy", "json")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print a row a measurement on stdout."""
    from qtransformers.cli.measure import measure
    from qtransformers.kernels.table import ACCURACY
    from qtransformers.load import load
    from qtransformers.load.hub import resolve_model

    threads = args.threads or Settings.from_env().threads or usable_cores()
    loaded = load(resolve_model(args.model), cache=args.cache or "f16", accuracy=args.accuracy or ACCURACY)
    with progress("measuring", args.color, "tests") as update:
        results = measure(loaded, threads, args.prompt, args.gen, args.batch, args.depth, update)
    if args.json:
        json.dump({"threads": threads, "results": [asdict(r) for r in results]}, sys.stdout, indent=2)
        print()
    else:
        rows = [("test", "tok/s", "GB/s", "of read", "GOPS", "of peak"), *map(_cells, results)]
        print("\n".join(table(rows, right=range(1, 6))))
    return 0


def _cells(r: Result) -> tuple[str, ...]:
    def cell(value: float | None, form: str) -> str:
        return "" if value is None else form.format(value)

    return (
        r.test, f"{r.tokens_per_second:.1f}", cell(r.weights_gb_per_second, "{:.1f}"), cell(r.of_plain_read, "{:.0%}"),
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
