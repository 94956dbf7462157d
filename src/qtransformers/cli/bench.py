"""How fast a model runs here, beside what the machine can do at most.

pp: a prompt of so many tokens; tg: tokens one after another, with `@` so many before them; a batch of n: n texts at once.
Plain reads of the same weights and plain multiplications take turns with the measurements, for speeds of shared machines move.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qtransformers.cache import PAGE_TOKENS, Batch, PagedCache
from qtransformers.cli.flags import add_flags
from qtransformers.cli.terminal import progress, table
from qtransformers.errors import ConfigError
from qtransformers.kernels.table import ACCURACY
from qtransformers.load import Loaded, load
from qtransformers.settings import Settings, usable_cores

ROUNDS = 3


@dataclass(frozen=True)
class Result:
    """One measurement: medians over its rounds."""

    test: str
    tokens_per_second: float
    weights_gb_per_second: float | None  # of decoding: the weights that every step reads
    of_plain_read: float | None  # that, over a plain read of the same weights in the same rounds
    gops: float | None  # of prompts: multiplications and additions with weights
    of_peak: float | None  # that, over the machine's peak in the same rounds


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
    from qtransformers.load.hub import resolve_model

    bench = Bench(args)
    with progress("measuring", args.color, "tests") as update:
        results = bench.results(resolve_model(args.model), update)
    if args.json:
        json.dump({"threads": bench.threads, "results": [asdict(r) for r in results]}, sys.stdout, indent=2)
        print()
    else:
        rows = [("test", "tok/s", "GB/s", "of read", "GOPS", "of peak"), *map(_cells, results)]
        print("\n".join(table(rows, right=range(1, 6))))
    return 0


class Bench:
    """The measurements that the arguments ask for."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.threads: int = args.threads or Settings.from_env().threads or usable_cores()

    def results(self, path: Any, update: Callable[[int, int], None]) -> list[Result]:
        """Load the model and measure; ConfigError where its context cannot hold what is asked for."""
        from qtransformers.kernels.cpu import Pool

        args = self.args
        loaded = load(path, cache=args.cache or "f16", accuracy=args.accuracy or ACCURACY)
        longest = max(*args.prompt, max(args.depth) + args.gen + 1)
        if longest > loaded.plan.context_length:
            raise ConfigError(
                f"{longest} tokens are asked for; the context of the model holds {loaded.plan.context_length}."
            )
        h = loaded.hparams
        texts = max(args.batch)
        pages = -(-longest // PAGE_TOKENS)
        cache = PagedCache.allocate(
            h.n_layers, h.n_kv_heads, h.head_dim, h.head_dim_v, texts * pages * PAGE_TOKENS, loaded.plan.cache
        )
        tables = [cache.take(pages) for _ in range(texts)]
        jobs: list[Callable[[], Result]] = [lambda n=n: self.prompt(loaded, cache, tables[0], n) for n in args.prompt]  # type: ignore[misc]
        jobs += [lambda d=d, b=b: self.generation(loaded, cache, tables[:b], d) for d in args.depth for b in args.batch]  # type: ignore[misc]
        done = []
        with Pool(self.threads, Settings.from_env().isa or ""):
            for i, job in enumerate(jobs):
                update(i, len(jobs))
                done.append(job())
        return done

    def prompt(self, loaded: Loaded, cache: PagedCache, pages: list[int], n: int) -> Result:
        """A prompt of `n` tokens in one forward."""
        from qtransformers.native import lib

        batch = Batch.single(np.arange(n, dtype=np.int32) % loaded.hparams.vocab_size, 0, pages)
        forward = self._forward(loaded, cache)
        forward(batch)
        operations = 2.0 * sum(t.n_values for name, t in _matrices(loaded).items() if name != "token_embd.weight") * n
        speeds, shares = [], []
        for _ in range(ROUNDS):
            peak = lib.multiply_speed(2000)
            start = time.perf_counter()
            forward(batch)
            speeds.append(1 / (time.perf_counter() - start))
            shares.append(speeds[-1] * operations / peak)
        speed = statistics.median(speeds)
        return Result(f"pp{n}", n * speed, None, None, operations * speed / 1e9, statistics.median(shares))

    def generation(self, loaded: Loaded, cache: PagedCache, tables: list[list[int]], depth: int) -> Result:
        """Tokens one after another in as many texts as there are page tables, `depth` tokens before them."""
        from qtransformers.native import lib

        forward = self._forward(loaded, cache)
        matrices = _matrices(loaded)
        weights = [
            t.data for name, t in matrices.items() if name != "token_embd.weight" or "output.weight" not in matrices
        ]
        nbytes = sum(w.nbytes for w in weights)
        speeds, shares = [], []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            for w in weights:
                lib.read_speed(w)
            plain = nbytes / (time.perf_counter() - start)
            start = time.perf_counter()
            for i in range(self.args.gen):
                forward(Batch.join([Batch.single([1], depth + i, pages) for pages in tables]))
            speeds.append(self.args.gen / (time.perf_counter() - start))
            shares.append(speeds[-1] * nbytes / plain)
        speed = statistics.median(speeds)
        name = f"tg{self.args.gen}" + (f"@{depth}" if depth else "") + (f" x{len(tables)}" if len(tables) > 1 else "")
        return Result(name, speed * len(tables), speed * nbytes / 1e9, statistics.median(shares), None, None)

    def _forward(self, loaded: Loaded, cache: PagedCache) -> Callable[[Batch], Any]:
        return lambda batch: loaded.spec.forward(loaded.weights, loaded.hparams, batch, cache)


def _matrices(loaded: Loaded) -> dict[str, Any]:
    gguf = loaded.sources.gguf
    assert gguf is not None  # `load` refuses to do without
    return {name: t for name, t in gguf.tensors.items() if len(t.shape) == 2}


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
