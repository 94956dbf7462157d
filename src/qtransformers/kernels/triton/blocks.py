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

import numpy as np
from numpy.typing import NDArray

from qtransformers.kernels.triton import decode_iq as iq
from qtransformers.kernels.triton import decode_k as k
from qtransformers.kernels.triton import decode_legacy as legacy
from qtransformers.kernels.triton import decode_microscaling as microscaling
from qtransformers.kernels.triton import decode_ternary as ternary
from qtransformers.quants.codebooks import codebook
from qtransformers.types import BY_NAME


@dataclass(frozen=True)
class Layout:
    """Planes of a type's blocks: each gives `inner` groups in turn. The values of plane p, group g, word w begin in the block at

    `plane * p + outer * (g // inner) + step * (g % inner) + 4 * w`.
    """

    decode: Any  # (blocks [R, B] pointers to bytes, book, P constexpr) -> words, scale, minimum
    planes: int
    groups: int  # of a plane
    words: int  # of a group
    inner: int = 1
    has_minimum: bool = False
    book: str | None = None

    @property
    def step(self) -> int:
        """Values of a group."""
        return 4 * self.words

    @property
    def plane(self) -> int:
        """Values from a plane to the next."""
        return self.inner * self.step

    @property
    def outer(self) -> int:
        """Values from a plane's turn to its next."""
        return self.planes * self.plane


LAYOUTS = {
    "Q4_0": Layout(legacy.q4_0, planes=2, groups=1, words=4),
    "Q4_1": Layout(legacy.q4_1, planes=2, groups=1, words=4, has_minimum=True),
    "Q5_0": Layout(legacy.q5_0, planes=2, groups=1, words=4),
    "Q5_1": Layout(legacy.q5_1, planes=2, groups=1, words=4, has_minimum=True),
    "Q8_0": Layout(legacy.q8_0, planes=1, groups=1, words=8),
    "Q2_K": Layout(k.q2_k, planes=4, groups=4, words=4, inner=2, has_minimum=True),
    "Q3_K": Layout(k.q3_k, planes=4, groups=4, words=4, inner=2),
    "Q4_K": Layout(k.q4_k, planes=2, groups=4, words=8, has_minimum=True),
    "Q5_K": Layout(k.q5_k, planes=2, groups=4, words=8, has_minimum=True),
    "Q6_K": Layout(k.q6_k, planes=2, groups=8, words=4, inner=4),
    "IQ4_NL": Layout(microscaling.iq4_nl, planes=2, groups=1, words=4),
    "IQ4_XS": Layout(microscaling.iq4_xs, planes=2, groups=8, words=4),
    "MXFP4": Layout(microscaling.mxfp4, planes=2, groups=1, words=4),
    "NVFP4": Layout(microscaling.nvfp4, planes=2, groups=4, words=2),
    "IQ2_XXS": Layout(iq.iq2_xxs, planes=1, groups=8, words=8, book="iq2_xxs"),
    "IQ2_XS": Layout(iq.iq2_xs, planes=1, groups=16, words=4, book="iq2_xs"),
    "IQ2_S": Layout(iq.iq2_s, planes=1, groups=16, words=4, book="iq2_s"),
    "IQ3_XXS": Layout(iq.iq3_xxs, planes=1, groups=8, words=8, book="iq3_xxs"),
    "IQ3_S": Layout(iq.iq3_s, planes=1, groups=8, words=8, book="iq3_s"),
    "IQ1_S": Layout(iq.iq1_s, planes=1, groups=8, words=8, book="iq1"),
    "IQ1_M": Layout(iq.iq1_m, planes=1, groups=16, words=4, book="iq1"),
    "TQ1_0": Layout(ternary.tq1_0, planes=1, groups=1, words=64),
    "TQ2_0": Layout(ternary.tq2_0, planes=4, groups=2, words=8),
    "Q1_0": Layout(ternary.q1_0, planes=1, groups=1, words=32),
    "Q2_0": Layout(ternary.q2_0, planes=1, groups=1, words=16),
    "Q8_1": Layout(legacy.q8_1, planes=1, groups=1, words=8),
    "Q8_K": Layout(legacy.q8_k, planes=1, groups=1, words=64),
}  # fmt: skip


def alignment(name: str) -> int:
    """Bytes of which a multiple begins each block of a type, where the first begins at a multiple of 16."""
    return gcd(BY_NAME[name].block_bytes, 16)


def codebook_words(name: str) -> NDArray[np.int32]:
    """A codebook as its decoders read it: four values a word, point by point; the points of IQ1 times eight and 128 more."""
    book = codebook(name)
    if name == "iq1":
        book = (8 * book.astype(np.int16) + 128).astype(np.uint8)
    return np.array(book).view(np.int32).reshape(-1)
