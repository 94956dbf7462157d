"""Prefill and decode of whole models against llama.cpp, on the same file in the same run, in turns.

usage: cpu.py [--shape llama-1b] [--recipes Q4_K_M,Q8_0,...] [--rounds 5] [--threads 2] [--folder DIR] [--peer-python PYTHON]

The models have random weights (benchmarks/models.py) and are kept in --folder. PYTHON has llama-cpp-python; by default this one.
Beside both stand what the machine allows: a plain read of the weights, and the peak of its integer multiplications.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import models
import results

PROMPT, GENERATED = 256, 16
# The better of llama.cpp and ik_llama.cpp as a multiple of llama.cpp, recorded on another day on a machine of this kind.
BETTER_PEER = {  # prefill, decode
    "Q4_K_M": (1.5, 1.0), "Q8_0": (2.0, 1.15), "Q4_0": (1.45, 1.4), "Q5_K_M": (1.0, 1.25),
    "Q6_K": (1.03, 1.2), "Q3_K_M": (1.4, 1.2), "Q2_K": (2.6, 1.15), "IQ4_XS": (1.06, 1.6),
}  # fmt: skip

OURS = """
import sys, time, json
import numpy as np
from qtransformers.cache import Batch, PagedCache
from qtransformers.kernels.cpu import Pool
from qtransformers.load import load
from qtransformers.native import lib
path, threads, accuracy = sys.argv[1], int(sys.argv[2]), sys.argv[3]
m = load(path, context_length=1024, accuracy=accuracy)
h = m.hparams
cache = PagedCache.allocate(h.n_layers, h.n_kv_heads, h.head_dim, h.head_dim_v, 1024)
pages = cache.take(4)
tensors = [t for t in m.sources.gguf.tensors.values() if len(t.shape) > 1]
def used(t):  # of stacked experts, as many as a token meets
    return t.data if "_exps" not in t.name else t.data[: t.nbytes * h.n_experts_used // h.n_experts]
def forward(tokens, past): return m.spec.forward(m.weights, h, Batch.single(tokens, past, pages), cache)
def read():
    for t in tensors: lib.read_speed(used(t))
def pp(n): forward(np.arange(3, 3 + n, dtype=np.int32), 0)
def tg(n):
    for i in range(n): forward([5], 256 + i)
with Pool(threads):
    pp(256); tg(2); read()
    print(json.dumps({"bytes": sum(used(t).nbytes for t in tensors),
                      "operations": 2 * sum(t.n_values * used(t).nbytes / t.nbytes for t in tensors if "token_embd" not in t.name)}), flush=True)
    for line in sys.stdin:
        what, n = line.split()
        if what == "peak":
            print(lib.multiply_speed(100000), flush=True)
            continue
        if what == "both":  # a token, a plain read of the same bytes, and so on: memory changes its speed within a second
            spent = [0.0, 0.0]
            for i in range(int(n)):
                for k, call in enumerate((lambda: forward([5], 256 + i), read)):
                    start = time.perf_counter()
                    call()
                    spent[k] += time.perf_counter() - start
            print(*spent, flush=True)
            continue
        start = time.perf_counter()
        read() if what == "read" else pp(int(n)) if what == "pp" else tg(int(n))
        print(time.perf_counter() - start, flush=True)
"""
THEIRS = """
import sys, time
import numpy as np
from llama_cpp import Llama
path, threads = sys.argv[1], int(sys.argv[2])
m = Llama(path, n_ctx=1024, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads, verbose=False, use_mmap=True)
def pp(n):
    m.reset(); m.eval(list(range(3, 3 + n)))
def tg(n):
    for i in range(n): m.eval([5])
pp(256); tg(2)
print("{}", flush=True)
for line in sys.stdin:
    what, n = line.split()
    if what == "tg": pp(256)
    start = time.perf_counter()
    pp(int(n)) if what == "pp" else tg(int(n))
    print(time.perf_counter() - start, flush=True)
"""


class Worker:
    """A process that keeps a model loaded and times what it is told."""

    def __init__(self, python: str, code: str, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [python, "-c", code, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.about = json.loads(self.process.stdout.readline())

    def __call__(self, what: str, n: int = 0) -> float:
        return self.times(what, n)[0]

    def times(self, what: str, n: int = 0) -> list[float]:
        self.process.stdin.write(f"{what} {n}\n")
        self.process.stdin.flush()
        return [float(word) for word in self.process.stdout.readline().split()]

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(path: Path, recipe: str, args: argparse.Namespace) -> list[str]:
    """A row of the table: medians over the rounds, ratios round by round."""
    ours = Worker(sys.executable, OURS, path, args.threads, args.accuracy)
    theirs = Worker(args.peer_python, THEIRS, path, args.threads)
    nbytes, operations = ours.about["bytes"], ours.about["operations"]
    rows = []
    for _ in range(args.rounds):
        peak, a, b = ours("peak"), ours("pp", PROMPT), theirs("pp", PROMPT)
        c, d = ours("tg", GENERATED), theirs("tg", GENERATED)
        token, read = (seconds / GENERATED for seconds in ours.times("both", GENERATED))
        rows.append(
            (PROMPT / a, PROMPT / b, b / a, PROMPT * operations / a / peak,
             GENERATED / c, GENERATED / d, d / c, read / token, nbytes / read / 1e9)
        )  # fmt: skip
    ours.stop()
    theirs.stop()
    m = [statistics.median(column) for column in zip(*rows, strict=True)]
    better = BETTER_PEER.get(recipe, (1.0, 1.0))
    return [
        recipe, f"{m[0]:.0f}", f"{m[1]:.0f}", f"{m[2]:.2f}", f"{m[2] / better[0]:.2f}", f"{m[3]:.0%}",
        f"{m[4]:.1f}", f"{m[5]:.1f}", f"{m[6]:.2f}", f"{m[6] / better[1]:.2f}", f"{m[7]:.0%}", f"{m[8]:.0f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="llama-1b", choices=models.SHAPES)
    parser.add_argument("--recipes", default=",".join(BETTER_PEER))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--accuracy", default="fast")
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--peer-python", default=sys.executable)
    args = parser.parse_args()
    table = []
    for recipe in args.recipes.split(","):
        table.append(compare(models.at(args.folder, args.shape, recipe), recipe, args))
        print(table[-1], file=sys.stderr, flush=True)
    head = [
        "type", "prefill tok/s", "llama.cpp", "ratio", "to better peer", "of int8 peak",
        "decode tok/s", "llama.cpp", "ratio", "to better peer", "of plain read", "plain read GB/s",
    ]  # fmt: skip
    body = (
        f"{args.shape}, random weights, {args.threads} threads, prompt of {PROMPT} tokens, {GENERATED} tokens generated after 256, "
        f"accuracy={args.accuracy!r}, f16 cache; medians of {args.rounds} rounds in turns. The better peer is llama.cpp times the\n"
        "recorded multiple of ik_llama.cpp where that is faster (BETTER_PEER).\n\n" + results.table(head, table)
    )
    others = "" if BETTER_PEER.keys() & set(args.recipes.split(",")) else ", other types"
    title = f"Whole models on the CPU against llama.cpp: {args.shape}, accuracy={args.accuracy}{others}"
    results.publish(__file__, title, body)


if __name__ == "__main__":
    main()
