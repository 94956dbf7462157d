"""Valid blocks of every type, made from the rows of the type table, for tests and benchmarks."""

import hashlib

import numpy as np

from qtransformers.types import QuantType

# Bits of halves at the edges: zeros, subnormals, the smallest normals, one, a third, the largest; and those that are no numbers.
EDGES = np.array([0, 0x8000, 1, 0x83FF, 0x0400, 0x8400, 0x3C00, 0xB555, 0x7BFF, 0xFBFF], np.uint16)
SPECIALS = np.array([0x7C00, 0xFC00, 0x7E00], np.uint16)

LIKE_AVX2 = ("avx512vnni", "avxvnni")  # sets with products of many tokens of their own, which give the same bits


def random_blocks(type: QuantType, n: int, seed: int = 0) -> np.ndarray:
    """`n` blocks, `[n * block_bytes]`, of random payload whose scales are finite and of moderate size, as weights have them."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, n * type.block_bytes, np.uint8).view(type.block)
    for field in float_fields(type):
        blocks[field] = rng.choice([-1, 1], n) * rng.uniform(2e-3, 2e-1, n)
    if type.name == "BF16":
        blocks["x"] = rng.standard_normal(n).astype(np.float32).view(np.uint32) >> 16
    elif type.name == "MXFP4":
        blocks["e"] = rng.integers(115, 126, n)
    elif type.name == "NVFP4":
        blocks["d"] = rng.integers(8, 64, (n, 4))
    elif type.name == "IQ1_M":
        hide_scale(blocks, rng.uniform(2e-3, 2e-1, n).astype(np.float16).view(np.uint16))
    return blocks.view(np.uint8)


def edge_blocks(type: QuantType, specials: bool = False, seed: int = 0) -> np.ndarray:
    """Every pair of edges in the scales over payloads of zeros, of ones and of noise; with infinities and NaN if `specials`."""
    edges = np.concatenate([EDGES, SPECIALS]) if specials else EDGES
    n = 3 * len(edges) ** 2
    turn = np.arange(n)
    raw = np.random.default_rng(seed).integers(0, 256, (3, n // 3 * type.block_bytes), np.uint8)
    raw[:2] = [[0], [255]]
    blocks = raw.reshape(-1).view(type.block)
    for k, field in enumerate(float_fields(type)):
        edge = edges.view(np.float16)[turn // len(edges) ** k % len(edges)]
        blocks[field] = edge
        if type.block[field].itemsize > 2:  # wider floats have edges of their own
            info = np.finfo(type.block[field])
            wide = np.array([info.smallest_subnormal, -info.tiny, info.max / 256, 3e-42, 1 / 3], type.block[field])
            blocks[field] = np.where(turn % 2 == 0, edge, wide[turn // 2 % len(wide)])
    if type.name == "BF16":
        blocks["x"] = np.arange(n) * 193 % 0x7F80
    elif type.name == "MXFP4":
        blocks["e"] = turn % 256
    elif type.name == "NVFP4":
        blocks["d"] = np.arange(4 * n).reshape(n, 4) % 256
    elif type.name == "IQ1_M":
        hide_scale(blocks, edges[turn % len(edges)])
    return blocks.view(np.uint8)


def stable_blocks(type: QuantType, n: int) -> np.ndarray:
    """`n` blocks that no version of anything changes, for golden numbers: a hash's bytes, the scales made finite."""
    raw = hashlib.shake_256(type.name.encode()).digest(n * type.block_bytes)
    blocks = np.frombuffer(bytearray(raw), type.block)
    for field in float_fields(type):
        bits = blocks[field].view(f"<u{type.block[field].itemsize}")
        bits &= ~bits.dtype.type(1 << (8 * bits.itemsize - 2))  # the top bit of the exponent
    return blocks.view(np.uint8)


def float_fields(type: QuantType) -> list[str]:
    return [name for name in type.block.names if type.block[name].base.kind == "f"]


def hide_scale(blocks: np.ndarray, scale: np.ndarray) -> None:
    """Put the bits of a half where IQ1_M keeps them: the top nibbles of its four words of scales, lowest first."""
    nibbles = scale[:, None] >> np.array([0, 4, 8, 12], np.uint16) & 15
    blocks["scales"] = blocks["scales"] & 0x0FFF | nibbles.astype(np.uint16) << 12


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two float arrays are equal bit for bit, any NaN being as good as another."""
    bits = f"u{a.dtype.itemsize}"
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and bool(((a.view(bits) == b.view(bits)) | (np.isnan(a) & np.isnan(b))).all())
    )


def stable_values(n: int) -> np.ndarray:
    """`n` finite floats that nothing changes: normal, tiny and zero magnitudes up to 60000, ties of every rounding among them."""
    bits = np.frombuffer(hashlib.shake_256(b"values").digest(4 * n), "<u4").copy()
    exponent = bits >> 23 & 31
    bits = bits & np.uint32(0x807FFFFF) | (exponent + 127 - 16) << 23
    x = bits.view(np.float32)
    x[::7] = np.round(x[::7] * 2) / 2
    x[::11] *= np.float32(1e-9)
    x[::13] = (bits[::13] & np.uint32(0xFFFF8000) | np.uint32(0x8000)).view(np.float32)
    x[320:352] = 0
    return x


def usable_isas() -> list[str]:
    """The instruction sets that this machine can run, the best last; of those in LIKE_AVX2 avx2 stands for all."""
    from qtransformers.native import lib  # the golden scripts make do without the extension

    return [isa for isa in lib.isas()[::-1] if isa not in LIKE_AVX2]
