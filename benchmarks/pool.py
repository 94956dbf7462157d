"""The pool of threads: what it costs idle, how fast it wakes, what a busy neighbour costs it, and that it stays where it is put.

usage: pool.py [--threads N] [--print-only]

A neighbour that never rests, bound to one of n cores, may cost n / (n - 1/2) of the time, for the system gives it half of that core;
threads with fixed shares of the work would wait for the slowest, twice as long.
"""

import argparse
import contextlib
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import results

from qtransformers.kernels import cpu
from qtransformers.machine import usable_cores
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from blocks import random_blocks

KIND = BY_NAME["Q4_0"]


def product(rows, columns, tokens):
    """A call that multiplies `tokens` by a matrix."""
    w = cpu.bind(QTensor("w", KIND, (rows, columns), random_blocks(KIND, rows * columns // 32)), "fast")
    x = np.random.default_rng(0).standard_normal((tokens, columns), np.float32)
    return lambda: cpu.linear(x, w)


def seconds(call):
    """Of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def mean(call, least=1.0):
    """Mean seconds of calls that take `least` seconds together: a median would not see who was made to wait, or only them."""
    call()
    start, n = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < least:
        call()
        n += 1
    return passed / n


def idle(threads, call):
    """Milliseconds of CPU time in the first hundredth of a second after a call, and in the second after that."""
    with cpu.Pool(threads):
        call()
        found = []
        for pause in (0.01, 1.0):
            before = time.process_time()
            time.sleep(pause)
            found.append((time.process_time() - before) * 1e3)
    return found


def waking(threads, call, pause):
    """Median microseconds of a small call that comes `pause` seconds after the last."""
    with cpu.Pool(threads):
        found = []
        for _ in range(100):
            time.sleep(pause) if pause else None
            found.append(seconds(call))
    return statistics.median(found) * 1e6


def spin(core):
    """Keep a core busy for ever."""
    os.sched_setaffinity(0, {core})
    while True:
        pass


@contextlib.contextmanager
def neighbour(core):
    """A process that never rests, on one core."""
    process = multiprocessing.get_context("spawn").Process(target=spin, args=(core,), daemon=True)
    process.start()
    time.sleep(0.5)
    try:
        yield
    finally:
        process.kill()
        process.join()


@contextlib.contextmanager
def bound(cores):
    """This process, and the threads it starts, on some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def rows(threads, calls):
    """Lines of the table: what, figure, and what it may be."""
    cores = sorted(os.sched_getaffinity(0))
    small = calls["small"]
    spun, slept = idle(threads, small)
    yield (
        f"idle, CPU time of {threads} threads in the first 10 ms",
        f"{spun:.2f} ms",
        f"{0.2 * (threads - 1):.1f} ms of spinning",
    )
    yield "and in the second after", f"{slept:.2f} ms", "0"
    for pause in (0, 0.0001, 0.01):
        alone, shared = waking(1, small, pause), waking(threads, small, pause)
        yield f"a small call {pause * 1e3:g} ms after the last", f"{shared:.0f} us", f"{alone:.0f} us with one thread"
    for name in ("prompt", "token"):
        call = calls[name]
        with cpu.Pool(threads):
            free = mean(call)
            with neighbour(cores[-1]):
                busy = mean(call)
        with cpu.Pool(1):
            one = mean(call)
        yield f"{name}: {threads} threads", f"{free * 1e3:.2f} ms", f"{one * 1e3:.2f} ms with one"
        share = len(cores) / (len(cores) - 0.5) if threads >= len(cores) else 1
        yield (
            f"{name}: with a busy neighbour on one core",
            f"{busy / free:.2f}x",
            f"{share:.2f}x; 2x with fixed shares",
        )
    with bound(cores[:1]):
        found = usable_cores()
        with cpu.Pool(threads):
            crowded = mean(calls["prompt"])
        with cpu.Pool(1):
            one = mean(calls["prompt"])
    yield "bound to one core: threads by default", str(found), "1"
    yield f"bound to one core: {threads} threads against one", f"{crowded / one:.2f}x", "1x"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--print-only", action="store_true")
    args = parser.parse_args()
    calls = {"small": product(256, 2048, 4), "prompt": product(2048, 2048, 256), "token": product(8192, 4096, 1)}
    body = (
        f"Products with Q4_0, {args.threads} threads: small 256 x 2,048 with 4 tokens, prompt 2,048 x 2,048 with 256, token 8,192 x 4,096 with 1.\n"
        "A thread that loses its core amid a chunk is waited for until its turn comes again, milliseconds later: operations shorter than that pay more than the share.\n\n"
        + results.table(("what", "found", "expected"), list(rows(args.threads, calls)))
    )
    print(body) if args.print_only else results.publish(__file__, "The pool of threads", body)
