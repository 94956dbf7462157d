"""The graphics card that GPU benchmarks run on: its measured limits, and how long calls take on it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

COPIED = 1 << 30  # bytes, far more than any card's cache
WIDE = 8192  # rows and columns of the matrices
READ = 1 << 30  # bytes


@dataclass(frozen=True)
class Card:
    """A card and what it was seen to do at most; without one, main memory in its place."""

    device: torch.device
    name: str
    copy: float  # bytes read and written per second by a copy
    bf16: float  # operations per second of cuBLAS in bfloat16
    read: float  # bytes read per second by torch's sum

    def __str__(self) -> str:
        return (
            f"{self.name}, torch {torch.__version__}: copies at {self.copy / 1e9:,.0f} GB/s read and written, reads at {self.read / 1e9:,.0f}, "
            f"cuBLAS bf16 at {self.bf16 / 1e12:,.0f} TFLOP/s"
        )

    @property
    def real(self) -> bool:
        """Whether it is one."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Until all that was launched is done."""
        if self.real:
            torch.cuda.synchronize(self.device)

    def clear(self) -> None:
        """Let go what torch keeps of free memory."""
        if self.real:
            torch.cuda.empty_cache()

    def taken(self, most: bool = False) -> int:
        """Bytes of tensors, now or at most since the last such call for now."""
        if not self.real:
            return 0
        if most:
            return torch.cuda.max_memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        return torch.cuda.memory_allocated(self.device)


def measured(tiny: bool = False) -> Card:
    """The limits of the card, measured now."""
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shrink = 1024 if tiny else 1
    x = torch.empty(COPIED // shrink, dtype=torch.uint8, device=place)
    y = torch.empty_like(x)
    wide = WIDE // (64 if tiny else 1)
    a, b = (torch.randn(wide, wide, device=place).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    floats = torch.zeros(READ // 4 // shrink, dtype=torch.float32, device=place)
    copy = 2 * x.nbytes / seconds([lambda: y.copy_(x)])
    bf16 = 2 * wide**3 / seconds([lambda: torch.matmul(a, b, out=out)])
    read = floats.nbytes / seconds([floats.sum])
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else "no card (Triton's interpreter)"
    return Card(place, name, copy, bf16, read)


def seconds(calls: Sequence[Callable[[], object]], rounds: int = 15, repeats: int = 1) -> float:
    """Seconds of a call on the current card, the median of `rounds`; without one, of one round of the first.

    The calls take turns, so that more data than the cache holds can be given to each of many small ones: `repeats` times all of
    them are then captured in one graph, which leaves out what launching them costs.
    """
    if not torch.cuda.is_available():
        start = time.perf_counter()
        calls[0]()
        return time.perf_counter() - start
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
