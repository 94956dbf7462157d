"""Tokenizers: building one from a GGUF vocabulary, encoding and decoding, and llama.cpp's figures for the same.

Usage: PYTHONPATH=src python benchmarks/tokenizer.py FOLDER_WITH_VOCABULARIES [PYTHON_WITH_LLAMA_CPP]
"""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

from results import fastest, publish, table

from qtransformers.load.tokenizer import Tokenizer

ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT / "tools" / "demo_model"), str(ROOT / "tools" / "tokenizer_goldens")]


def texts() -> dict[str, str]:
    """Text of about 1 MB of each sort: English, all scripts at random, one endless word."""
    from stories import story
    from texts import random_texts

    rng = random.Random(1)
    english = ""
    while len(english) < 1_000_000:
        english += story(rng) + "\n\n"
    mixed = "\n".join(random_texts(25_000, seed=1))
    return {"English": english[:1_000_000], "all scripts": mixed[:500_000], "one word": "a" * 1_000_000}


def measure(file: Path, samples: dict[str, str], their_build: float | None, theirs: dict[str, float]) -> list[object]:
    tokenizer = Tokenizer.from_gguf(file)
    ids = tokenizer.encode(samples["English"])
    calls = {name: lambda text=text: tokenizer.encode(text) for name, text in samples.items()}
    calls |= {"decode": lambda: tokenizer.decode(ids), "build": lambda: Tokenizer.from_gguf(file)}
    spent = fastest(calls, rounds=3, clock=time.thread_time)
    mb = {name: len(text.encode()) / 1e6 for name, text in samples.items()}
    row = [file.stem.removeprefix("ggml-vocab-"), tokenizer.n_tokens, f"{1e3 * spent['build']:.0f}"]
    row.append(f"{1e3 * their_build:.0f}" if their_build else "-")
    for name in samples:
        row.append(f"{mb[name] / spent[name]:.2f}")
        if name != "one word":
            row.append(f"{mb[name] / theirs[name]:.2f}" if name in theirs else "-")
    return [*row, f"{mb['English'] / spent['decode']:.1f}"]


def main() -> None:
    files = sorted(Path(sys.argv[1]).glob("*.gguf"))
    samples = texts()
    peer = {}
    if len(sys.argv) > 2:
        jobs = json.dumps(
            {"files": list(map(str, files)), "texts": {k: samples[k] for k in ("English", "all scripts")}}
        )
        command = [sys.argv[2], str(Path(__file__).with_name("tokenizer_peer.py"))]
        peer = json.loads(subprocess.run(command, input=jobs, capture_output=True, text=True, check=True).stdout)
    rows = [measure(file, samples, *peer.get(str(file), (None, {}))) for file in files]
    head = ["vocabulary", "tokens", "build, ms", "llama.cpp", "English, MB/s", "llama.cpp", "all scripts, MB/s", "llama.cpp", "one word, MB/s", "decode, MB/s"]  # fmt: skip
    note = "One thread, in its own time. Build: from the closed file to a tokenizer. One word: a megabyte of the letter a.\n\n"
    publish(__file__, "Tokenizers", note + table(head, rows))


if __name__ == "__main__":
    main()
