"""Products of many tokens, type by type: GOPS and the share of the machine's int8 peak, which is measured in turns with them.

usage: products.py [--types Q4_K,...] [--shapes 2048x2048,...] [--tokens 16,64,256,512] [--threads 1,2] [--rounds 5] [--accuracy fast] [--isa avx2] [--dry]

Shapes are out x in. Weights lie in memory, not in a cache: each call takes the next of several copies, as layers follow each other.
"""

import argparse
import itertools
import statistics

import models
import numpy as np
import results

from qtransformers.kernels import cpu
from qtransformers.native import lib
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME, QuantType

TYPES = "Q4_0,Q8_0,Q2_K,Q3_K,Q4_K,Q5_K,Q6_K,IQ4_XS,IQ3_S,IQ2_XXS"
SHAPES = "2048x2048,8192x2048,2048x8192,512x2048"
BOUNDS = """What bounds a product with AVX-512: multiplications by scales and minima take slots of those of codes, which leaves them 97% (Q3_K, one scale a block),
88% (a scale for 32 values), 85% (Q2_K), 82% (Q4_K, Q5_K) or 79% (Q6_K, a scale for 16); the innermost loop is within 1% of that. Unpacking 256 values takes 12-20 cycles
(books of points: 35-70) beside 64 for each 16 tokens: at T = 16 that, with what memory and two threads' meetings cost in 0.1 to 0.5 ms, keeps every type below 70%, at
T = 64 some. Rounding x takes 1.5% where rows are 2048, and 6% where they are 512. Of no avail at T = 16: unpacking amid the multiplications of the rows before
(their slots are taken all the same), panels of 12 to 36 rows, weights fetched into L1, or a part with each tile (3% slower)."""
CACHES = 64 << 20  # bytes; more than the caches of one socket's share hold


def weights(kind: QuantType, out: int, columns: int, accuracy: str) -> list:
    """Copies of one random matrix, enough to leave no call weights that an earlier one brought into a cache."""
    n = out * columns // kind.block_size
    pool = models.blocks(kind, min(n, 1 << 14), np.random.default_rng(0))
    data = np.resize(pool, n * kind.block_bytes)
    copies = max(2, -(-CACHES // data.nbytes))
    return [cpu.bind(QTensor("w", kind, (out, columns), data.copy(), "random"), accuracy) for _ in range(copies)]


def measure(ws: list, tokens: int, threads: int, rounds: int, isa: str) -> tuple[float, float]:
    """Operations a second and their share of the peak, medians of the rounds."""
    out, columns = ws[0].shape
    x = np.random.default_rng(1).standard_normal((tokens, columns)).astype(np.float32)
    operations, turn = 2.0 * out * columns * tokens, itertools.cycle(ws)
    calls = max(1, round(2e9 / operations))
    speeds, shares = [], []
    with cpu.Pool(threads, isa):
        cpu.linear(x, next(turn))
        for _ in range(rounds):
            peak = lib.multiply_speed(30000)
            seconds = results.fastest({"": lambda: [cpu.linear(x, next(turn)) for _ in range(calls)]}, rounds=1)[""]
            peak = max(peak, lib.multiply_speed(30000))  # before and after: a core may be taken away meanwhile
            speeds.append(calls * operations / seconds)
            shares.append(speeds[-1] / peak)
    return statistics.median(speeds), statistics.median(shares)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--tokens", default="16,64,256,512")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--accuracy", default="fast")
    parser.add_argument("--isa", default="", help="instruction set (default: the best here)")
    parser.add_argument("--dry", action="store_true", help="print, and leave RESULTS.md as it is")
    args = parser.parse_args()
    counts, teams = ([int(n) for n in which.split(",")] for which in (args.tokens, args.threads))
    rows = []
    for name, shape in itertools.product(args.types.split(","), args.shapes.split(",")):
        out, columns = map(int, shape.split("x"))
        ws = weights(BY_NAME[name], out, columns, args.accuracy)
        found = [measure(ws, tokens, threads, args.rounds, args.isa) for threads in teams for tokens in counts]
        rows.append([name, shape, *(f"{speed / 1e9:.0f} ({share:.0%})" for speed, share in found)])
    head = ["type", "out x in", *(f"T {tokens}, {threads} thr." for threads in teams for tokens in counts)]
    table = results.table(head, rows)
    body = f"`linear`, accuracy={args.accuracy!r}, weights from memory: GOPS and share of the peak of int8 multiplications; medians of {args.rounds} rounds.\nOn a virtual machine a core may be away for a while: then two threads show the speed of one, and their share is of what was left.\n{BOUNDS}\n\n"
    if args.dry:
        print(table)
    else:
        results.publish(
            __file__, f"Products of many tokens, accuracy={args.accuracy}{args.isa and ', ' + args.isa}", body + table
        )


if __name__ == "__main__":
    main()
