"""Products with stored weights on the card: few tokens against its memory, many against cuBLAS in bfloat16."""

import sys
from itertools import product
from pathlib import Path

import numpy as np
import torch
from card import Card, seconds
from results import table

from qtransformers.kernels import reference
from qtransformers.kernels.triton import multiply
from qtransformers.kernels.triton.blocks import LAYOUTS
from qtransformers.kernels.triton.weights import Weight, bind
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from blocks import random_blocks

ROWS, COLUMNS = 14336, 4096  # of a feed-forward layer of an 8B model
SHAPES = ((4096, 4096), (14336, 4096), (4096, 14336), (128256, 4096))
GOALS = ("Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q4_0", "IQ4_XS", "MXFP4")
ROTATED = 192 << 20  # bytes of weights that take turns, more than any card's cache
MANY = (16, 64, 256, 512, 2048, 8192)  # tokens
CHECKED = (1, 3, 8, 40, 300)  # tokens
CHECKED_ROWS = 77
NAMES = tuple(name for name in LAYOUTS if not BY_NAME[name].activation)
TINY = {
    "ROWS": 16, "COLUMNS": 256, "SHAPES": ((16, 256),) * 4, "GOALS": ("Q4_K",), "ROTATED": 1, "MANY": (16,), "CHECKED": (1,), "CHECKED_ROWS": 5, "NAMES": ("Q4_K",)
}  # fmt: skip
BOUNDS = {"fast": 5e-3, "high": 1e-5, "exact": 1e-6}  # of the norms of x and of a row


def measure(card: Card, options) -> tuple[str, str]:
    """The title and text for RESULTS.md."""
    read = card.read
    parts = [
        f"Reading memory: {read / 1e9:,.0f} GB/s. Products of [{ROWS}, {COLUMNS}], weights larger than the cache, in CUDA graphs."
    ]
    rows = []
    for name in NAMES:
        cells = [name, worst(name, card.device)]
        for tokens in (1, 2, 4, 8):
            _, rate = speed(name, ROWS, COLUMNS, tokens, card.device)
            cells.append(f"{100 * rate / read:.0f}%")
        rows.append(cells)
        print(*cells, flush=True)
    head = ("type", "error", "1 token, of reading", "2", "4", "8")
    parts.append(f"`fast`; the error is the worst of all accuracies, as a part of its bound:\n\n{table(head, rows)}")
    rows = []
    for name in GOALS:
        shares = (100 * speed(name, *shape, 1, card.device)[1] / read for shape in SHAPES)
        rows.append([name, *(f"{share:.0f}%" for share in shares)])
        print(*rows[-1], flush=True)
    head = ("one token, of reading", *(f"{r} x {c}" for r, c in SHAPES))
    parts.append(table(head, rows))
    rows = []
    for tokens in MANY:
        plain = cublas(tokens, card.device)
        cells = [str(tokens), f"{plain * 1e6:.0f} us"]
        for name in ("Q4_K", "Q6_K", "Q8_0"):
            took, _ = speed(name, ROWS, COLUMNS, tokens, card.device)
            cells.append(f"{100 * plain / took:.0f}%")
        rows.append(cells)
        print(*cells, flush=True)
    head = ("tokens", "cuBLAS bf16", "Q4_K, of its speed", "Q6_K", "Q8_0")
    parts.append(table(head, rows))
    return "products", "\n\n".join(parts)


def weights(name: str, rows: int, columns: int, device: torch.device, accuracy: str = "fast") -> list[Weight]:
    """Copies of a matrix, larger than the cache together."""
    kind = BY_NAME[name]
    some = torch.from_numpy(random_blocks(kind, columns // kind.block_size * 64))
    data = some.to(device).repeat(-(-rows // 64))[: rows * kind.row_bytes(columns)]
    copies = max(1, ROTATED // data.numel())
    return [Weight(data.clone(), (rows, columns), kind, name, accuracy) for _ in range(copies)]


def speed(name: str, rows: int, columns: int, tokens: int, device: torch.device) -> tuple[float, float]:
    """Seconds of a product, and bytes of weights per second."""
    x = torch.randn(tokens, columns, device=device)
    ws = weights(name, rows, columns, device)
    took = seconds([lambda w=w: multiply.linear(x, w) for w in ws])
    return took, ws[0].data.numel() / took


def cublas(tokens: int, device: torch.device) -> float:
    """Seconds of the same product in bfloat16."""
    x = torch.randn(tokens, COLUMNS, device=device, dtype=torch.bfloat16)
    ws = [torch.randn(ROWS, COLUMNS, device=device, dtype=torch.bfloat16) for _ in range(2)]
    return seconds([lambda w=w: x @ w.T for w in ws])


def worst(name: str, device: torch.device) -> str:
    """The largest error of small products against float64, as a part of its bound."""
    kind, found = BY_NAME[name], 0.0
    columns = 5 * max(kind.block_size, 256)
    tensor = QTensor(
        name, kind, (CHECKED_ROWS, columns), random_blocks(kind, CHECKED_ROWS * columns // kind.block_size)
    )
    norms = np.linalg.norm(tensor.dequantize(), axis=-1)
    for accuracy, tokens in product(BOUNDS, CHECKED):
        x = np.random.default_rng(tokens).standard_normal((tokens, columns), np.float32)
        y = multiply.linear(torch.from_numpy(x).to(device), bind(tensor, accuracy, device)).cpu().numpy()
        error = np.abs(y - reference.linear(x, tensor)) / (np.linalg.norm(x, axis=-1)[:, None] * norms)
        found = max(found, float(error.max()) / BOUNDS[accuracy])
    return f"{found:.2f}" if found <= 1 else f"WRONG: {found:.2g}"
