"""How a type's blocks become numbers on the GPU: one decoder a type, for every kernel.

A decoder reads one *plane* of many blocks, that is what one shift of its words yields. It gives codes, four signed bytes in a
word, as the GPU's dot products take them, and what groups of them are multiplied with and lessened by:

    words [R, B, G, W] int32, scale [R, B, G] f32, minimum [R, B, G] f32

value = scale * code - minimum, in floats rounded as the NumPy truth rounds them: kernels that promise its bits are launched
with `enable_fp_fusion=False`. A word's four values follow each other; where the first lies in the block, `Layout` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl


@dataclass(frozen=True)
class Layout:
    """Planes of a type's blocks. The values of plane p, group g, word w begin in the block at

    `plane * p + outer * (g // inner) + step * (g % inner) + 4 * w`.
    """

    decode: Any  # (blocks [R, B] pointers to bytes, p constexpr) -> words, scale, minimum
    planes: int
    groups: int  # of a plane
    words: int  # of a group
    plane: int = 0
    outer: int = 0
    inner: int = 1
    step: int = 0
    has_minimum: bool = False


@triton.jit
def half_at(at):
    """The f16 at pointers to bytes, as f32."""
    return tl.load(at.to(tl.pointer_type(tl.float16))).to(tl.float32)


@triton.jit
def word_at(at):
    """Four bytes at pointers to bytes of which only a multiple of two is sure, as a word."""
    pair = at.to(tl.pointer_type(tl.uint16))
    return tl.load(pair).to(tl.int32) | (tl.load(pair + 1).to(tl.int32) << 16)


@triton.jit
def decode_q8_0(blocks, P: tl.constexpr):
    """32 values: `d q`."""
    scale = half_at(blocks)[:, :, None]
    words = word_at((blocks + 2)[:, :, None, None] + 4 * tl.arange(0, 8)[None, None, None, :])
    return words, scale, tl.zeros_like(scale)


LAYOUTS = {
    "Q8_0": Layout(decode_q8_0, planes=1, groups=1, words=8),
}
