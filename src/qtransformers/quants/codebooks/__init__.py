"""The IQ grids, sign patterns and value tables: numbers taken from llama.cpp by tools/codebooks.py, read here and by the C++ build."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@cache
def codebook(name: str) -> NDArray[np.int8]:
    """A codebook `[points, values]` by the name of its file, read-only."""
    text = (Path(__file__).parent / f"{name}.txt").read_text(encoding="utf-8")
    head, *lines = [line for line in text.splitlines() if not line.startswith("#")]
    values = np.array(head.split()[1:], np.int8)
    points = np.array([[int(digit, 16) for digit in word] for line in lines for word in line.split()])
    book = values[points]
    book.setflags(write=False)
    return book
