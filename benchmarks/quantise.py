"""Encoding speed and error of every searched type: ours against libggml's ggml_quantize_chunk, in turns, with as many threads.

A Gaussian matrix with heavy tails, without and with an importance of its columns; millions of values a second, and the quotient of
the weighted squared errors. Usage: PYTHONPATH=src python benchmarks/quantise.py --library .../llama_cpp/lib/libggml-base.so [--types Q4_K ...]
"""

import argparse
import ctypes
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from results import fastest, publish, table

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from qtransformers.machine import usable_cores
from qtransformers.quants import quantize
from qtransformers.quants.weights import WEIGHTS
from qtransformers.types import BY_NAME, QuantType
from weights import errors, importance, samples

ROWS = 2048


class Peer:
    """libggml, its rows shared out to threads as llama-quantize does."""

    def __init__(self, library: str, threads: int) -> None:
        self.lib = ctypes.CDLL(library)
        self.lib.ggml_quantize_chunk.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
        ]  # fmt: skip
        self.lib.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.lib.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
        self.threads = threads
        self.pool = ThreadPoolExecutor(threads)

    def quantize(
        self, x: np.ndarray, type: QuantType, out: np.ndarray, weights: np.ndarray | None, rows: int = 64
    ) -> None:
        def part(start: int) -> None:
            n = min(rows, len(x) - start)
            at = None if weights is None else weights.ctypes.data
            self.lib.ggml_quantize_chunk(type.id, x.ctypes.data, out.ctypes.data, start * x.shape[1], n, x.shape[1], at)

        list(self.pool.map(part, range(0, len(x), rows)))

    def needs_importance(self, type: QuantType) -> bool:
        self.lib.ggml_quantize_init(type.id)
        return bool(self.lib.ggml_quantize_requires_imatrix(type.id))


def measure(type: QuantType, x: np.ndarray, peer: Peer, rounds: int) -> list[str]:
    row = [type.name]
    ours, theirs = (np.empty(type.row_bytes(x.size), np.uint8) for _ in range(2))
    needed = np.ones(x.shape[1], np.float32) if peer.needs_importance(type) else None
    for weighted in (False, True):
        w = importance(x) if weighted else None
        seconds = fastest(
            {
                "ours": lambda w=w: quantize(x, type, ours, importance=w, threads=peer.threads),
                "theirs": lambda w=w: peer.quantize(x, type, theirs, needed if w is None else w),
            },
            rounds,
        )
        off = [errors(blocks, x, type, weighted)["searched"] for blocks in (ours, theirs)]
        speed = [x.size / seconds[who] / 1e6 for who in ("ours", "theirs")]
        row += [f"{speed[0]:.1f}", f"{speed[1]:.1f}", f"{speed[0] / speed[1]:.1f}", f"{off[0] / off[1]:.3f}"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", required=True)
    parser.add_argument("--types", nargs="+", default=list(WEIGHTS), choices=list(WEIGHTS))
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    peer = Peer(args.library, usable_cores())
    x = samples(args.rows)["tails"]
    rows = [measure(BY_NAME[name], x, peer, args.rounds) for name in args.types]
    text = f"{x.shape[0]} rows of {x.shape[1]}, {peer.threads} threads each; error: ours over theirs, with the weights of the search.\n\n"
    head = ["type", "ours, M/s", "libggml", "times", "error", "ours with importance", "libggml", "times", "error"]
    body = text + table(head, rows)
    if args.types == list(WEIGHTS):
        publish(__file__, "Encoding", body)
    else:
        print(body)


if __name__ == "__main__":
    main()
