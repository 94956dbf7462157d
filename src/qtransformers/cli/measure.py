"""Speeds of a loaded model, each in turns with what the machine can do at most, for shared machines change from second to second."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from qtransformers.cache import PAGE_TOKENS, Batch, PagedCache
from qtransformers.errors import ConfigError
from qtransformers.kernels.cpu import Pool
from qtransformers.load import Loaded
from qtransformers.native import lib
from qtransformers.settings import Settings

ROUNDS = 3
EMBEDDINGS = ("token_embd.weight", "output.weight")  # of a prompt, only the last token meets the output


@dataclass(frozen=True)
class Result:
    """One measurement: medians over its rounds."""

    test: str
    tokens_per_second: float
    weights_gb_per_second: float | None  # of decoding: the weights that every step reads
    of_plain_read: float | None  # that, over a plain read of the same weights in the same rounds
    gops: float | None  # of prompts: multiplications and additions with weights
    of_peak: float | None  # that, over the machine's peak in the same rounds


def measure(
    loaded: Loaded,
    threads: int,
    prompts: Sequence[int],
    n_generated: int,
    batches: Sequence[int],
    depths: Sequence[int],
    update: Callable[[int, int], None],
) -> list[Result]:
    """Every prompt length, then every batch at every depth; ConfigError where the context cannot hold it."""
    longest = max(*prompts, max(depths) + n_generated + 1)
    if longest > loaded.plan.context_length:
        raise ConfigError(
            f"{longest} tokens are asked for; the context of the model holds {loaded.plan.context_length}."
        )
    pages = -(-longest // PAGE_TOKENS)
    room = max(batches) * pages * PAGE_TOKENS
    cache = loaded.new_cache(room)
    tables = [cache.take(pages) for _ in range(max(batches))]
    forward = partial(_forward, loaded, cache)
    jobs: list[Callable[[], Result]] = [partial(_prompt, loaded, forward, tables[0], n) for n in prompts]
    jobs += [partial(_generation, loaded, forward, tables[:n], n_generated, d) for d in depths for n in batches]
    done = []
    with Pool(threads, Settings.from_env().isa or ""):
        for i, job in enumerate(jobs):
            update(i, len(jobs))
            done.append(job())
    return done


def _forward(loaded: Loaded, cache: PagedCache, batch: Batch) -> Any:
    return loaded.spec.forward(loaded.weights, loaded.hparams, batch, cache)


def _prompt(loaded: Loaded, forward: Callable[[Batch], Any], pages: list[int], n: int) -> Result:
    """A prompt of `n` tokens in one forward."""
    batch = Batch.single(np.arange(n, dtype=np.int32) % loaded.hparams.vocab_size, 0, pages)
    forward(batch)
    matrices = {name: t for name, t in _matrices(loaded).items() if name not in EMBEDDINGS}
    operations = 2.0 * n * sum(t.n_values * _share(loaded, t, 1) for t in matrices.values())
    speeds, shares = [], []
    for _ in range(ROUNDS):
        peak = lib.multiply_speed(100000)
        start = time.perf_counter()
        forward(batch)
        speeds.append(1 / (time.perf_counter() - start))
        shares.append(speeds[-1] * operations / peak)
    speed = statistics.median(speeds)
    return Result(f"pp{n}", n * speed, None, None, operations * speed / 1e9, statistics.median(shares))


def _generation(
    loaded: Loaded, forward: Callable[[Batch], Any], tables: list[list[int]], n_generated: int, depth: int
) -> Result:
    """Tokens one after another in as many texts as there are page tables, `depth` tokens before them."""
    matrices = _matrices(loaded)
    tied = "output.weight" not in matrices
    remembers = bool(loaded.spec.states(loaded.hparams))  # what it does depends on the tokens before
    used = [t for name, t in matrices.items() if tied or name != "token_embd.weight"]
    weights = [t.data[: round(t.nbytes * _share(loaded, t, len(tables)))] for t in used]
    nbytes = sum(w.nbytes for w in weights)
    speeds, shares = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for w in weights:
            lib.read_speed(w)
        plain = nbytes / (time.perf_counter() - start)
        if remembers and depth:
            forward(Batch.join([Batch.single([1] * depth, 0, pages) for pages in tables]))
        start = time.perf_counter()
        for i in range(n_generated):
            forward(Batch.join([Batch.single([1], depth + i, pages) for pages in tables]))
        speeds.append(n_generated / (time.perf_counter() - start))
        shares.append(speeds[-1] * nbytes / plain)
    speed = statistics.median(speeds)
    name = f"tg{n_generated}" + (f"@{depth}" if depth else "") + (f" x{len(tables)}" if len(tables) > 1 else "")
    return Result(name, speed * len(tables), speed * nbytes / 1e9, statistics.median(shares), None, None)


def _matrices(loaded: Loaded) -> dict[str, Any]:
    gguf = loaded.sources.gguf
    return {name: t for name, t in gguf.tensors.items() if len(t.shape) in (2, 3)} if gguf else {}


def _share(loaded: Loaded, tensor: Any, n_tokens: int) -> float:
    """How much of a tensor so many tokens meet: of stacked experts, those that they may be expected to choose."""
    if not any(t.slot.name == tensor.name and t.slot.spec.role == "experts" for t in loaded.plan.tensors):
        return 1.0
    h = loaded.hparams
    return 1 - (1 - h["n_experts_used"] / h["n_experts"]) ** n_tokens
