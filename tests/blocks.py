"""Valid blocks of every type, made from the rows of the type table, for tests and benchmarks."""

import numpy as np

from qtransformers.types import QuantType

# Halves at the edges: zeros, subnormals, the smallest normal, one, a third, the largest.
EDGES = np.array([0, 0x8000, 1, 0x83FF, 0x0400, 0x8400, 0x3C00, 0xB555, 0x7BFF, 0xFBFF], np.uint16)


def random_blocks(type: QuantType, n: int, seed: int = 0) -> np.ndarray:
    """`n` blocks `[n * block_bytes]` of random payload whose scales are finite and of moderate size, as weights have them."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, n * type.block_bytes, np.uint8).view(type.block)
    for field, (dtype, _) in type.block.fields.items():
        if dtype.base.kind == "f":
            blocks[field] = rng.choice([-1, 1], blocks[field].shape) * rng.uniform(2e-3, 2e-1, blocks[field].shape)
    if type.name == "BF16":
        blocks["x"] = rng.standard_normal(n).astype(np.float32).view(np.uint32) >> 16
    if type.name == "MXFP4":
        blocks["e"] = rng.integers(115, 126, n)
    if type.name == "IQ1_M":
        hide_scale(blocks, rng.uniform(2e-3, 2e-1, n).astype(np.float16).view(np.uint16))
    return blocks.view(np.uint8)


def edge_blocks(type: QuantType, seed: int = 0) -> np.ndarray:
    """Blocks with every edge in every float field (subnormal, zero, negative, largest) over payloads of zeros, ones and noise."""
    rng = np.random.default_rng(seed)
    n = 4 * len(EDGES) ** 2
    blocks = random_blocks(type, n, seed).copy()
    blocks.reshape(4, -1)[:2] = [[0], [255]]
    blocks = blocks.view(type.block)
    turn = np.arange(n)
    for dtype, _ in type.block.fields.values():
        if dtype.base.kind == "f":
            field = next(f for f, (d, _) in type.block.fields.items() if d is dtype)
            blocks[field] = 0
    edges = EDGES.view(np.float16)
    for k, field in enumerate(f for f, (d, _) in type.block.fields.items() if d.base.kind == "f"):
        blocks[field] = edges[turn // len(EDGES) ** k % len(EDGES)]
    if type.name in ("F32", "F64", "Q8_K"):
        field, kind = type.block.names[0], type.block[0]
        info = np.finfo(kind)
        wide = [0.0, -0.0, info.smallest_subnormal, -info.tiny, info.max / 255, -info.max / 255, 1 / 3, 3e-42]
        blocks[field] = rng.choice(np.array(wide, kind), n)
    if type.name == "BF16":
        blocks["x"] = rng.integers(0, 1 << 16, n)
    if type.name == "MXFP4":
        blocks["e"] = turn % 256
    if type.name == "NVFP4":
        blocks["d"] = np.arange(4 * n).reshape(n, 4) % 256
    if type.name == "IQ1_M":
        hide_scale(blocks, EDGES[turn % len(EDGES)])
    return blocks.view(np.uint8)


def hide_scale(blocks: np.ndarray, scale: np.ndarray) -> None:
    """Put the bits of a half where IQ1_M keeps them: the top nibbles of its four words of scales, lowest first."""
    nibbles = scale[:, None] >> np.array([0, 4, 8, 12], np.uint16) & 15
    blocks["scales"] = blocks["scales"] & 0x0FFF | nibbles.astype(np.uint16) << 12
