"""Products of few tokens beside a plain read of the same bytes: what decoding, speculation and a few users live on.

usage: decode_products.py [--types Q4_K,...] [--threads N] [--shapes 8192x2048,2048x8192] [--rounds 5] [--accuracy fast] [--dry]

Matrices of one type fill 512 MB and are multiplied in turn, so that weights come from memory; plain reads of the same bytes
come in between, since memory has slow and fast hours. GB/s are bytes of weights; a ratio of tokens is time over that of one.
"""

import argparse
import itertools
import mmap
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import results

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from blocks import random_blocks
from qtransformers.kernels import cpu
from qtransformers.kernels.table import ACCURACY, why_not
from qtransformers.machine import cores
from qtransformers.native import lib
from qtransformers.tensor import QTensor
from qtransformers.types import TYPES, QuantType

TOTAL, TOKENS = 512 << 20, (1, 2, 4, 8)
EACH = 24 << 20  # bytes that one timing reads


def room() -> np.ndarray:
    """Memory in huge pages, as a model's file is mapped."""
    memory = mmap.mmap(-1, TOTAL)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def fill(memory: np.ndarray, kind: QuantType) -> int:
    """The same random blocks again and again, to the last whole one; how many bytes."""
    pool = random_blocks(kind, 1 << 14)
    whole = memory.size // pool.size
    memory[: whole * pool.size].reshape(whole, pool.size)[:] = pool
    return whole * pool.size


def measure(kind: QuantType, out: int, columns: int, memory: np.ndarray, args: argparse.Namespace) -> list[str]:
    """A row of the table: medians over the rounds, ratios round by round."""
    nbytes = out * columns // kind.block_size * kind.block_bytes
    parts = [memory[at : at + nbytes] for at in range(0, memory.size - nbytes + 1, nbytes)]
    weights = [cpu.bind(QTensor("w", kind, (out, columns), part, "-"), args.accuracy) for part in parts]
    x = np.random.default_rng(0).standard_normal((max(TOKENS), columns)).astype(np.float32)
    turn, calls = itertools.cycle(weights), max(1, EACH // nbytes)

    def timed(call: Callable[[Any], object]) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call(next(turn))
        return time.perf_counter() - start

    def product(tokens: int) -> float:
        some = x[:tokens].copy()
        return timed(lambda w: cpu.linear(some, w))

    def read() -> float:
        return timed(lambda w: lib.read_speed(w.tensor.data))

    rows = []
    with cpu.Pool(args.threads):
        for i in range(args.rounds + 1):
            before, one, *more, after = [read(), *map(product, TOKENS), read()]
            plain = (before + after) / 2
            if i:  # the first warms up
                done = calls * nbytes / 1e9
                rows.append([done / one, done / plain, plain / one, *(t / one for t in more)])
    m = [statistics.median(column) for column in zip(*rows, strict=True)]
    return [kind.name, f"{out} x {columns}", f"{m[0]:.1f}", f"{m[1]:.1f}", f"{m[2]:.0%}", *(f"{r:.2f}" for r in m[3:])]


def main() -> None:
    usable = [t for t in TYPES.values() if why_not("linear", t) is None]
    parser = argparse.ArgumentParser()
    parser.add_argument("--types", default=",".join(t.name for t in usable if t.name != "F64"))
    parser.add_argument("--shapes", default="8192x2048,2048x8192")
    parser.add_argument("--threads", type=int, default=cores().usable)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--accuracy", default=ACCURACY)
    parser.add_argument("--dry", action="store_true", help="print, and leave RESULTS.md as it is")
    args = parser.parse_args()
    memory, table = room(), []
    for kind in (t for t in usable if t.name in args.types.split(",")):
        filled = memory[: fill(memory, kind)]
        for out, columns in (map(int, shape.split("x")) for shape in args.shapes.split(",")):
            table.append(measure(kind, out, columns, filled, args))
            print(table[-1], file=sys.stderr, flush=True)
    head = ["type", "out x in", "GB/s", "plain read", "of it", *(f"T = {t}" for t in TOKENS[1:])]
    body = (
        f"{args.threads} threads, accuracy={args.accuracy!r}, weights rotate through {TOTAL >> 20} MB; medians of {args.rounds} rounds in turns. GB/s of one token; "
        "T = n is the time for n tokens over that for one.\n\n" + results.table(head, table)
    )
    if args.dry:
        print(body)
    else:
        results.publish(__file__, f"Products of few tokens, accuracy={args.accuracy}", body)


if __name__ == "__main__":
    main()
