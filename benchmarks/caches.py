"""What a cache type costs: perplexity of the demo model, how far its logits move, and attention over keys with outliers.

usage: caches.py [--tokens 100000] [--rounds 40] [FILE.gguf]

Texts are held-out ones of the demo model's generator (accuracy.py), packed to whole contexts. Products are exact, so that
the cache alone makes the difference. Keys with outliers are synthetic, as real models have them: a few channels many times
as large as the rest (arXiv:2402.02750). There the codecs are also tried without their rotation.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import results
from accuracy import ROOT, texts

from qtransformers import Model
from qtransformers.cache import CODECS, bytes_per_token
from qtransformers.kernels.kv import group, quantise, rotate

CONTEXT = 1000  # tokens of a packed text
HEAD, KEYS, OUTLIERS, TIMES = 128, 4096, 4, 20  # dimensions, tokens, channels so many times as large


def packed(model: Model, n_tokens: int) -> Iterator[list[int]]:
    """Lists of `CONTEXT` ids, of document after document."""
    ids: list[int] = []
    given = 0
    for document in texts(1 + n_tokens // 50):
        ids += model.tokenizer.encode(document, encode_special=True)
        while len(ids) >= CONTEXT and given < n_tokens:
            yield ids[:CONTEXT]
            ids, given = ids[CONTEXT:], given + CONTEXT


def log_probabilities(model: Model, ids: list[int]) -> np.ndarray:
    """Of all tokens after each, `[T - 1, vocab]`."""
    x = model.logits(ids)[:-1].astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def perplexities(path: Path, n_tokens: int) -> tuple[list[tuple[str, ...]], int]:
    models = {cache: Model.load(path, accuracy="exact", cache=cache, logits_rows=512) for cache in CODECS}
    sums = {cache: np.zeros(4) for cache in CODECS}  # nats, divergence, squares, same best
    n = 0
    for ids in packed(models["f32"], n_tokens):
        truth = log_probabilities(models["f32"], ids)
        own = np.arange(len(truth)), ids[1:]
        n += len(truth)
        for cache, model in models.items():
            found = log_probabilities(model, ids)
            off = truth - found
            sums[cache] += (-found[own].sum(), (np.exp(truth) * off).sum(), (off**2).mean(-1).sum(), (truth.argmax(1) == found.argmax(1)).sum())  # fmt: skip
    base = np.exp(sums["f16"][0] / n)
    rows = []
    for cache, (nats, divergence, squares, same) in sums.items():
        perplexity = np.exp(nats / n)
        rows.append(
            (cache, f"{8 * bytes_per_token(cache, 1, 64, 64) / 128:g}", f"{perplexity:.4f}", f"{100 * (perplexity / base - 1):+.3f}%",
             f"{divergence / n:.1e}", f"{np.sqrt(squares / n):.4f}", f"{100 * same / n:.2f}%")
        )  # fmt: skip
    return rows, n


def kept(x: np.ndarray, bits: int, rotated: bool) -> np.ndarray:
    """`x [T, D]` as a cache of so many bits gives it back."""
    y = rotate(x, group(x.shape[-1])) if rotated else x
    codes, scales = quantise(y.astype(np.float32), bits)
    y = (codes.astype(np.float64) - (1 << (bits - 1))) * np.repeat(scales.astype(np.float64), group(x.shape[-1]), -1)
    return rotate(y, group(x.shape[-1])) if rotated else y


def outliers(rounds: int) -> list[tuple[str, ...]]:
    """Divergence of attention's probabilities, and error of its result, with and without rotation."""
    rows = []
    rng = np.random.default_rng(0)
    found: dict[tuple[int, bool], list[tuple[float, float]]] = {}
    for _ in range(rounds):
        k, v = rng.standard_normal((KEYS, HEAD)), rng.standard_normal((KEYS, HEAD))
        channels = rng.choice(HEAD, OUTLIERS, replace=False)
        k[:, channels] = TIMES * (1 + 0.1 * k[:, channels])  # a large mean, little of it information
        q = rng.standard_normal((16, HEAD)) * 1.5
        q[:, channels] /= TIMES
        p, y = attend(q, k, v)
        for bits in (8, 6, 4):
            for rotated in (True, False):
                p2, y2 = attend(q, kept(k, bits, rotated), kept(v, bits, rotated))
                found.setdefault((bits, rotated), []).append(
                    (float((p * np.log(p / p2)).sum(-1).mean()), float(np.linalg.norm(y - y2) / np.linalg.norm(y)))
                )
    for bits in (8, 6, 4):
        (kl, error), (kl_plain, error_plain) = (np.mean(found[bits, rotated], 0) for rotated in (True, False))
        rows.append(
            (f"q{bits}", f"{kl:.1e}", f"{kl_plain:.1e}", f"{kl_plain / kl:.1f}", f"{error:.2%}", f"{error_plain:.2%}")
        )
    return rows


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores = q @ k.T / np.sqrt(HEAD)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return p, p @ v


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("file", nargs="?", type=Path, default=ROOT / "tests" / "data" / "demo-Q8_0.gguf")
    args = parser.parse_args()
    rows, n = perplexities(args.file, args.tokens)
    head = ("cache", "bits a value", "perplexity", "against f16", "KL divergence from f32 (nats)", "error of log-probabilities (rms)", "same best token")  # fmt: skip
    outlier_head = (
        "cache",
        "KL of probabilities",
        "without rotation",
        "times",
        "error of the result",
        "without rotation",
    )
    body = (
        f"{args.file.name}, held-out texts of its own kind in contexts of {CONTEXT}, {n:,} tokens, products exact.\n\n{results.table(head, rows)}\n\n"
        f"Attention over {KEYS:,} synthetic keys of {HEAD}, {OUTLIERS} channels of them {TIMES} times as large; {args.rounds} rounds of 16 queries.\n\n"
        + results.table(outlier_head, outliers(args.rounds))
    )
    results.publish(__file__, "What cache types cost", body)


if __name__ == "__main__":
    main()
