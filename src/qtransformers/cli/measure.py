"""Speeds of a loaded model, each in turns with what the machine can do at most, for shared machines change from second to second."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.cache import CODECS, PAGE_TOKENS, Batch, PagedCache, bytes_per_token
from qtransformers.errors import ConfigError, InsufficientMemoryError
from qtransformers.generate.device import forward_of
from qtransformers.kernels.cpu import Pool
from qtransformers.kernels.kv import encode_page
from qtransformers.load import Loaded
from qtransformers.load.files import memory_text
from qtransformers.load.footprint import CacheShape
from qtransformers.load.plan import DECODED_ROLES, PlannedTensor
from qtransformers.machine import memory
from qtransformers.native import lib
from qtransformers.settings import Settings

ROUNDS = 3
Forward = Callable[[Batch], Any]
LOOKED_UP = ("embed", "position", *DECODED_ROLES)  # roles that are no products: a token meets one row, or values


@dataclass(frozen=True)
class Result:
    """One measurement: medians over its rounds."""

    test: str
    tokens_per_second: float
    gb_per_second: float | None = None  # of decoding: the weights, keys and values that every step reads
    plain_read_gb_per_second: float | None = None  # of as many bytes, read in turns with the tokens
    of_plain_read: float | None = None  # the share of it that decoding reaches
    gops: float | None = None  # of prompts: multiplications and additions with weights
    peak_gops: float | None = None  # what the machine can do at most, measured in turns with the prompts
    of_peak: float | None = None


def measure(
    loaded: Loaded,
    threads: int,
    prompts: Sequence[int],
    n_generated: int,
    batches: Sequence[int],
    depths: Sequence[int],
    update: Callable[[int, int], None],
) -> list[Result]:
    """Every prompt length, then every batch at every depth; of an encoder, prompts alone.

    ConfigError where the context cannot hold it, InsufficientMemoryError where main memory cannot.
    """
    encodes = loaded.spec.kind == "encoder"
    deepest = 0 if encodes else max(depths) + n_generated
    longest = max(*prompts, deepest)
    if longest > loaded.plan.context_length:
        raise ConfigError(
            f"{longest} tokens are asked for; the context of the model holds {loaded.plan.context_length}."
        )
    lengths = [] if encodes else [longest, *[deepest] * (max(batches) - 1)]
    pages = [-(-n // PAGE_TOKENS) for n in lengths]
    cache = loaded.new_cache(sum(pages) * PAGE_TOKENS)
    fill(cache, loaded.plan.cache_shape)
    tables = [cache.take(n) for n in pages]
    forward = _forward_of(loaded, cache)
    jobs: list[Callable[[], Result]] = [
        partial(_prompt, loaded, forward, tables[0] if tables else [], n) for n in prompts
    ]
    if not encodes:
        jobs += [
            partial(_generation, loaded, forward, cache, tables[:n], n_generated, d) for d in depths for n in batches
        ]
    done = []
    with Pool(threads, Settings.from_env().isa or ""):
        for i, job in enumerate(jobs):
            update(i, len(jobs))
            done.append(job())
    return done


def fill(cache: PagedCache, shape: CacheShape) -> None:
    """Write every page: those that nobody wrote are one page of zeros to the system, read from a core's own cache.

    InsufficientMemoryError where they exceed the memory at hand.
    """
    room = memory().usable
    if room is not None and cache.nbytes > room:
        raise InsufficientMemoryError(
            f"keys and values take {memory_text(cache.nbytes)}; {memory_text(room)} are available. Lower -d, -p or -b, or take a smaller cache type."
        )
    if not cache.nbytes:
        return
    rng = np.random.default_rng(0)
    keys, values = (
        encode_page(rng.standard_normal((PAGE_TOKENS, d), np.float32), kind, is_key)
        for kind, d, is_key in zip(
            CODECS[cache.codec], (shape.head_dim_k, shape.head_dim_v), (True, False), strict=True
        )
    )
    for layer in cache.pages:
        if isinstance(layer, np.ndarray):  # a GPU's are real from the start
            layer[...] = np.concatenate([keys, values])


def _forward_of(loaded: Loaded, cache: PagedCache) -> Forward:
    """A forward, done when it comes back; of one on a GPU the best ids come, as answers want them."""
    run = forward_of(loaded)
    return (lambda batch: run(batch, cache).best()) if loaded.plan.devices else (lambda batch: run(batch, cache))


def _read_seconds(loaded: Loaded, used: Sequence[NDArray[np.uint8]], nbytes: int) -> float:
    """Seconds of a plain read of as many bytes as a step needs, where most of the weights are."""
    if loaded.plan.devices:
        from qtransformers.kernels.triton.device import read_seconds

        return read_seconds(nbytes, loaded.plan.main_device)
    start = time.perf_counter()
    for part in used:
        lib.read_speed(part)
    return time.perf_counter() - start


def _prompt(loaded: Loaded, forward: Forward, pages: list[int], n: int) -> Result:
    """A prompt of `n` tokens in one forward."""
    batch = Batch.single(np.arange(n, dtype=np.int32) % loaded.hparams.vocab_size, 0, pages)
    forward(batch)
    matrices = [t for t in _matrices(loaded) if t.role not in ("embed", "output")]  # the last token's
    operations = 2.0 * n * sum(prod(t.shape) * _share(loaded, t, 1) for t in matrices)
    speeds, peaks, shares = [], [], []
    for _ in range(ROUNDS):
        peaks.append(0.0 if loaded.plan.devices else lib.multiply_speed(100000))
        start = time.perf_counter()
        forward(batch)
        speeds.append(1 / (time.perf_counter() - start))
        shares.append(speeds[-1] * operations / max(peaks[-1], 1))
    speed = statistics.median(speeds)
    if loaded.plan.devices:  # benchmarks/gpu.py knows what a card can do at most
        return Result(f"pp{n}", n * speed, gops=operations * speed / 1e9)
    return Result(
        f"pp{n}", n * speed,
        gops=operations * speed / 1e9, peak_gops=statistics.median(peaks) / 1e9, of_peak=statistics.median(shares),
    )  # fmt: skip


def _generation(
    loaded: Loaded, forward: Forward, cache: PagedCache, tables: list[list[int]], n_generated: int, depth: int
) -> Result:  # fmt: skip
    """Tokens one after another in as many texts as there are page tables, `depth` tokens before them."""
    remembers = bool(loaded.spec.states(loaded.hparams))  # what it does depends on the tokens before
    used = [*_weights(loaded, len(tables)), *_kept(loaded, cache, len(tables), depth + (n_generated + 1) // 2)]
    nbytes = sum(part.nbytes for part in used)
    speeds, reads, shares = [], [], []
    for _ in range(ROUNDS):
        if remembers and depth:
            forward(Batch.join([Batch.single([1] * depth, 0, pages) for pages in tables]))
        reading = stepping = 0.0
        for i in range(n_generated):
            batch = Batch.join([Batch.single([1], depth + i, pages) for pages in tables])
            reading += _read_seconds(loaded, used, nbytes)
            start = time.perf_counter()
            forward(batch)
            stepping += time.perf_counter() - start
        speeds.append(n_generated / stepping)
        reads.append(n_generated * nbytes / reading)
        shares.append(reading / stepping)
    speed = statistics.median(speeds)
    return Result(
        f"tg{n_generated}" + (f"@{depth}" if depth else "") + (f" x{len(tables)}" if len(tables) > 1 else ""),
        speed * len(tables),
        gb_per_second=speed * nbytes / 1e9, plain_read_gb_per_second=statistics.median(reads) / 1e9, of_plain_read=statistics.median(shares),
    )  # fmt: skip


def _matrices(loaded: Loaded) -> list[PlannedTensor]:
    """Weights that tokens are multiplied with; an embedding where it is the output too."""
    tied = loaded.plan.ties.values()
    found = [t for t in loaded.plan.tensors if len(t.shape) in (2, 3) and t.slot.part == "weight"]
    return [t for t in found if t.role not in LOOKED_UP or t.slot.attr in tied]


def _weights(loaded: Loaded, n_tokens: int) -> list[NDArray[np.uint8]]:
    """The bytes of weights that a step of so many tokens reads, of stacked experts as many as it may be expected to."""
    gguf = loaded.sources.gguf
    assert gguf is not None  # a model without weights is not loaded
    return [gguf.tensors[t.slot.name].data[: round(t.nbytes * _share(loaded, t, n_tokens))] for t in _matrices(loaded)]


def _kept(loaded: Loaded, cache: PagedCache, n_texts: int, n_tokens: int) -> list[NDArray[np.uint8]]:
    """As many bytes of each layer's keys and values as a step reads with so many tokens in every text."""
    h, shape = loaded.hparams, loaded.plan.cache_shape
    a_token = bytes_per_token(cache.codec, shape.n_kv_heads, shape.head_dim_k, shape.head_dim_v)
    layers = [i for i in range(h["n_layers"]) if loaded.spec.caches(h, i)]
    return [
        pages.reshape(-1)[: n_texts * _seen(h, layer, n_tokens) * a_token]
        for layer, pages in zip(layers, cache.pages, strict=True)
    ]


def _seen(h: Mapping[str, Any], layer: int, n_tokens: int) -> int:
    """How many of so many tokens the last one sees: in layers with a window, those in it."""
    window = h.get("sliding_window", 0)
    everything = not window or ("swa_period" in h and (layer + 1) % h["swa_period"] == 0)
    return n_tokens if everything else min(window, n_tokens)


def _share(loaded: Loaded, tensor: PlannedTensor, n_tokens: int) -> float:
    """How much of a tensor so many tokens meet: of stacked experts, those that they may be expected to choose."""
    if tensor.role != "experts":
        return 1.0
    h = loaded.hparams
    return 1 - (1 - h["n_experts_used"] / h["n_experts"]) ** n_tokens
