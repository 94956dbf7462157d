"""Devices by the names that plans have for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from qtransformers.errors import InsufficientMemoryError

READ, ROUNDS = 1 << 30, 4
# What other errors say where a device is full: of the driver, and of cuBLAS, which wants memory of its own
FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA_ERROR_OUT_OF_MEMORY")


@triton.jit
def _probe(x):
    tl.store(x, 1)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on tensors in main memory."""
    return not isinstance(_probe, triton.runtime.JITFunction)


def torch_device(name: str) -> torch.device:
    """The device called `cuda:0` in a plan; in Triton's interpreter that is the CPU."""
    return torch.device("cpu") if interpreted() else torch.device(name)


def unseen(devices: Sequence[str]) -> str | None:
    """Why torch cannot use GPUs that the driver shows; None where it can."""
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if interpreted() or all(int(name.removeprefix("cuda:")) < n for name in devices):
        return None
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for the CPU alone"
    return (
        f"torch {torch.__version__}, built {built}, can use {n} of the GPUs that the driver shows, not {', '.join(devices)}: "
        "install torch for a CUDA that the driver knows (https://pytorch.org/get-started)"
    )


def current(device: torch.device) -> AbstractContextManager[Any]:
    """The device that kernels are launched on while a block runs: Triton does not look where tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def read_seconds(n: int, device: str) -> float:
    """Seconds of a plain read of `n` bytes of a device's memory, by torch's sum of at most a gigabyte of it, again and again."""
    place = torch_device(device)
    x = torch.zeros(max(1, min(n, READ) // 4), dtype=torch.float32, device=place)
    x.sum()
    start = perf_counter()
    for _ in range(ROUNDS):
        found = x.sum()
    found.item()
    return (perf_counter() - start) / ROUNDS * n / x.nbytes


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device was full: torch's own error, or that of a library it calls."""
    return isinstance(error, torch.OutOfMemoryError) or any(name in str(error) for name in FULL)


def give_back() -> None:
    """Let other programs have what torch keeps of memory that is free again."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def zeros(n: int, device: str) -> torch.Tensor:
    """So many bytes of 0 on a device; InsufficientMemoryError."""
    try:
        return torch.zeros(n, dtype=torch.uint8, device=torch_device(device))
    except torch.OutOfMemoryError as e:
        raise out_of_memory(n, device) from e


def out_of_memory(n: int, device: str) -> InsufficientMemoryError:
    """What to say where `n` bytes more do not fit."""
    free, total = free_bytes(device)
    return InsufficientMemoryError(
        f"{device} has {free / 2**30:.1f} GiB free of {total / 2**30:.1f}, and {n / 2**30:.1f} GiB more are needed. "
        "Lower context_length, take a smaller cache type, or keep some layers on the CPU (qtransformers plan)."
    )


def free_bytes(device: str) -> tuple[int, int]:
    """Bytes that are free on a device, and that it has in all."""
    place: Any = torch_device(device)
    return torch.cuda.mem_get_info(place) if place.type == "cuda" else (0, 0)


def floats(shape: tuple[int, ...], device: str) -> torch.Tensor:
    """F32 zeros on a device."""
    return zeros(4 * math.prod(shape), device).view(torch.float32).view(shape)


def array(values: NDArray[np.float32], device: str) -> torch.Tensor:
    """An array on a device."""
    try:
        return torch.from_numpy(np.array(values)).to(torch_device(device))
    except torch.OutOfMemoryError as e:
        raise out_of_memory(values.nbytes, device) from e


def shared_bytes(device: torch.device) -> int:
    """Shared memory that one program may have on a device; 0 in the interpreter."""
    if interpreted():
        return 0
    found: int = triton.runtime.driver.active.utils.get_device_properties(device.index or 0)["max_shared_mem"]
    return found
