"""What each step of quantisation is worth where inputs have loud channels: signal to noise of a layer's outputs, synthetic.

usage: outliers.py [--rows 512] [--columns 1024] [--tokens 8192]

Weights are of a Student t distribution with 5 degrees of freedom; inputs are correlated, and one column in a hundred is 20 times
louder. Learned from some inputs, judged on as many others of the same kind.
"""

import argparse

import numpy as np
import results

from qtransformers.quantize import awq
from qtransformers.quantize.refine import refine
from qtransformers.quants import dequantize, quantize
from qtransformers.types import BY_NAME

TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q4_0")


def layer(rows: int, columns: int, tokens: int):
    """A weight, inputs to learn from, inputs to judge on."""
    rng = np.random.default_rng(0)
    w = rng.standard_t(5, (rows, columns)).astype(np.float32) / columns**0.5
    mix = (np.eye(columns) + rng.standard_normal((columns, columns)) / columns**0.5).astype(np.float32)
    loud = np.where(rng.random(columns) < 0.01, 20, 1).astype(np.float32)
    return w, *((rng.standard_normal((tokens, columns), np.float32) @ mix) * loud for _ in range(2))


def steps(w, x, type_):
    """(name, weight as its blocks decode) of each step."""
    h = (x.T @ x / len(x)).astype(np.float64)
    columns = np.ascontiguousarray(h.diagonal(), np.float32)

    def decoded(blocks):
        return dequantize(blocks, type_).reshape(w.shape)

    yield "rounded alone", decoded(quantize(w, type_))
    yield "importance of columns", decoded(quantize(w, type_, importance=columns))
    s = awq.search([awq.Candidate(w, type_)], w.shape[1], h, np.abs(x).mean(0))
    yield "folded", decoded(quantize(w * s, type_, importance=columns / s**2)) / s
    yield "compensated", decoded(refine(w, type_, h).blocks())
    yield "folded, compensated", decoded(refine(w * s, type_, h / np.outer(s, s)).blocks()) / s


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("rows", 512), ("columns", 1024), ("tokens", 8192)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    w, learned, judged = layer(args.rows, args.columns, args.tokens)
    truth = judged @ w.T
    found: dict[str, list[str]] = {}
    for name in TYPES:
        for step, values in steps(w, learned, BY_NAME[name]):
            noise = np.square(judged @ values.T - truth).mean() / np.square(truth).mean()
            found.setdefault(step, []).append(f"{-10 * np.log10(noise):.2f}")
    body = f"A layer of {args.rows} x {args.columns}, {args.tokens:,} inputs to learn from and as many others to judge on. Decibels.\n\n"
    rows = [[step, *values] for step, values in found.items()]
    results.publish(__file__, "Signal to noise of a layer with loud inputs", body + results.table(["", *TYPES], rows))


if __name__ == "__main__":
    main()
