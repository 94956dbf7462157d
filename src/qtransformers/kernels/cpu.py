"""The CPU kernels, bound from the C++ extension: NumPy arrays in and out, one native call an operation.

Each is the fast form of its namesake in `reference.py`. `with Pool(threads):` lends threads to every call of the
Python thread inside the block; without one a call runs on the calling thread alone. Results do not depend on threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.checks import whole
from qtransformers.errors import ConfigError
from qtransformers.kernels.kv import CODECS
from qtransformers.kernels.reference import F32, Ints
from qtransformers.kernels.table import ACCURACIES, FUNCTIONS, check, check_accuracy
from qtransformers.native import lib
from qtransformers.tensor import QTensor
from qtransformers.types import QuantType

__all__ = [
    "Experts",
    "Pool",
    "Stages",
    "Weight",
    "activate",
    "attention",
    "bind",
    "causal_conv",
    "distribution",
    "dry",
    "embedding",
    "gated",
    "gated_delta",
    "join",
    "layer_norm",
    "linear",
    "linears",
    "log1p",
    "logprobs",
    "moe",
    "penalise",
    "per_head",
    "repeat",
    "rms_norm",
    "rope",
    "route",
    "sample",
    "scratch_bytes",
    "softplus",
    "split",
]

Pool = lib.Pool
if TYPE_CHECKING:
    Experts = Any
    Stages = Any
    Weight = Any  # the extension has no types that a checker could read
else:
    Experts, Stages, Weight = lib.Experts, lib.Stages, lib.Weight


def bind(tensor: QTensor, accuracy: str = "exact") -> Any:
    """A matrix `[out, in]` the kernels multiply with, read where it lies: `.shape`, `.type`, `.name`, `.tensor`.

    A tensor `[n, out, in]` becomes `Experts`, for `moe` and `per_head`.

    `accuracy` says how activations enter a product with quantised weights: `exact`
    as floats; `fast` as int8 with a power of two per 32 columns, off by about 1e-2 of the norms; `high` as two such planes,
    the second what the first one's rounding lost, off by about 3e-5. A token is rounded alike however many share a product.
    F16 and BF16 are multiplied as bfloat16 at `fast`, off by about 2e-3, where more than 8 tokens share a product and the
    processor can; other plain floats, and these at `exact` and `high`, as they are.
    UnsupportedError for a type that holds no floats, ConfigError for a tensor that is neither.
    """
    check("linear", tensor.type, "cpu", tensor.name, tensor.file)
    if len(tensor.shape) not in (2, 3):
        raise ConfigError(
            f"{tensor.file}: {tensor.name} is {list(tensor.shape)}; expected a matrix [out, in], or experts [n, out, in]."
        )
    check_accuracy(accuracy)
    make = lib.Weight if len(tensor.shape) == 2 else lib.Experts
    return make(tensor, tensor.data, tensor.type.id, *tensor.shape, ACCURACIES[accuracy])


def scratch_bytes(type: QuantType, tokens: int, columns: int, accuracy: str) -> tuple[int, int]:
    """Memory that a product of so many tokens takes beside x and y: bytes for all threads together, bytes for each."""
    check_accuracy(accuracy)
    most = 2**40
    whole("tokens", tokens, 0, most)
    return lib.scratch_bytes(
        type.id, tokens, whole("columns", columns, 0, most // max(tokens, 1)), ACCURACIES[accuracy]
    )


def linear(x: F32, w: Weight, bias: F32 | None = None) -> F32:
    """`x [T, in] @ w [out, in].T + bias [out]`, summed in float32: `[T, out]`. ConfigError where shapes differ."""
    try:
        return lib.linear(x, w, bias)
    except TypeError:
        raise _refusal("linear", "x [T, in] float32, w Weight, bias [out] float32 or None", x, w, bias) from None


def linears(x: F32, ws: Sequence[Weight], biases: Sequence[F32 | None]) -> list[F32]:
    """`linear` of one `x [T, in]` by each weight, with its bias or None: as many `[T, out]`. ConfigError where shapes differ.

    One call shares the packing of `x` and the work of all weights among the threads.
    """
    try:
        return lib.linears(x, ws, biases)
    except TypeError:
        expected = "x [T, in] float32, ws [Weight, ...], biases [float32 [out] or None, ...]"
        raise _refusal("linears", expected, x, *_items(ws), *_items(biases)) from None


def gated(
    x: F32, w_gate: Weight, w_up: Weight, act: str = "silu", gate_bias: F32 | None = None, up_bias: F32 | None = None
) -> F32:
    """`act(x @ w_gate.T + gate_bias) * (x @ w_up.T + up_bias)`, `[T, n_ff]`; see `nn.gated`. ConfigError where shapes differ."""
    try:
        return lib.gated(x, w_gate, w_up, act, gate_bias, up_bias)
    except TypeError:
        expected = "x [T, in] float32, w_gate and w_up Weight, act text, gate_bias and up_bias [out] float32 or None"
        raise _refusal("gated", expected, x, w_gate, w_up, act, gate_bias, up_bias) from None


def per_head(x: F32, w: Experts) -> F32:
    """`x [T, H, in]`, each head times a matrix of its own of `w [H, out, in]`: `[T, H, out]`. ConfigError where shapes differ."""
    try:
        return lib.per_head(x, w)
    except TypeError:
        raise _refusal("per_head", "x [T, H, in] float32, w Experts", x, w) from None


def embedding(tokens: Ints, w: Weight) -> F32:
    """Rows of `w [vocab, n_embd]`: `[T, n_embd]`. ConfigError for an id outside the vocabulary."""
    try:
        return lib.embedding(tokens, w)
    except TypeError:
        raise _refusal("embedding", "tokens [T] int32, w Weight", tokens, w) from None


def rms_norm(x: F32, weight: F32, eps: float) -> F32:
    """Root-mean-square norm over the last dimension, of `x`'s shape."""
    try:
        return lib.rms_norm(x, weight, eps)
    except TypeError:
        raise _refusal("rms_norm", "x [..., n] float32, weight [n] float32, eps float", x, weight, eps) from None


