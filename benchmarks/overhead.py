"""What a token costs beside the kernels: Python itself, and the way from Python into them and back.

usage: overhead.py [--shape llama-150m] [--recipe Q4_0] [--threads 2] [--rounds 3] [--folder DIR] [--dry]

Python alone is a forward in which every kernel is a function that returns what the kernel returned before. A crossing is the
norm of 16 values, whose arithmetic is a few nanoseconds. Both are compared with the whole token, in turns.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import models
import numpy as np
import results

from qtransformers.cache import Batch, PagedCache
from qtransformers.kernels import cpu
from qtransformers.kernels.cpu import Pool
from qtransformers.load import load

PAST, TIMES = 64, 200


@contextmanager
def kernels(instead: Any) -> Iterator[None]:
    """The extension's functions replaced by those of `instead` within the block."""
    real, cpu.lib = cpu.lib, instead
    try:
        yield
    finally:
        cpu.lib = real


class Recorder:
    """Calls the extension and keeps what it returns, by function."""

    def __init__(self) -> None:
        self.returned: dict[str, list[Any]] = defaultdict(list)
        self.real = cpu.lib

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            found = getattr(self.real, name)(*arguments)
            self.returned[name].append(found)
            return found

        return call


class Replay:
    """Gives the same again, in turn."""

    def __init__(self, recorder: Recorder) -> None:
        for name, found in recorder.returned.items():
            setattr(self, name, self._giving(found))

    @staticmethod
    def _giving(found: list[Any]) -> Callable[..., Any]:
        following = itertools.cycle(found).__next__
        return lambda *_: following()


def median_of(call: Callable[[], object]) -> float:
    """Microseconds."""
    spent = []
    for _ in range(TIMES):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="llama-150m", choices=models.SHAPES)
    parser.add_argument("--recipe", default="Q4_0")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--dry", action="store_true", help="print, and leave RESULTS.md as it is")
    args = parser.parse_args()
    model = load(models.at(args.folder, args.shape, args.recipe), context_length=1024)
    h = model.hparams
    cache = PagedCache.allocate(h.n_layers, h.n_kv_heads, h.head_dim, h.head_dim_v, 1024)
    pages = cache.take(4)

    def forward(tokens: Any, past: int) -> Any:
        return model.spec.forward(model.weights, h, Batch.single(tokens, past, pages), cache)

    x, ones = np.ones((1, 16), np.float32), np.ones(16, np.float32)
    rows = []
    with Pool(args.threads):
        forward(np.arange(3, 3 + PAST, dtype=np.int32), 0)
        recorder = Recorder()
        with kernels(recorder):
            forward([5], PAST)
        replay, calls = Replay(recorder), sum(map(len, recorder.returned.values()))
        for _ in range(args.rounds):
            token = median_of(lambda: forward([5], PAST))
            with kernels(replay):
                python = median_of(lambda: forward([5], PAST))
            crossing = median_of(lambda: [cpu.lib.rms_norm(x, ones, 1e-5) for _ in range(100)]) / 100
            rows.append((token, python, crossing))
    token, python, crossing = (statistics.median(column) for column in zip(*rows, strict=True))
    table = results.table(
        ["what", "us a token", "of it"],
        [
            ["a token", f"{token:.0f}", ""],
            [f"Python alone, {calls} calls", f"{python:.0f}", f"{python / token:.1%}"],
            [
                f"as many crossings, {crossing:.2f} us each",
                f"{crossing * calls:.0f}",
                f"{crossing * calls / token:.1%}",
            ],
        ],
    )
    body = f"{args.shape}-{args.recipe}, random weights, {args.threads} threads; medians of {args.rounds} rounds of {TIMES} in turns.\n\n{table}"
    if args.dry:
        print(body)
    else:
        results.publish(__file__, f"Python's share of a token: {args.shape}", body)


if __name__ == "__main__":
    main()
