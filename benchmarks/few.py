"""Whole models with 1 to 16 tokens in one forward, against llama.cpp on the same file in the same run, in turns.

usage: few.py [--shape llama-1b] [--recipes Q4_0,Q4_K_M,...] [--tokens 1,2,4,8,16] [--rounds 5] [--threads 2] [--folder DIR] [--peer-python PYTHON] [--dry]

That is what speculation and a few users at once are made of. The tokens follow each other at the start of a context, and
logits are wanted of the last. A plain read of the weights comes in between, since memory has slow and fast hours.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import cpu
import models
import results


def measure(path: Path, recipe: str, args: argparse.Namespace) -> list[str]:
    """A row of the table: medians over the rounds, ratios round by round."""
    counts = [int(n) for n in args.tokens.split(",")]
    ours = cpu.Worker(sys.executable, cpu.OURS, path, args.threads, args.accuracy)
    theirs = cpu.Worker(args.peer_python, cpu.THEIRS, path, args.threads)
    rows = []
    for _ in range(args.rounds):
        read, one, row = ours("read"), 0.0, []
        for n in counts:
            a, b = (sum(engine("pp", n) for _ in range(args.repeats)) / args.repeats for engine in (ours, theirs))
            one = one or a
            row += [a, a / one, b / a]
        rows.append([ours.about["bytes"] / read / 1e9, *row])
    ours.stop()
    theirs.stop()
    m = [statistics.median(column) for column in zip(*rows, strict=True)]
    cells = [f"{m[1] * 1e3:.1f}", f"{ours.about['bytes'] / m[1] / 1e9 / m[0]:.0%}"]
    for i in range(len(counts)):
        cells += [f"{m[3 * i + 2]:.2f}"] * (i > 0) + [f"{m[3 * i + 3]:.2f}"]
    return [recipe, f"{m[0]:.0f}", *cells]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="llama-1b", choices=models.SHAPES)
    parser.add_argument("--recipes", default="Q4_0,Q4_K_M,IQ4_XS,MXFP4")
    parser.add_argument("--tokens", default="1,2,4,8,16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--accuracy", default="fast")
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--dry", action="store_true", help="print, and leave RESULTS.md as it is")
    args = parser.parse_args()
    table = []
    for recipe in args.recipes.split(","):
        path = models.at(args.folder, args.shape, recipe)
        table.append(measure(path, recipe, args))
        print(table[-1], file=sys.stderr, flush=True)
    first, *more = args.tokens.split(",")
    head = ["type", "plain read GB/s", f"T = {first}, ms", "of plain read", "llama.cpp takes"]
    for n in more:
        head += [f"T = {n}", "llama.cpp takes"]
    body = (
        f"{args.shape}, random weights, {args.threads} threads, accuracy={args.accuracy!r}; medians of {args.rounds} rounds in turns. T = n is our time for n tokens over that\n"
        'for the first column\'s; "llama.cpp takes" is its time for as many over ours.\n\n' + results.table(head, table)
    )
    if args.dry:
        print(body)
    else:
        results.publish(__file__, f"Whole models with few tokens against llama.cpp: {args.shape}", body)


if __name__ == "__main__":
    main()