def layer_norm(x: F32, weight: F32 | None, bias: F32 | None, eps: float) -> F32:
    """Layer norm over the last dimension, of `x`'s shape; `weight` None for ones."""
    try:
        if weight is None:
            weight = np.ones(x.shape[-1], np.float32)
        return lib.layer_norm(x, weight, bias, eps)
    except TypeError:
        expected = "x [..., n] float32, weight [n] float32, bias [n] float32 or None, eps float"
        raise _refusal("layer_norm", expected, x, weight, bias, eps) from None


def activate(x: F32, act: str, up: F32 | None = None) -> F32:
    """A function of each value (table.FUNCTIONS), times `up` where there is one; of `x`'s shape."""
    kind = FUNCTIONS.get(act) if isinstance(act, str) else None
    if kind is None:
        raise ConfigError(f"act={act!r}; expected one of {', '.join(FUNCTIONS)}.")
    try:
        return lib.activate(x, kind, up)
    except TypeError:
        raise _refusal("activate", "x float32, up float32 of the same shape or None", x, up) from None


def route(
    logits: F32, n_used: int, gate: str = "softmax", bias: F32 | None = None, n_groups: int = 1, n_groups_used: int = 1,
    group_top: int = 1, normalize: bool = False, scale: float = 1.0,
) -> tuple[Ints, F32]:  # fmt: skip
    """The experts of each token and their weights, both `[T, n_used]`; see `nn.route`. ConfigError for what cannot be."""
    try:
        return lib.route(logits, n_used, gate, bias, n_groups, n_groups_used, group_top, normalize, scale)
    except TypeError:
        expected = (
            "logits [T, n_experts] float32, n_used int, gate text, bias [n_experts] float32 or None; n_groups, "
            "n_groups_used, group_top int; normalize bool, scale float"
        )
        found = (logits, n_used, gate, bias, n_groups, n_groups_used, group_top, normalize, scale)
        raise _refusal("route", expected, *found) from None


def moe(
    x: F32, ids: Ints, weights: F32, w_gate: Experts, w_up: Experts, w_down: Experts, act: str = "silu",
    gate_bias: F32 | None = None, up_bias: F32 | None = None, down_bias: F32 | None = None,
) -> F32:  # fmt: skip
    """Each token of `x [T, n_embd]` through its experts, summed with their weights: `[T, n_embd]`; see `nn.moe`."""
    try:
        return lib.moe(x, ids, weights, w_gate, w_up, w_down, act, gate_bias, up_bias, down_bias)
    except TypeError:
        expected = (
            "x [T, n_embd] float32, ids [T, k] int32, weights [T, k] float32, w_gate, w_up, w_down Experts, act text, "
            "biases [n_experts, out] float32 or None"
        )
        found = (x, ids, weights, w_gate, w_up, w_down, act, gate_bias, up_bias, down_bias)
        raise _refusal("moe", expected, *found) from None


