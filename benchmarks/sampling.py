"""Choosing a token among 151,936: milliseconds with one thread and with all of them, and logprobs.

Usage: PYTHONPATH=src python benchmarks/sampling.py
"""

import time

import numpy as np
import results

from qtransformers.kernels import cpu
from qtransformers.machine import usable_cores
from qtransformers.sampling import Breaks, Sampler, Sampling, logprobs

N_TOKENS, N_HISTORY = 151_936, 8192
CUTS = {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8}
PENALTIES = {"repetition_penalty": 1.1, "frequency_penalty": 0.2, "presence_penalty": 0.1}
SETTINGS = {
    "greedy": {"temperature": 0.0}, "temperature 0.7": {"temperature": 0.7}, "top-k 40": {"top_k": 40}, "top-p 0.95, temperature 0.7": {"top_p": 0.95, "temperature": 0.7},
    "min-p 0.05": {"min_p": 0.05}, "typical 0.95": {"typical_p": 0.95}, "top-n-sigma 1": {"top_n_sigma": 1.0}, "XTC 0.5, 0.1": {"xtc_probability": 0.5},
    "dynamic temperature": {"dynatemp_range": 0.5}, "mirostat 5": {"mirostat_tau": 5.0}, "top-k 40, top-p 0.95, min-p 0.05, temperature 0.8": CUTS,
    "the three penalties": PENALTIES, "DRY": {"dry_multiplier": 0.8}, "penalties, DRY and the four cuts": CUTS | PENALTIES | {"dry_multiplier": 0.8},
    "4,000 biases, 4,000 bans": {"logit_bias": dict.fromkeys(range(4000), 1.0), "banned_tokens": range(4000, 8000)},
}  # fmt: skip
SPREADS = {"flat": 0.3, "usual": 3.0, "peaked": 8.0}  # standard deviation of the logits


def milliseconds(f, x, n=60):
    """The median; f may change the copy of x that it is given."""
    times = []
    for _ in range(n):
        row = x.copy()
        start = time.perf_counter()
        f(row)
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def main() -> None:
    rng = np.random.default_rng(0)
    history = rng.integers(0, 3000, N_HISTORY).astype(np.int32)
    breaks = Breaks(rng.random(N_TOKENS) < 0.01)
    calls = {name: Sampler(Sampling(seed=0, **given), N_TOKENS, breaks) for name, given in SETTINGS.items()}
    calls = {name: lambda x, s=s: s(x, history, 100) for name, s in calls.items()}
    calls["logprobs, 20 of the likeliest"] = lambda x: logprobs(x, 7, 20)
    rows = []
    for name, call in calls.items():
        row = [name]
        for spread in SPREADS.values():
            x = (rng.standard_normal(N_TOKENS) * spread).astype(np.float32)
            for threads in (1, usable_cores()):
                with cpu.Pool(threads):
                    row.append(f"{milliseconds(call, x):.3f}")
        rows.append(row)
    head = ["settings", *(f"{name}, {of}" for name in SPREADS for of in ("1 thread", usable_cores()))]
    said = f"Milliseconds a token; logits are normal with a deviation of {', '.join(f'{v:g} ({k})' for k, v in SPREADS.items())}; penalties look at {N_HISTORY:,} tokens."
    results.publish(__file__, "Sampling", said + "\n\n" + results.table(head, rows))


if __name__ == "__main__":
    main()
