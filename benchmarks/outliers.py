"""What each step of quantisation is worth where inputs have loud channels: signal to noise of a layer's outputs, synthetic.

usage: outliers.py [--rows 128] [--columns 1024] [--tokens 4096] [--library .../libggml-base.so]

Weights are of a Student t distribution with 5 degrees of freedom; inputs are correlated, and one column in a hundred is louder, by
another factor in each layer. Learned from some inputs, judged on as many others of the same kind. With the peer's library, its own
encoders with the same importance stand beside ours.
"""

import argparse

import numpy as np
import results
from quantise import Peer

from qtransformers.machine import usable_cores
from qtransformers.quantize import awq
from qtransformers.quantize.budget import Choice, allot
from qtransformers.quantize.refine import refine
from qtransformers.quants import dequantize, quantize
from qtransformers.types import BY_NAME

TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q4_0")
CHOICES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")  # of a budget
LOUD = (1, 5, 20, 60)  # how much louder some columns of each layer are
BEST = "folded, compensated"


def layer(rows: int, columns: int, tokens: int, factor: int):
    """A weight, inputs to learn from, inputs to judge on."""
    rng = np.random.default_rng(factor)
    w = rng.standard_t(5, (rows, columns)).astype(np.float32) / columns**0.5
    mix = (np.eye(columns) + rng.standard_normal((columns, columns)) / columns**0.5).astype(np.float32)
    loud = np.where(rng.random(columns) < 0.01, factor, 1).astype(np.float32)
    return w, *((rng.standard_normal((tokens, columns), np.float32) @ mix) * loud for _ in range(2))


def steps(w, x, type_, peer):
    """(name, weight as its blocks decode) of each step."""
    h = (x.T @ x / len(x)).astype(np.float64)
    columns = np.ascontiguousarray(h.diagonal(), np.float32)

    def decoded(blocks):
        return dequantize(blocks, type_).reshape(w.shape)

    if peer:
        blocks = np.empty(type_.row_bytes(w.size), np.uint8)
        for step, weights in (("libggml, rounded alone", None), ("libggml, importance of columns", columns)):
            peer.quantize(w, type_, blocks, weights)
            yield step, decoded(blocks)
    yield "rounded alone", decoded(quantize(w, type_))
    yield "importance of columns", decoded(quantize(w, type_, importance=columns))
    s = awq.search([awq.Candidate(w, type_)], w.shape[1], h, np.abs(x).mean(0))
    yield "folded", decoded(quantize(w * s, type_, importance=columns / s**2)) / s
    yield "compensated", decoded(refine(w, type_, h).blocks())
    yield BEST, decoded(refine(w * s, type_, h / np.outer(s, s)).blocks()) / s


def noise(values, w, x) -> float:
    """Power of the error of a layer's outputs, of their own."""
    truth = x @ w.T
    return float(np.square(x @ values.T - truth).mean() / np.square(truth).mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("rows", 128), ("columns", 1024), ("tokens", 4096)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--library")
    args = parser.parse_args()
    peer = Peer(args.library, usable_cores()) if args.library else None
    layers = [layer(args.rows, args.columns, args.tokens, factor) for factor in LOUD]
    lost: dict[tuple[str, str], list[float]] = {}  # by step and type, of each layer
    guessed: dict[str, list[float]] = {}  # by type, of each layer, as what was learned from says
    for name in dict.fromkeys((*TYPES, *CHOICES)):
        for w, learned, judged in layers:
            for step, values in steps(w, learned, BY_NAME[name], peer if name in TYPES else None):
                lost.setdefault((step, name), []).append(noise(values, w, judged))
            guessed.setdefault(name, []).append(noise(values, w, learned))
    size = {name: BY_NAME[name].row_bytes(args.columns) * args.rows for name in guessed}
    choices = {str(i): [Choice(BY_NAME[n], size[n], guessed[n][i]) for n in CHOICES] for i in range(len(layers))}
    for name in TYPES:
        types = allot(choices, size[name] * len(layers))
        lost["the same by budget", name] = [lost[BEST, types[str(i)].name][i] for i in range(len(layers))]
    head = f"Four layers of {args.rows} x {args.columns}, some of whose inputs are {', '.join(map(str, LOUD))} times louder, {args.tokens:,} inputs to learn from and as many others to judge on. Decibels of the mean over the layers; the last row shares out the bytes of the column's type.\n\n"
    rows = [
        [step, *(f"{-10 * np.log10(np.mean(lost[step, name])):.2f}" for name in TYPES)]
        for step in dict.fromkeys(step for step, _ in lost)
    ]
    results.publish(__file__, "Signal to noise of a layer with loud inputs", head + results.table(["", *TYPES], rows))


if __name__ == "__main__":
    main()
