"""Choosing a token among 151,936: milliseconds with one thread, with all of them, and in NumPy.

Usage: PYTHONPATH=src python benchmarks/sampling.py
"""

import time

import numpy as np
import results

from qtransformers.kernels import cpu
from qtransformers.sampling import Sampling
from qtransformers.sampling.definition import draw
from qtransformers.settings import usable_cores

N_TOKENS = 151_936
SETTINGS = {
    "greedy": {"temperature": 0.0}, "temperature 0.7": {"temperature": 0.7}, "top-k 40": {"top_k": 40},
    "top-p 0.95": {"top_p": 0.95}, "top-p 0.95, temperature 0.7": {"top_p": 0.95, "temperature": 0.7},
    "min-p 0.05": {"min_p": 0.05}, "top-k 40, top-p 0.95, min-p 0.05, temperature 0.8": {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8},
}  # fmt: skip
SPREADS = {"flat": 0.3, "usual": 3.0, "peaked": 8.0}  # standard deviation of the logits


def milliseconds(f, n):
    times = []
    for u in np.random.default_rng(0).random(n):
        start = time.perf_counter()
        f(float(u))
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def main() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for name, given in SETTINGS.items():
        s = Sampling(**given)
        row = [name]
        for spread in SPREADS.values():
            x = (rng.standard_normal(N_TOKENS) * spread).astype(np.float32)
            for threads in (1, usable_cores()):
                with cpu.Pool(threads):
                    ours = milliseconds(
                        lambda u, x=x, s=s: cpu.sample(x, s.temperature, s.top_k, s.top_p, s.min_p, u), 60
                    )
                row.append(f"{ours:.3f}")
            row.append(f"{milliseconds(lambda u, x=x, s=s: draw(x, s, u), 5):.1f}")
        rows.append(row)
    head = ["settings", *(f"{name}{of}" for name in SPREADS for of in (", 1 thread", f", {usable_cores()}", ", NumPy"))]
    body = f"Milliseconds a token; logits are normal with a deviation of {', '.join(f'{v:g} ({k})' for k, v in SPREADS.items())}.\n\n"
    results.publish(__file__, "Sampling", body + results.table(head, rows))


if __name__ == "__main__":
    main()