def rope(x: F32, positions: Ints, freqs: NDArray[np.float64], interleaved: bool, magnitude: float = 1.0) -> F32:
    """Rotate pairs of the first `2 * len(freqs)` values of each head of `x [T, H, D]`, and multiply them by `magnitude`."""
    try:
        return lib.rope(x, positions, freqs, interleaved, magnitude)
    except TypeError:
        expected = (
            "x [T, H, D] float32, positions [T] int32, freqs [dim / 2] float64, interleaved bool, magnitude float"
        )
        raise _refusal("rope", expected, x, positions, freqs, interleaved, magnitude) from None


def attention(
    q: F32, k: F32, v: F32, pages: NDArray[np.uint8], codec: str,
    positions: Ints, starts: Ints, page_tables: Ints, scale: float, window: int = 0,
    softcap: float = 0.0, sinks: F32 | None = None, causal: bool = True, rows: int = 0,
) -> F32:  # fmt: skip
    """Store k, v in the layer's pages `[n_pages, n_kv_heads, head_bytes]`, then grouped-query attention as `nn.attention` says.

    `codec` is a cache type of `kernels.kv`. Keys and values in codes meet queries that are rounded to 15 bits of their
    group's largest (q8) or to 7 (q6, q4), and probabilities rounded to 15, or to 7 for values in 4; all far below the
    cache's own error. `rows` is a hint for GPUs.
    ConfigError where shapes differ, positions of a sequence do not follow each other, or a page that is needed does not exist.
    """
    kinds = CODECS.get(codec) if isinstance(codec, str) else None
    if kinds is None:
        raise ConfigError(f"codec={codec!r}; expected one of {', '.join(CODECS)}.")
    try:
        return lib.attention(
            q, k, v, pages, kinds[0].id, kinds[1].id,
            positions, starts, page_tables, scale, window, softcap, sinks, causal,
        )  # fmt: skip
    except TypeError:
        expected = (
            "q [T, H, D], k [T, Hk, D], v [T, Hk, Dv] float32; pages [n, Hk, head_bytes] uint8, "
            "writable and contiguous; codec str; positions [T], starts [S + 1], page_tables [S, P] int32; scale float, window int, "
            "softcap float, sinks [H] float32 or None, causal bool"
        )
        found = (q, k, v, pages, codec, positions, starts, page_tables, scale, window, softcap, sinks, causal)
        raise _refusal("attention", expected, *found) from None


def causal_conv(x: F32, kernel: F32, starts: Ints, pasts: Sequence[F32]) -> F32:
    """Each channel of `x [T, C]` with `kernel [C, K]` over its last K tokens: `[T, C]`; see `nn.causal_conv`."""
    try:
        return lib.causal_conv(x, kernel, starts, list(pasts))
    except TypeError:
        expected = "x [T, C], kernel [C, K] float32, starts [S + 1] int32, pasts [[K - 1, C] writable float32, ...]"
        raise _refusal("causal_conv", expected, x, kernel, starts, *pasts) from None


def gated_delta(q: F32, k: F32, v: F32, decay: F32, beta: F32, starts: Ints, states: Sequence[F32]) -> F32:
    """The gated delta rule over sequences of `starts [S + 1]`, token by token: `[T, H, D_v]`; see `nn.gated_delta`."""
    try:
        d = q.shape[-1]
        unit = np.full(d, d**-0.5, np.float32)
        q, k = (rms_norm(x, w, 1e-6 / d) for x, w in ((q, unit * np.float32(d**-0.5)), (k, unit)))
        return lib.gated_delta(q, k, v, np.exp(decay), beta, starts, list(states))
    except (TypeError, AttributeError, IndexError):
        expected = "q, k [T, H_k, D_k], v [T, H, D_v], decay, beta [T, H] float32, starts [S + 1] int32, states [[H, D_k, D_v] writable float32, ...]"
        raise _refusal("gated_delta", expected, q, k, v, decay, beta, starts, *states) from None


def split(x: F32, at: Sequence[int], axis: int) -> list[F32]:
    """Contiguous parts of an array, cut before each of the places `at`."""
    return [np.ascontiguousarray(part) for part in np.split(x, at, axis)]


