"""Attention over the paged cache against this machine's limits: decoding against a plain read of the cache, prefill against its float peak.

python benchmarks/attention.py [--threads 2] [--rounds 9] [--print-only]
"""

import argparse
import statistics
import time

import numpy as np
import results

from qtransformers.cache import CODECS, Batch, PagedCache
from qtransformers.kernels import cpu
from qtransformers.native import lib

HEADS, KV_HEADS = 32, 8
LAYERS = 16
CODEC_NAMES = ("f16", "q8", "q6", "q4", "k8v4")


def seconds(call, *args):
    """Of one call."""
    start = time.perf_counter()
    call(*args)
    return time.perf_counter() - start


def floats(*shape, seed=0):
    """Standard normal."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def filled(codec, d, depth, layers):
    """A cache with `depth` tokens in every layer, in scattered pages; and a batch of the last of them."""
    cache = PagedCache.allocate(layers, KV_HEADS, d, d, depth, codec)
    np.random.default_rng(0).shuffle(cache.free)
    pages = cache.take(depth // 256)
    batch = Batch.single(np.zeros(depth, np.int32), 0, pages)
    attend(floats(depth, HEADS, d), floats(depth, KV_HEADS, d), floats(depth, KV_HEADS, d, seed=1), cache, 0, batch, 1)
    cache.pages[1:] = cache.pages[0]
    return cache, Batch.single([0], depth - 1, pages)


def attend(q, k, v, cache, layer, batch, window=0):
    """One layer."""
    at = batch.positions, batch.starts, batch.page_tables
    return cpu.attention(q, k, v, cache.pages[layer], cache.codec, *at, q.shape[-1] ** -0.5, window)


def decode(codec, d, depth, rounds):
    """Median seconds of a token in 16 layers, bytes read, median seconds of reading as many bytes, median of their ratios."""
    layers = max(LAYERS, -(-(96 << 20) // (depth * KV_HEADS * d * 4)))  # beyond what caches of the machine hold
    cache, batch = filled(codec, d, depth, layers)
    q, k, v = floats(1, HEADS, d), floats(1, KV_HEADS, d), floats(1, KV_HEADS, d)
    n_bytes = cache.nbytes
    plain = cache.pages.reshape(-1)

    def token():
        for layer in range(layers):
            attend(q, k, v, cache, layer, batch)

    token()
    ours, reads = [], []
    for _ in range(rounds):
        reads.append(n_bytes / lib.read_speed(plain))
        ours.append(seconds(token))
    ratio = statistics.median(a / b for a, b in zip(ours, reads, strict=True))
    share = LAYERS / layers
    return statistics.median(ours) * share, n_bytes * share, statistics.median(reads) * share, ratio


def prefill(codec, d, n, rounds):
    """GFLOPS of a prompt of `n` tokens, the best of `rounds`: products of what is seen, not of what is masked."""
    heads, kv_heads = (HEADS, KV_HEADS) if n < 4096 else (HEADS // 4, KV_HEADS // 4)  # enough work
    cache = PagedCache.allocate(1, kv_heads, d, d, n, codec)
    batch = Batch.single(np.zeros(n, np.int32), 0, cache.take(-(-n // 256)))
    q, k, v = floats(n, heads, d), floats(n, kv_heads, d), floats(n, kv_heads, d, seed=1)
    best = min(seconds(attend, q, k, v, cache, 0, batch) for _ in range(rounds))
    return 4 * heads * d * n * (n + 1) / 2 / best * 1e-9


def peak():
    """GFLOPS in float32: integer products are as often, with four times the multiplications in each, twice in the oldest sets."""
    return lib.multiply_speed(100000) * 1e-9 / (2 if cpu.Pool(1).isa == "generic" else 4)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--depths", type=int, nargs="*", default=[1024, 8192])
    parser.add_argument("--prompts", type=int, nargs="*", default=[256, 2048, 8192])
    parser.add_argument("--dims", type=int, nargs="*", default=[64, 128])
    parser.add_argument("--codecs", nargs="*", default=["f16", "q8", "q6", "q4", "k8v4"], choices=list(CODECS))
    parser.add_argument("--print-only", action="store_true")
    args = parser.parse_args()
    decoded, prompts = [], []
    with cpu.Pool(args.threads):
        for d in args.dims:
            for codec in args.codecs:
                row = []
                for depth in args.depths:
                    t, n_bytes, plain, ratio = decode(codec, d, depth, args.rounds)
                    row += [
                        f"{t * 1e3:.2f}",
                        f"{n_bytes / t * 1e-9:.1f}",
                        f"{n_bytes / plain * 1e-9:.1f}",
                        f"**{ratio:.2f}**",
                    ]
                decoded.append((f"{codec}, heads of {d}", *row))
            for codec in args.codecs:
                speeds = [prefill(codec, d, n, 3 if n < 4096 else 1) for n in args.prompts]
                prompts.append((f"{codec}, heads of {d}", *(f"{x:.0f}" for x in speeds)))
        limit = peak()
    head = ("cache", *(f"{what}, {depth:,}" for depth in args.depths for what in ("ms a token", "GB/s", "plain read", "ratio")))  # fmt: skip
    body = (
        f"{HEADS} query heads over {KV_HEADS} KV heads, {LAYERS} layers, {args.threads} threads, pages scattered. Plain reads of the same bytes take turns with the tokens; the ratio is the median of\n"
        f"theirs.\n\n{results.table(head, decoded)}\n\nPrompts: GFLOPS of what is seen (causal); the float32 peak was {limit:.0f}.\n\n"
        + results.table(("cache", *(f"{n:,} tokens" for n in args.prompts)), prompts)
    )
    if args.print_only:
        print(body)
    else:
        results.publish(__file__, "Attention over the cache", body)
