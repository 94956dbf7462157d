"""Where scales may move between weights without changing what a model computes: from the columns of some into what makes their inputs.

A norm, or the rows of a weight, is divided by s; the columns of all that read it are multiplied by s. Which tensors go together
is derived from the tensors that a layer has, in GGUF's names; no architecture is known by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from qtransformers.load import Loaded

F32 = NDArray[np.float32]
Index = NDArray[np.intp]

# What reads the norm before attention, and the one before the feed-forward layer
ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_q_a", "attn_kv_a_mqa", "attn_gate", "ssm_ba")
FEED_FORWARD = (
    "ffn_gate_inp", "ffn_gate_inp_shexp", "ffn_gate", "ffn_up", "ffn_gate_exps", "ffn_up_exps", "ffn_gate_shexp", "ffn_up_shexp",
)  # fmt: skip
INNER_NORMS = (("attn_q_a_norm", ("attn_q_b",)), ("attn_kv_a_norm", ("attn_kv_b", "attn_v_b")))


@dataclass(frozen=True, eq=False)
class Reader:
    """A weight whose columns are multiplied by the scales `s[..., index]`; `index` is None for all in their order."""

    attr: str
    index: Index | None = None  # [in]
    by_rows: bool = False  # a matrix a head whose rows, not columns, meet what is scaled


@dataclass(frozen=True, eq=False)
class Fold:
    """`n` scales, for each of `copies` experts: what is divided by them, and what is multiplied."""

    layer: int | None
    source: str  # a norm, or a weight whose rows are divided
    rows: Index | None  # of the source, that which scale i divides is rows[i]; None: all in their order
    readers: tuple[Reader, ...]
    n: int
    copies: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the scales."""
        return (self.copies, self.n) if self.copies > 1 else (self.n,)


@dataclass(eq=False)
class Factors:
    """What a tensor is multiplied by: its rows (or, of a vector, its values), and its columns."""

    rows: F32 | None = None  # [out], or [n, out] for experts
    columns: F32 | None = None  # [in], or [n, in]

    def apply(self, values: F32) -> F32:
        """`values [..., out, in]` or a vector, with its factors."""
        if self.rows is not None:
            values = values * (self.rows if values.ndim <= self.rows.ndim else self.rows[..., None])
        if self.columns is not None:
            values = values * (self.columns[..., None, :] if values.ndim > 1 else self.columns)
        return values

    def undo(self, values: F32) -> F32:
        """What `apply` was given, of what it gave."""
        rows, columns = (None if side is None else np.float32(1) / side for side in (self.rows, self.columns))
        return Factors(rows, columns).apply(values)


@dataclass(eq=False)
class Folded:
    """The factors of all tensors of a model, by place (layer, attribute), biases included."""

    factors: dict[tuple[int | None, str], Factors] = field(default_factory=dict)

    def of(self, layer: int | None, attr: str) -> Factors:
        """Those of a tensor."""
        return self.factors.setdefault((layer, attr), Factors())

    def add(self, fold: Fold, s: F32, weights: SimpleNamespace) -> None:
        """Take scales `s` of a fold in."""
        layer = weights if fold.layer is None else weights.layers[fold.layer]
        for attr in (fold.source, f"{fold.source}_bias"):
            values = getattr(layer, attr, None)
            if values is not None:
                out = values.shape[:-1] if _is_matrix(values) else values.shape
                factor = np.ones(out, np.float32)
                if fold.rows is None:
                    factor[...] = (1 / s).reshape(out)
                else:
                    factor[fold.rows] = 1 / s
                self._times(fold.layer, attr, "rows", factor)
        for reader in fold.readers:
            factor = s if reader.index is None else s[..., reader.index]
            if reader.by_rows:
                factor = np.broadcast_to(factor, getattr(layer, reader.attr).shape[:-1])
            self._times(fold.layer, reader.attr, "rows" if reader.by_rows else "columns", np.array(factor, np.float32))

    def _times(self, layer: int | None, attr: str, side: str, factor: F32) -> None:
        mine = self.of(layer, attr)
        old = getattr(mine, side)
        setattr(mine, side, factor if old is None else old * factor)


