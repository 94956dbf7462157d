"""The graphics card that GPU benchmarks run on: its measured limits, and how long calls take on it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

COPIED = 1 << 30  # bytes, far more than any card's cache
WIDE = 8192  # rows and columns of the matrices


@dataclass(frozen=True)
class Card:
    """A card and what it was seen to do at most."""

    device: torch.device
    name: str
    copy: float  # bytes read and written per second by a copy
    bf16: float  # operations per second of cuBLAS in bfloat16

    def __str__(self) -> str:
        return (
            f"{self.name}, torch {torch.__version__}: copies at {self.copy / 1e9:,.0f} GB/s read and written, "
            f"cuBLAS bf16 at {self.bf16 / 1e12:,.0f} TFLOP/s"
        )


def measured(device: str = "cuda") -> Card:
    """The limits of a card, measured now."""
    place = torch.device(device)
    x = torch.empty(COPIED, dtype=torch.uint8, device=place)
    y = torch.empty_like(x)
    a, b = (torch.randn(WIDE, WIDE, device=place).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    copy = 2 * COPIED / seconds([lambda: y.copy_(x)])
    bf16 = 2 * WIDE**3 / seconds([lambda: torch.matmul(a, b, out=out)])
    return Card(place, torch.cuda.get_device_name(place), copy, bf16)


def seconds(calls: Sequence[Callable[[], object]], rounds: int = 15, repeats: int = 1) -> float:
    """Seconds of a call on the current card, the median of `rounds`.

    The calls take turns, so that more data than the cache holds can be given to each of many small ones: `repeats` times all of
    them are then captured in one graph, which leaves out what launching them costs.
    """
    for call in calls:
        call()
    torch.cuda.synchronize()
    n, run = 1, calls[0]
    if repeats * len(calls) > 1:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in [*calls] * repeats:
                call()
        n, run = repeats * len(calls), graph.replay
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / n)
    return median(times)
