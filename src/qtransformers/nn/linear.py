"""Products with stored weights."""

from __future__ import annotations

from typing import Any

from qtransformers.kernels import kernels_for


def linear(x: Any, w: Any, bias: Any = None) -> Any:
    """`x [T, in] f32` times a stored weight `[out, in]`, plus `bias [out]` where there is one: `[T, out]` f32."""
    return kernels_for(x).linear(x, w, bias)


def embedding(tokens: Any, w: Any) -> Any:
    """Rows of a stored weight `[vocab, n_embd]` by token id `[T]`: `[T, n_embd]` f32."""
    return kernels_for(tokens).embedding(tokens, w)