def folds(model: Loaded) -> Iterator[Fold]:
    """Every fold of a model, in the order of the forward pass."""
    for i, layer in enumerate(model.weights.layers):
        yield from _folds_of(layer, i, model.hparams, model.spec.unfolded)
    output, norm = getattr(model.weights, "output", None), getattr(model.weights, "output_norm", None)
    if output is not None and norm is not None and "output" not in model.plan.ties:
        yield Fold(None, "output_norm", None, (Reader("output"),), len(norm))


def _folds_of(w: SimpleNamespace, layer: int, h: Mapping[str, Any], unfolded: tuple[str, ...]) -> Iterator[Fold]:
    def there(*attrs: str) -> tuple[str, ...]:
        return tuple(attr for attr in attrs if getattr(w, attr, None) is not None)

    def readers(*attrs: str) -> tuple[Reader, ...]:
        return tuple(map(Reader, there(*attrs)))

    before = "ffn_norm" if there("ffn_norm") else "" if there("post_ffw_norm") else "post_attention_norm"
    before = before if before and there(before) else "attn_norm"  # side by side with attention
    if there("attn_norm"):
        both = (*ATTENTION, *(FEED_FORWARD if before == "attn_norm" else ()))
        yield Fold(layer, "attn_norm", None, readers(*both), len(w.attn_norm))
    for norm, attrs in INNER_NORMS:
        if there(norm):
            turned = (Reader("attn_k_b", by_rows=True),) if "attn_v_b" in attrs and there("attn_k_b") else ()
            yield Fold(layer, norm, None, (*readers(*attrs), *turned), len(getattr(w, norm)))
    if there("ssm_norm", "ssm_out") == ("ssm_norm", "ssm_out"):
        n, wide = len(w.ssm_norm), w.ssm_out.shape[1]
        yield Fold(layer, "ssm_norm", None, (Reader("ssm_out", np.arange(wide) % n),), n)
    if there("attn_output"):
        yield from _values(w, layer, h, there)
    if before != "attn_norm":
        yield Fold(layer, before, None, readers(*FEED_FORWARD), len(getattr(w, before)))
    for suffix in ("", "_shexp", "_exps"):
        up, down = f"ffn_up{suffix}", f"ffn_down{suffix}"
        if there(up, down) != (up, down) or down in unfolded:
            continue
        n, rows = getattr(w, down).shape[-1], getattr(w, up).shape[-2]
        if there(f"ffn_gate{suffix}"):
            copies = getattr(w, up).shape[0] if suffix == "_exps" else 1
            yield Fold(layer, up, None, (Reader(down),), n, copies)
        elif rows == 2 * n:  # gate and up in one, up behind
            yield Fold(layer, up, np.arange(n, 2 * n), (Reader(down),), n)


def _values(w: SimpleNamespace, layer: int, h: Mapping[str, Any], there: Any) -> Iterator[Fold]:
    """From the values of attention to what reads its heads; query heads that share a KV head share scales."""
    wide = w.attn_output.shape[1]
    if there("attn_v_b"):  # [n_heads, head_dim_v, kv_lora]
        yield Fold(layer, "attn_v_b", None, (Reader("attn_output"),), wide)
    elif there("attn_kv_b"):
        dim = wide // h["n_heads"]
        each = w.attn_kv_b.shape[0] // h["n_heads"]
        rows = (np.arange(h["n_heads"])[:, None] * each + np.arange(each - dim, each)).reshape(-1)
        yield Fold(layer, "attn_kv_b", rows, (Reader("attn_output"),), wide)
    elif there("attn_v", "attn_qkv"):
        source = there("attn_v", "attn_qkv")[0]
        dim, group = wide // h["n_heads"], h["n_heads"] // h["n_kv_heads"]
        n = h["n_kv_heads"] * dim
        rows = getattr(w, source).shape[0]
        column = np.arange(wide)
        index = column // (dim * group) * dim + column % dim
        first = None if rows == n else np.arange(rows - n, rows)
        yield Fold(layer, source, first, (Reader("attn_output", index if group > 1 else None),), n)


def _is_matrix(values: Any) -> bool:
    return not isinstance(values, np.ndarray)
