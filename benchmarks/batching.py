"""Answers side by side: tokens a second of all requests together, ours and llama.cpp's, on the same file in the same run.

usage: batching.py [--shape llama-1b] [--recipes Q4_0,Q4_K_M] [--rounds 5] [--threads 2] [--folder DIR] [--peer-python PYTHON]

Each of n requests has a prompt of its own, and all are streamed from one thread; only the answers are timed. Ours is the
whole path, from the forward to text, without guesses (random weights repeat themselves), with deterministic=True in a column of its own; llama.cpp's is llama_decode of one
token of each sequence, without sampling. The limit is one plain read of the weights for each round of tokens.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import models
import results

SEQUENCES = (1, 2, 4, 8)
PROMPT, GENERATED = 128, 16


def ours(path: str, threads: int, deterministic: bool) -> None:
    """Times rounds of answers as it is told on stdin."""
    from qtransformers import Model
    from qtransformers.native import lib

    model = Model.load(path, context_length=512, cache_tokens=8 * 512, threads=threads, deterministic=deterministic)
    weights = [t.data for t in model._gguf.tensors.values() if len(t.shape) > 1]
    print(json.dumps({}), flush=True)
    for i, line in enumerate(sys.stdin):
        n = int(line)
        if n == 0:
            with model._engine._use().threads:
                start = time.perf_counter()
                for w in weights:
                    lib.read_speed(w)
                print(time.perf_counter() - start, flush=True)
            continue
        streams = [
            model.stream(
                [(7 * s + 11 * i + t) % 900 + 5 for t in range(PROMPT)],
                temperature=0,
                speculate=False,
                max_tokens=GENERATED + 8,
            )
            for s in range(n)
        ]
        for stream in streams:
            stream.start()
        for stream in streams:
            next(stream)
        sequences = [stream._sequence for stream in streams]
        before = sum(len(s.tokens) for s in sequences)
        start = time.perf_counter()
        for _ in range(GENERATED):
            model._engine.step()
        seconds = time.perf_counter() - start
        print(seconds / (sum(len(s.tokens) for s in sequences) - before), flush=True)
        for stream in streams:
            stream.close()


def theirs(path: str, threads: int) -> None:
    """The same with llama.cpp, through the functions of its C interface."""
    import llama_cpp as c

    c.llama_backend_init()
    model = c.llama_model_load_from_file(path.encode(), c.llama_model_default_params())
    params = c.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 8 * 512, 512, 512, 8
    params.n_threads = params.n_threads_batch = threads
    context = c.llama_init_from_model(model, params)
    memory = c.llama_get_memory(context)
    batch = c.llama_batch_init(PROMPT, 0, 1)

    def decode(rows: list[tuple[int, int, int, bool]]) -> None:
        batch.n_tokens = len(rows)
        for j, (token, position, sequence, logits) in enumerate(rows):
            batch.token[j], batch.pos[j], batch.n_seq_id[j], batch.logits[j] = token, position, 1, logits
            batch.seq_id[j][0] = sequence
        if c.llama_decode(context, batch):
            raise SystemExit("llama_decode failed")

    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        n = int(line)
        c.llama_memory_clear(memory, True)
        for s in range(n):
            decode([((7 * s + t) % 900 + 5, t, s, t == PROMPT - 1) for t in range(PROMPT)])
        start = time.perf_counter()
        for t in range(GENERATED):
            decode([(5 + s, PROMPT + t, s, True) for s in range(n)])
        c.llama_synchronize(context)
        print((time.perf_counter() - start) / (n * GENERATED), flush=True)


class Worker:
    """This script in another process, or with another Python."""

    def __init__(self, python: str, *arguments: object) -> None:
        command = [python, __file__, "--worker", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        json.loads(self.process.stdout.readline())

    def __call__(self, n: int) -> float:
        self.process.stdin.write(f"{n}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(recipe: str, path: Path, args: argparse.Namespace) -> list[list[str]]:
    workers = {
        "ours": Worker(sys.executable, "ours", path, args.threads),
        "deterministic": Worker(sys.executable, "deterministic", path, args.threads),
        "llama.cpp": Worker(args.peer_python, "llama.cpp", path, args.threads),
    }
    seconds = {(who, n): [] for who in (*workers, "read") for n in SEQUENCES}
    for worker in workers.values():
        worker(1)
    for _ in range(args.rounds):
        for n in SEQUENCES:
            seconds["read", n].append(workers["ours"](0))
            for who, worker in workers.items():
                seconds[who, n].append(worker(n))
    for worker in workers.values():
        worker.stop()

    def ratio(a: tuple[str, int], b: tuple[str, int]) -> float:
        return statistics.median(y / x for x, y in zip(seconds[a], seconds[b], strict=True))

    rows = []
    for n in SEQUENCES:
        mine, peer, limit = (statistics.median(seconds[who, n]) for who in ("ours", "llama.cpp", "read"))
        rows.append([
            recipe, n, f"{1 / mine:.0f}", f"{ratio(('ours', n), ('ours', 1)):.2f}", f"{1 / peer:.0f}",
            f"{ratio(('llama.cpp', n), ('llama.cpp', 1)):.2f}", f"{ratio(('ours', n), ('llama.cpp', n)):.2f}",
            f"{ratio(('deterministic', n), ('ours', n)):.2f}", f"{n / limit:.0f}",
        ])  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="llama-1b", choices=models.SHAPES)
    parser.add_argument("--recipes", default="Q4_0,Q4_K_M")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--peer-python", default=sys.executable)
    args = parser.parse_args()
    rows = []
    for recipe in args.recipes.split(","):
        path = Path(args.folder) / f"{args.shape}-{recipe}.gguf"
        if not path.exists():
            models.make(args.shape, recipe, path)
        rows += compare(recipe, path, args)
        print(rows[-len(SEQUENCES) :], file=sys.stderr, flush=True)
    head = [
        "type", "requests", "tok/s together", "times one", "llama.cpp", "times one", "ratio", "deterministic", "a read each",
    ]  # fmt: skip
    body = (
        f"{args.shape}, random weights, {args.threads} threads, prompts of {PROMPT} tokens, {GENERATED} tokens each; medians of {args.rounds} rounds in turns.\n"
        "`deterministic` is its speed as a part of ours; the last column would be one plain read of the weights for each token of all requests.\n\n"
    )
    results.publish(__file__, "Requests side by side", body + results.table(head, rows))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        who, file, n_threads = sys.argv[2], sys.argv[3], int(sys.argv[4])
        theirs(file, n_threads) if who == "llama.cpp" else ours(file, n_threads, who == "deterministic")
    else:
        main()
