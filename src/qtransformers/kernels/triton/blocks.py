"""How a type's blocks become numbers on the GPU: one decoder a type, for every kernel.

A decoder `decode(blocks, book, P)` reads *plane* P of many blocks, that is what one shift of its words yields. `blocks [R, B]`
are pointers to bytes, as even as a multiple of `Layout.align` is; `book` points to `codebook_words(layout.book)` on the
device, None where the type has none. It gives codes, four signed bytes in a word, as the GPU's dot products take them, and
what groups of them are multiplied with and lessened by:

    words [R, B, G, W] int32, scale [R, B, G] f32, minimum [R, B, G] f32

value = scale * code - minimum, in floats rounded as the NumPy truth rounds them: kernels that promise its bits are launched
with `enable_fp_fusion=False`. A word's four values follow each other; where the first lies in the block, `Layout` says.
Scales and minima may have one group for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

from qtransformers.kernels.triton import decode_k, decode_legacy
from qtransformers.types import BY_NAME


@dataclass(frozen=True)
class Layout:
    """Planes of a type's blocks. The values of plane p, group g, word w begin in the block at

    `plane * p + outer * (g // inner) + step * (g % inner) + 4 * w`.
    """

    decode: Any  # (blocks [R, B] pointers to bytes, book, P constexpr) -> words, scale, minimum
    planes: int
    groups: int  # of a plane
    words: int  # of a group
    plane: int = 0
    outer: int = 0
    inner: int = 1
    step: int = 0
    has_minimum: bool = False
    book: str | None = None


LAYOUTS = {
    "Q4_0": Layout(decode_legacy.q4_0, planes=2, groups=1, words=4, plane=16),
    "Q4_1": Layout(decode_legacy.q4_1, planes=2, groups=1, words=4, plane=16, has_minimum=True),
    "Q5_0": Layout(decode_legacy.q5_0, planes=2, groups=1, words=4, plane=16),
    "Q5_1": Layout(decode_legacy.q5_1, planes=2, groups=1, words=4, plane=16, has_minimum=True),
    "Q8_0": Layout(decode_legacy.q8_0, planes=1, groups=1, words=8),
    "Q2_K": Layout(decode_k.q2_k, planes=4, groups=4, words=4, plane=32, outer=128, inner=2, step=16, has_minimum=True),
    "Q3_K": Layout(decode_k.q3_k, planes=4, groups=4, words=4, plane=32, outer=128, inner=2, step=16),
    "Q4_K": Layout(decode_k.q4_k, planes=2, groups=4, words=8, plane=32, outer=64, has_minimum=True),
    "Q5_K": Layout(decode_k.q5_k, planes=2, groups=4, words=8, plane=32, outer=64, has_minimum=True),
    "Q6_K": Layout(decode_k.q6_k, planes=2, groups=8, words=4, plane=64, outer=128, inner=4, step=16),
}  # fmt: skip


def alignment(name: str) -> int:
    """Bytes of which a multiple begins each block of a type, where the first begins at a multiple of 16."""
    return gcd(BY_NAME[name].block_bytes, 16)
