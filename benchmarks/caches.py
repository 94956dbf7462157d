"""What a cache type costs: perplexity of the demo model, and how far its logits move, against a cache in f32.

usage: caches.py [--documents 100] [FILE.gguf]

Texts and file as in accuracy.py. Products are exact, so that the cache alone makes the difference.
"""

import argparse
from pathlib import Path

import numpy as np
import results
from accuracy import ROOT, texts

from qtransformers import Model
from qtransformers.cache import CODECS, bytes_per_token


def log_probabilities(path: Path, cache: str, documents: list[str]) -> list[np.ndarray]:
    """Of all tokens after each, `[T, vocab]` a document; and of the tokens themselves."""
    found = []
    with Model.load(path, accuracy="exact", cache=cache, logits_rows=512) as model:
        for document in documents:
            ids = model.tokenizer.encode(document, encode_special=True)
            logits = model.logits(ids)[:-1].astype(np.float64)
            logits -= logits.max(-1, keepdims=True)
            logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
            found.append((logits.astype(np.float32), logits[np.arange(len(logits)), ids[1:]]))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("file", nargs="?", type=Path, default=ROOT / "tests" / "data" / "demo-Q8_0.gguf")
    args = parser.parse_args()
    documents = texts(args.documents)
    truth = log_probabilities(args.file, "f32", documents)
    rows = []
    for cache in CODECS:
        found = log_probabilities(args.file, cache, documents)
        nats = [sum(own.sum() for _, own in x) / sum(len(own) for _, own in x) for x in (truth, found)]
        pairs = list(zip(truth, found, strict=True))
        n = sum(len(own) for _, own in truth)
        divergence = sum((np.exp(a) * (a - b)).sum() for (a, _), (b, _) in pairs) / n
        same = sum((a.argmax(1) == b.argmax(1)).sum() for (a, _), (b, _) in pairs) / n
        off = np.sqrt(sum(((a - b) ** 2).sum() for (a, _), (b, _) in pairs) / sum(a.size for a, _ in truth))
        rows.append(
            (cache, f"{8 * bytes_per_token(cache, 1, 64, 64) / 128:g}", f"{np.exp(-nats[1]):.4f}", f"{100 * (np.exp(nats[0] - nats[1]) - 1):+.3f}%",
             f"{divergence:.1e}", f"{off:.4f}", f"{100 * same:.2f}%")
        )  # fmt: skip
    head = (
        "cache",
        "bits a value",
        "perplexity",
        "change",
        "KL divergence (nats)",
        "error of log-probabilities (rms)",
        "same best token",
    )
    results.publish(
        __file__,
        "What cache types cost",
        f"{args.file.name}, {args.documents} documents of its own kind, {n:,} tokens, products exact; against a cache in f32.\n\n"
        + results.table(head, rows),
    )
