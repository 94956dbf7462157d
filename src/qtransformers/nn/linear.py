"""Products with stored weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qtransformers.kernels import kernels_for
from qtransformers.nn.adapted import Adapted, StandIn, base_of
from qtransformers.nn.stages import Elsewhere


def linear(x: Any, w: Any, bias: Any = None) -> Any:
    """`x [T, in] f32` times a stored weight `[out, in]`, plus `bias [out]` where there is one: `[T, out]` f32."""
    if isinstance(w, StandIn):
        return w.product(x, bias)
    return kernels_for(x).linear(x, w, bias)


def linears(x: Any, ws: Sequence[Any], biases: Sequence[Any]) -> list[Any]:
    """`linear` of one `x [T, in]` by each weight, with its bias or None: as many `[T, out]`, for the price of reading x once."""
    if any(isinstance(w, StandIn) for w in ws):
        if any(isinstance(w, StandIn) and not isinstance(w, Adapted) for w in ws):
            return [linear(x, w, bias) for w, bias in zip(ws, biases, strict=True)]
        found = kernels_for(x).linears(x, [base_of(w) for w in ws], biases)
        return [w.add(x, y) if isinstance(w, Adapted) else y for w, y in zip(ws, found, strict=True)]
    return kernels_for(x).linears(x, ws, biases)


def per_head(x: Any, w: Any) -> Any:
    """`x [T, H, in]`, each head times a matrix of its own of a stored weight `[H, out, in]`: `[T, H, out]`."""
    return w.per_head(x) if isinstance(w, StandIn) else kernels_for(x).per_head(x, w)


def embedding(tokens: Any, w: Any) -> Any:
    """Rows of a stored weight `[vocab, n_embd]` by token id `[T]`: `[T, n_embd]` f32."""
    return w.rows_of(tokens) if isinstance(w, Elsewhere) else kernels_for(tokens).embedding(tokens, w)
