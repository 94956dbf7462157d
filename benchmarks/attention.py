"""Attention over the paged cache against this machine's limits: decoding against a plain read of the cache, prefill against its float peak.

    python benchmarks/attention.py [--threads 2] [--rounds 7] [--no-publish]
"""

import argparse
import statistics
import time

import numpy as np

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
    """A cache whose first layer holds `depth` tokens, copied to the others; and a batch of the next token."""
    cache = PagedCache.allocate(layers, KV_HEADS, d, d, depth + 256, codec)
    np.random.default_rng(0).shuffle(cache.free)  # pages are scattered
    pages = cache.take(depth // 256 + 1)
    batch = Batch.single(np.zeros(depth, np.int32), 0, pages)
    attend(floats(depth, HEADS, d), floats(depth, KV_HEADS, d), floats(depth, KV_HEADS, d), cache, 0, batch)
    cache.pages[1:] = cache.pages[0]
    return cache, Batch.single([0], depth - 1, pages)


def attend(q, k, v, cache, layer, batch):
    """One layer."""
    return cpu.attention(
        q, k, v, cache.pages[layer], cache.codec, batch.positions, batch.starts, batch.page_tables, q.shape[-1] ** -0.5
    )


def decode(codec, d, depth, rounds):
    """Median seconds of a token in 16 layers, bytes read, median seconds of reading as many bytes, median of their ratios."""
    layers = max(LAYERS, -(-(96 << 20) // (depth * KV_HEADS * d * 4)))  # beyond what caches of the machine hold
    cache, batch = filled(codec, d, depth, layers)
    q, k, v = floats(1, HEADS, d), floats(1, KV_HEADS, d), floats(1, KV_HEADS, d)
    held = np.unique(batch.page_tables[batch.page_tables >= 0])[: depth // 256]
    n_bytes = layers * len(held) * cache.pages[0, 0].nbytes
    plain = cache.pages.reshape(-1)[:n_bytes]

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
    """Most GFLOPS in a prompt of `n` tokens: products of what is seen, not of what is masked."""
    cache = PagedCache.allocate(1, KV_HEADS, d, d, n, codec)
    batch = Batch.single(np.zeros(n, np.int32), 0, cache.take(-(-n // 256)))
    q, k, v = floats(n, HEADS, d), floats(n, KV_HEADS, d), floats(n, KV_HEADS, d)
    attend(q, k, v, cache, 0, batch)
    best = min(seconds(attend, q, k, v, cache, 0, batch) for _ in range(rounds))
    return 4 * HEADS * d * n * (n + 1) / 2 / best * 1e-9


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--depths", type=int, nargs="*", default=[1024, 8192])
    parser.add_argument("--prompts", type=int, nargs="*", default=[256, 1024, 4096])
    parser.add_argument("--dims", type=int, nargs="*", default=[64, 128])
    parser.add_argument("--codecs", nargs="*", default=list(CODEC_NAMES), choices=list(CODECS))
    args = parser.parse_args()
    with cpu.Pool(args.threads):
        for d in args.dims:
            for depth in args.depths:
                for codec in args.codecs:
                    t, b, r, ratio = decode(codec, d, depth, args.rounds)
                    print(f"D={d} depth {depth} {codec:5} {t * 1e3:6.2f} ms {b / t * 1e-9:5.1f} GB/s, plain {b / r * 1e-9:5.1f} GB/s, ratio {ratio:.2f}", flush=True)
            for n in args.prompts:
                print(f"D={d} prefill {n}: " + ", ".join(f"{codec} {prefill(codec, d, n, 2):.0f}" for codec in args.codecs), flush=True)
