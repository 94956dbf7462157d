"""What rounding activations costs in perplexity: the same weights with accuracy exact, high and fast.

usage: accuracy.py [--documents 200] [FILE.gguf ...]

Texts come from the demo model's own corpus (tools/demo_model/stories.py), of a seed it was not trained on; FILES are
quantisations of the demo model, by default the one in tests/data.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import results

from qtransformers import Model
from qtransformers.kernels.table import ACCURACIES

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools" / "demo_model"))
SEED = 777


def texts(n: int) -> list[str]:
    """`n` documents as the demo model was trained on them, but others."""
    from stories import documents

    made = documents(SEED)
    turns = (next(made) for _ in range(n))
    return [(f"<|user|>{user}<|end|>\n<|assistant|>" if user else "") + answer for _, user, answer in turns]


def surprise(path: Path, accuracy: str, documents: list[str]) -> tuple[float, int]:
    """Nats of all tokens after the first of each document, and how many there are."""
    total, count = 0.0, 0
    with Model.load(path, accuracy=accuracy, logits_rows=512) as model:
        for document in documents:
            ids = model.tokenizer.encode(document, encode_special=True)
            logits = model.logits(ids)[:-1].astype(np.float64)
            logits -= logits.max(-1, keepdims=True)
            log_p = logits[np.arange(len(ids) - 1), ids[1:]] - np.log(np.exp(logits).sum(-1))
            total, count = total - log_p.sum(), count + len(log_p)
    return total, count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="*", type=Path, default=[ROOT / "tests" / "data" / "demo-Q8_0.gguf"])
    parser.add_argument("--documents", type=int, default=200)
    args = parser.parse_args()
    documents = texts(args.documents)
    rows = []
    for path in args.files:
        nats = {accuracy: surprise(path, accuracy, documents) for accuracy in ACCURACIES}
        perplexity = {accuracy: float(np.exp(total / count)) for accuracy, (total, count) in nats.items()}
        change = (f"{perplexity[accuracy] / perplexity['exact'] - 1:+.4%}" for accuracy in ("high", "fast"))
        rows.append([path.stem, f"{perplexity['exact']:.5f}", *change])
        print(rows[-1], file=sys.stderr, flush=True)
        count = nats["exact"][1]
    body = f"The demo model, {args.documents} documents of its corpus ({count:,} tokens) with logits of whole documents.\n\n"
    head = ["file", "perplexity, exact", "high", "fast"]
    results.publish(__file__, "Perplexity with rounded activations", body + results.table(head, rows))


if __name__ == "__main__":
    main()
