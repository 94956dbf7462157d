"""Decoding speed of every type: ours on each instruction set, the gguf package's, and a plain copy of as many floats.

One thread. GB/s count the floats that come out. Usage: PYTHONPATH=src python benchmarks/decode.py
"""

import sys
import time
from pathlib import Path

import numpy as np
from results import fastest, publish, table

import gguf

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from blocks import random_blocks, usable_isas
from qtransformers.quants import dequantize
from qtransformers.types import TYPES, QuantType

SMALL, LARGE = 1 << 16, 1 << 24  # values: 256 KB of floats, within a core's cache, and 64 MB, beyond it


def calls(type: QuantType, n: int, peer: bool) -> dict:
    data, out, floats = random_blocks(type, n // type.block_size), np.empty(n, np.float32), np.ones(n, np.float32)
    todo = {isa: lambda isa=isa: dequantize(data, type, out, threads=1, isa=isa) for isa in usable_isas()}
    if peer:
        todo["gguf"] = lambda: gguf.quants.dequantize(data, gguf.GGMLQuantizationType(type.id))
    return {**todo, "copy": lambda: np.copyto(out, floats)}


def known_to_peer(type: QuantType) -> bool:
    try:
        gguf.quants.dequantize(random_blocks(type, 1), gguf.GGMLQuantizationType(type.id))
    except (NotImplementedError, ValueError):
        return False
    return type.name not in ("F32", "Q8_1")  # a view, not a copy; a wrong block size


def measure(type: QuantType) -> list[str]:
    peer, isas = known_to_peer(type), usable_isas()
    cached = fastest(calls(type, SMALL, peer=False), rounds=50, clock=time.thread_time)
    streamed = fastest(calls(type, LARGE, peer), rounds=7, clock=time.thread_time)
    gb_small, gb_large = 4 * SMALL / 1e9, 4 * LARGE / 1e9
    best = min(streamed[isa] for isa in isas)
    return [
        type.name,
        *(f"{gb_small / cached[isa]:.1f}" for isa in isas),
        f"{gb_small / cached['copy']:.1f}",
        *(f"{gb_large / streamed[isa]:.1f}" for isa in isas),
        f"{gb_large / streamed['copy']:.1f}",
        f"{gb_large / streamed['gguf']:.2f}" if peer else "-",
        f"{streamed['gguf'] / best:.0f}" if peer else "-",
    ]


def main() -> None:
    isas = usable_isas()
    head = [
        "type",
        *(f"{isa}, cached" for isa in isas),
        "copy, cached",
        *isas,
        "copy",
        f"gguf {gguf_version()}",
        "times gguf",
    ]
    rows = [measure(type) for type in TYPES.values() if type.family != "int"]
    text = f"GB/s of floats written by one thread in its own time: {SMALL} values within a core's cache, then {LARGE} values beyond it.\n\n"
    publish(__file__, "Decoding", text + table(head, rows))


def gguf_version() -> str:
    from importlib.metadata import version

    return version("gguf")


if __name__ == "__main__":
    main()
