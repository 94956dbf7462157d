"""Opening a GGUF file with a large vocabulary: ours, the gguf package, and reading the bytes once.

The file is made here, 150,000 tokens and as many merges; others can be named beside it.
Usage: python benchmarks/gguf_open.py [FILE ...]
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from results import fastest, publish, table

from gguf import GGUFReader
from qtransformers.gguf import GGUFFile, GGUFWriter

TOKENS = "tokenizer.ggml.tokens"


def make(path):
    """A vocabulary of about the size and letters of a real one."""
    rng = np.random.default_rng(0)
    letters = np.array([*"abcdefghijklmnopqrstuvwxyz" * 8, *"ĠĊéüñабв中文日本"])
    words = ["".join(rng.choice(letters, n)) for n in rng.integers(1, 12, 150_000)]
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": 32,
        "tokenizer.ggml.model": "gpt2",
        TOKENS: words,
        "tokenizer.ggml.token_type": [1] * len(words),
        "tokenizer.ggml.merges": [f"{a} {b}" for a, b in zip(words, reversed(words), strict=True)],
    }
    with GGUFWriter(path, metadata, []):
        pass
    return path


def scalars(path):
    """Open with our reader and read every single value."""
    file = GGUFFile(path)
    for key in file.metadata:
        if file.metadata.info(key).length is None:
            file.metadata[key]
    return file


def package(path):
    """The same with the gguf package."""
    reader = GGUFReader(path)
    for field in reader.fields.values():
        if field.types[0] != 9:
            field.contents()
    return reader


def package_tokens(path):
    return GGUFReader(path).fields[TOKENS].contents()


def measure(path, rounds):
    """Seconds of this thread in the fastest of `rounds` runs each, in turns, and the number of tokens."""
    tokens = GGUFFile(path).metadata[TOKENS]
    assert tokens == package_tokens(path)
    calls = {
        "open": lambda: scalars(path),
        "open, package": lambda: package(path),
        "tokens": lambda: GGUFFile(path).metadata[TOKENS],
        "tokens, package": lambda: package_tokens(path),
        "floor": path.read_bytes,
    }
    return fastest(calls, rounds, time.thread_time), len(tokens)


def rows(path, name, rounds):
    """The table's lines for one file."""
    seconds, n = measure(path, rounds)
    for what, key in (("open, read all single values", "open"), (f"open, decode the {n:,} tokens", "tokens")):
        ours, theirs, floor = (seconds[k] * 1e3 for k in (key, f"{key}, package", "floor"))
        yield f"{name}: {what}", f"{ours:.2f}", f"{theirs:.0f}", f"{theirs / ours:.0f}x", f"{floor:.2f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="measured beside the file made here")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for path in (make(Path(folder) / "made here"), *args.files):
            lines += rows(path, f"{path.name}, {path.stat().st_size / 1e6:.1f} MB", args.rounds)
    head = ("ms", "qtransformers", "gguf package", "ratio", "reading the bytes once")
    body = f"The fastest of {args.rounds} runs, in turns, from the page cache; one thread, its own time.\n\n{table(head, lines)}"
    publish(__file__, "Opening a GGUF file", body)


if __name__ == "__main__":
    main()
