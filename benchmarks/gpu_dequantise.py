"""Blocks to floats on the card: every type, checked bit by bit and timed; and weights on their way to it."""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from card import Card, seconds
from results import table

from qtransformers.kernels.staging import staging
from qtransformers.kernels.triton.blocks import LAYOUTS
from qtransformers.kernels.triton.dequantise import OUTPUTS, dequantise
from qtransformers.kernels.triton.upload import Upload
from qtransformers.quants import reference_dequantize
from qtransformers.types import BY_NAME, QuantType

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from blocks import edge_blocks, random_blocks

N = 1 << 28  # values decoded, which the cache does not hold
SOME = 1 << 18  # of them made, the others are copies
CHECKED = 1 << 16  # values whose bits are compared
SENT = 4 << 30  # bytes
TYPES = tuple(LAYOUTS)
TINY = {"N": 1 << 12, "SOME": 1 << 11, "CHECKED": 1 << 10, "SENT": 1 << 22, "TYPES": ("Q4_K", "MXFP4")}
BITS = {4: torch.int32, 2: torch.int16}


def measure(card: Card, options) -> tuple[str, str]:
    """The title and text for RESULTS.md."""
    rows = []
    for name in TYPES:
        kind = BY_NAME[name]
        wrong = [str(dtype) for dtype in OUTPUTS if not exact(kind, dtype, card.device)]
        cells = [name, f"WRONG in {', '.join(wrong)}" if wrong else "all"]
        for dtype in (torch.float32, torch.bfloat16):
            speed = rate(kind, dtype, card.device)
            cells += [f"{speed / 1e9:,.0f}", f"{100 * speed / card.copy:.0f}%"]
        rows.append(cells)
        print(*cells, flush=True)
    head = ("type", "bits as NumPy's", "to f32, GB/s", "of copy", "to bf16, GB/s", "of copy")
    text = (
        f"GB/s counts blocks read and floats written, {N:,} values at a time; the bits are compared on random blocks and on "
        "infinities, NaN, zeros and subnormals, in f32, f16 and bf16."
    )
    return "blocks to floats", f"{text}\n\n{table(head, rows)}\n\n{uploads(card)}"


def exact(kind: QuantType, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the card gives the bits of the NumPy truth, rounded by torch where `dtype` is narrower."""
    raw = np.concatenate(
        [random_blocks(kind, max(1, CHECKED // 2 // kind.block_size)), edge_blocks(kind, specials=True)]
    )
    truth = torch.from_numpy(reference_dequantize(raw, kind)).to(dtype)
    found = dequantise(torch.from_numpy(raw).to(device), kind, truth.shape, dtype).cpu()
    bits = BITS[dtype.itemsize]
    return bool(((found.view(bits) == truth.view(bits)) | (found.isnan() & truth.isnan())).all())


def rate(kind: QuantType, dtype: torch.dtype, device: torch.device) -> float:
    """Bytes read and written per second."""
    some = torch.from_numpy(random_blocks(kind, SOME // kind.block_size)).to(device)
    data = some.repeat(N // SOME)
    out = torch.empty(N, dtype=dtype, device=device)
    return (data.nbytes + out.nbytes) / seconds([lambda: dequantise(data, kind, (N,), dtype, out)])


def pinned_copy(data: np.ndarray, device: torch.device) -> float:
    """Bytes per second of one copy from pinned memory: what the bus gives."""
    pinned = torch.from_numpy(data)
    pinned = pinned.pin_memory() if device.type == "cuda" else pinned
    out = torch.empty_like(pinned, device=device)
    return data.size / seconds([lambda: out.copy_(pinned, non_blocking=True)], rounds=5)


def uploads(card: Card) -> str:
    """Weights from main memory, as they are and decoded."""
    kind = BY_NAME["Q4_K"]
    some = random_blocks(kind, min(1 << 14, SENT // 1024))
    data = np.tile(some, SENT // some.size)
    quarter = data[: some.size * (SENT // some.size // 4)]  # the floats take more room
    bus = pinned_copy(data, card.device)
    lines = []
    for what, decoded in (("as they are", False), ("decoded to bf16 on arrival", True)):
        before = card.taken()
        start = time.perf_counter()
        with Upload(card.device) as upload:
            if decoded:
                shape = (quarter.size // kind.block_bytes, kind.block_size)
                found = upload.floats(quarter, kind, shape, torch.bfloat16)
            else:
                found = upload.blocks(data)
        card.wait()
        speed = upload.done / (time.perf_counter() - start)
        extra = card.taken(most=True) - before - found.nbytes
        said = staging(decoded)
        lines.append(
            f"Blocks of Q4_K from main memory, {what}: {speed / 1e9:.1f} GB/s, {100 * speed / bus:.0f}% of one pinned copy "
            f"({bus / 1e9:.1f} GB/s), through {said.pinned >> 20} MiB of pinned memory; {extra >> 20} MiB on the card beside the "
            f"weights, where {said.device >> 20} are stated."
        )
        del found
    return "\n\n".join(lines)