def join(parts: Sequence[F32]) -> F32:
    """Arrays one after the other along the last axis."""
    return np.concatenate(parts, -1)


def repeat(x: F32, n: int, axis: int) -> F32:
    """Each part along an axis `n` times in a row."""
    return np.repeat(x, n, axis)


def log1p(x: Ints) -> F32:
    """`log(1 + x)` of whole numbers."""
    return np.log1p(x).astype(np.float32)


def softplus(x: F32) -> F32:
    """`log(1 + exp(x))`, without overflow."""
    return np.logaddexp(np.float32(0), x)


def sample(logits: F32, stages: Stages, u: float, coin: float = 1.0, mu: float = 0.0) -> tuple[int, float]:
    """The id that `u` in [0, 1) draws from `logits [n]`, and its surprise in bits where mirostat asks for it.

    XTC acts where `coin` is below its probability; `mu` is mirostat's bound. The definition is `sampling.definition`.
    Instead of an id: -1 - id of a logit that is no finite number, -1 where none is above minus infinity.
    """
    try:
        return lib.sample(logits, stages, u, coin, mu)
    except TypeError:
        raise _refusal("sample", "logits [n] float32, stages Stages, u, coin, mu float", logits, stages, u, coin, mu) from None  # fmt: skip


def distribution(
    logits: F32, stages: Stages, coin: float = 1.0, mu: float = 0.0
) -> tuple[NDArray[np.int64], NDArray[np.float64], float]:
    """All that `sample` could draw: ids, rising, their probabilities, and what part of the mass mirostat left.

    One negative id, as `sample`, and no probabilities where the logits are broken.
    """
    try:
        return lib.distribution(logits, stages, coin, mu)
    except TypeError:
        raise _refusal("distribution", "logits [n] float32, stages Stages, coin, mu float", logits, stages, coin, mu) from None  # fmt: skip


def logprobs(logits: F32, token: int, n_top: int) -> tuple[float, NDArray[np.int64], NDArray[np.float64]]:
    """Log-softmax of `logits [n]` at `token`, and the ids and values of the `n_top` largest, ties by id.

    One negative id, as `sample`, where the logits are broken.
    """
    try:
        return lib.logprobs(logits, token, n_top)
    except TypeError:
        raise _refusal("logprobs", "logits [n] float32, token int, n_top int", logits, token, n_top) from None


def penalise(
    logits: F32, tokens: Ints, n_prompt: int, range: int, repetition: float, frequency: float, presence: float
) -> None:
    """Change `logits [n]` of the tokens among the last `range` of `tokens`, the first `n_prompt` of all being the prompt's."""
    try:
        lib.penalise(logits, tokens, n_prompt, range, repetition, frequency, presence)
    except TypeError:
        expected = (
            "logits [n] float32, writable; tokens [m] int32, n_prompt, range int, repetition, frequency, presence float"
        )
        raise _refusal("penalise", expected, logits, tokens, n_prompt, range, repetition, frequency, presence) from None


def dry(
    logits: F32, tokens: Ints, breaks: NDArray[np.bool_] | None, limit: int, range: int, multiplier: float, base: float, allowed: int
) -> None:  # fmt: skip
    """Lower `logits [n]` of what would go on with a repetition in the last `range` of `tokens`.

    Repetitions have at most `limit` tokens, none of which `breaks [n]`; those below `allowed` are free.
    """
    try:
        lib.dry(logits, tokens, breaks, limit, range, multiplier, base, allowed)
    except TypeError:
        expected = "logits [n] float32, writable; tokens [m] int32, breaks [n] bool or None, limit, range int, multiplier, base float, allowed int"
        raise _refusal("dry", expected, logits, tokens, breaks, limit, range, multiplier, base, allowed) from None


def _refusal(operation: str, expected: str, *found: Any) -> ConfigError:
    return ConfigError(f"{operation} expects {expected}; found {', '.join(map(_describe, found))}.")


def _items(x: Any) -> Sequence[Any]:
    return x if isinstance(x, (list, tuple)) else (x,)


def _describe(x: Any) -> str:
    if isinstance(x, np.ndarray):
        order = "" if x.flags.c_contiguous else " non-contiguous"
        return f"{'' if x.flags.writeable else 'read-only '}{x.dtype}{order} {list(x.shape)}"
    return repr(x) if x is None or isinstance(x, (bool, int, float, str, lib.Weight, lib.Experts)) else type(x).__name__
