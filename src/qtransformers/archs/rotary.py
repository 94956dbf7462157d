"""The hyperparameters of rotary position embedding, in GGUF's words and config.json's, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtransformers.archs.spec import HParam, Problem, TensorSpec
from qtransformers.nn.rope import SCALINGS, Rotation, llama3_factors, rope_frequencies, yarn_magnitude

KEYS = ("rope_parameters", "rope_scaling")  # where config.json keeps rope, since transformers 5 and before
# llama3's scaling is the tensor rope_freqs; `dynamic` (NTK by the length at hand) is none within the trained context
TYPES = {"default": "none", "dynamic": "none", "llama3": "none", "su": "longrope"}


def said(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What config.json says about rope, wherever it keeps it; of layers with full attention where it tells them apart."""
    found: Mapping[str, Any] = next(
        (config[key] for key in KEYS if isinstance(config.get(key), Mapping) and config[key]), {}
    )
    return found["full_attention"] if isinstance(found.get("full_attention"), Mapping) else found


def rope_type(config: Mapping[str, Any]) -> Any:
    """The kind of scaling, in GGUF's words."""
    name = said(config).get("rope_type", said(config).get("type"))
    return TYPES.get(name, name) if isinstance(name, str) else name


def rope_theta(config: Mapping[str, Any]) -> Any:
    """The base of the frequencies."""
    return said(config).get("rope_theta", config.get("rope_theta"))


def factor(config: Mapping[str, Any]) -> Any:
    """By how much the context was stretched."""
    return said(config).get("factor")


def original_max_position_embeddings(config: Mapping[str, Any]) -> Any:
    """The context before it was stretched, in tokens."""
    key = "original_max_position_embeddings"
    return said(config).get(key, config.get(key)) if rope_type(config) in ("yarn", "longrope") else None


def partial_rotary_factor(config: Mapping[str, Any]) -> Any:
    """Rotated values of a head."""
    share = said(config).get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if share is None:
        return None
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(head_dim * share)


def rope_local_base_freq(config: Mapping[str, Any]) -> Any:
    """The rope base of layers with a window."""
    for key in KEYS:
        if isinstance(config.get(key), Mapping) and isinstance(config[key].get("sliding_attention"), Mapping):
            return config[key]["sliding_attention"].get("rope_theta")
    return config.get("rope_local_base_freq")


def attention_factor(config: Mapping[str, Any]) -> Any:
    """What the rotated grow by, beside what `magnitude` makes of the rest."""
    rope, kind = said(config), rope_type(config)
    given = rope.get("attention_factor")
    if kind == "longrope":
        original = original_max_position_embeddings(config)
        stretch = config["max_position_embeddings"] / original if original else rope["factor"]
        return (
            given
            if given is not None
            else math.sqrt(1 + math.log(stretch) / math.log(original))
            if stretch > 1
            else 1.0
        )
    if kind != "yarn":
        return None
    if given is None and rope.get("mscale") and rope.get("mscale_all_dim"):
        given = yarn_magnitude(rope["factor"], rope["mscale"]) / yarn_magnitude(rope["factor"], rope["mscale_all_dim"])
    return given / yarn_magnitude(rope["factor"]) if given is not None else None


def truncate(config: Mapping[str, Any]) -> Any:
    """Whether YaRN's ramp begins and ends between pairs; false says so."""
    said_so = said(config).get("truncate")
    return None if said_so is None or rope_type(config) != "yarn" else not said_so


def _as_it_is(value: Any, h: Mapping[str, Any]) -> Any:
    return value


def _beside_yarn(value: Any, h: Mapping[str, Any]) -> Any:
    """All that the rotated grow by, as some converters write it, less what `magnitude` makes of the factor."""
    return value / yarn_magnitude(h["rope_factor"]) if h["rope_scaling"] == "yarn" else value


def _is(*kinds: str) -> Any:
    return lambda h: h["rope_scaling"] in kinds


ROPE_HPARAMS = (
    HParam("rope_dim", "rope.dimension_count", default=lambda h: h["head_dim"], minimum=2, hf=(partial_rotary_factor,)),
    HParam("rope_base", "rope.freq_base", float, default=10000.0, minimum=1.000001, hf=("rope_parameters.rope_theta", "rope_theta", rope_theta)),
    HParam("rope_scaling", "rope.scaling.type", str, default="none", choices=tuple(s for s in SCALINGS if s != "longrope"), hf=("rope_parameters.rope_type", "rope_scaling.rope_type", "rope_scaling.type", rope_type), hf_values=TYPES, implied={"rope_long": "longrope", "rope.scaling.factor": "linear", "rope.scale_linear": "linear"}),
    HParam("rope_factor", "rope.scaling.factor", float, default=1.0, minimum=1e-6, hf=("rope_parameters.factor", "rope_scaling.factor", factor), applies=_is("linear", "ntk", "yarn"), also={"rope.scale_linear": _as_it_is}),
    HParam("rope_original", "rope.scaling.original_context_length", default=lambda h: h["context_length"], minimum=1, hf=(original_max_position_embeddings,), applies=_is("yarn", "longrope")),
    HParam("rope_beta_fast", "rope.scaling.yarn_beta_fast", float, default=32.0, minimum=1e-6, hf=("rope_parameters.beta_fast", "rope_scaling.beta_fast"), applies=_is("yarn")),
    HParam("rope_beta_slow", "rope.scaling.yarn_beta_slow", float, default=1.0, minimum=1e-6, hf=("rope_parameters.beta_slow", "rope_scaling.beta_slow"), applies=_is("yarn")),
    HParam("rope_unrounded", "rope.scaling.yarn_unrounded", bool, default=False, hf=(truncate,), applies=_is("yarn")),
    HParam("rope_log_multiplier", "rope.scaling.yarn_log_multiplier", float, default=0.0, minimum=0, applies=_is("yarn")),
    HParam("rope_attn_factor", "rope.scaling.attn_factor", float, default=1.0, minimum=1e-6, hf=(attention_factor,), applies=_is("yarn", "longrope"), also={"rope.scaling.yarn_attn_factor": _beside_yarn}),
)  # fmt: skip
# Those of architectures that have the tensors LONGROPE.
LONGROPE_HPARAMS = tuple(replace(p, choices=SCALINGS) if p.name == "rope_scaling" else p for p in ROPE_HPARAMS)


def rope_base_swa(default: Callable[[Mapping[str, Any]], float]) -> HParam:
    """The base of layers with a window."""
    return HParam("rope_base_swa", "rope.freq_base_swa", float, default=default, minimum=1.000001, hf=(rope_local_base_freq,))  # fmt: skip


def llama3(config: Mapping[str, Any], h: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """Divisors of the rotary frequencies `[rope_dim / 2]` when config.json asks for Llama 3.1's scaling, else None."""
    rope = said(config)
    if rope.get("rope_type", rope.get("type")) != "llama3":
        return None
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return llama3_factors(h["rope_dim"], h["rope_base"], *(float(rope[k]) for k in keys))


def longrope(which: str) -> Any:
    """The reader of config.json's `long_factor` or `short_factor`."""

    def read(config: Mapping[str, Any], h: Mapping[str, Any]) -> NDArray[np.float32] | None:
        return np.array(said(config)[which], np.float32) if rope_type(config) == "longrope" else None

    return read


def _longrope_only(h: Mapping[str, Any], layer: int) -> bool:
    return h.get("rope_scaling") == "longrope"


ROPE_FREQS = TensorSpec("rope_freqs", "rope_freqs", ("rope_dim/2",), "rope", on_absent="none", from_config=llama3)
LONGROPE = (
    TensorSpec("rope_long", "rope_factors_long", ("rope_dim/2",), "rope", from_config=longrope("long_factor"), when=_longrope_only),
    TensorSpec("rope_short", "rope_factors_short", ("rope_dim/2",), "rope", from_config=longrope("short_factor"), when=_longrope_only),
)  # fmt: skip


def rotation(h: Any, w: Any = None, *, interleaved: bool) -> Rotation:
    """How the heads of a model are rotated; its tensors of factors are among its weights `w`."""
    factors = getattr(w, "rope_freqs", None)
    if h.rope_scaling == "longrope":
        factors = w.rope_long if h.get("loaded_context", h.context_length) > h.rope_original else w.rope_short
    known, for_factors = h.derived.get(("rotation", interleaved), (None, None))
    if known is not None and for_factors is factors:
        return known
    freqs = rope_frequencies(
        h.rope_dim, h.rope_base, h.rope_scaling, h.rope_factor, factors,
        original=h.rope_original, beta_fast=h.rope_beta_fast, beta_slow=h.rope_beta_slow, rounded=not h.rope_unrounded,
    )  # fmt: skip
    turn = Rotation(freqs, interleaved, magnitude(h))
    h.derived["rotation", interleaved] = turn, factors
    return turn


def unstretched(h: Any) -> Rotation:
    """The rotation of layers with a window, which need none of the scaling."""
    found: Rotation | None = h.derived.get("unstretched")
    if found is None:
        found = h.derived["unstretched"] = Rotation(rope_frequencies(h.rope_dim, h.rope_base_swa), False)
    return found


def magnitude(h: Any) -> float:
    """What the rotated grow by: under YaRN by the logarithm of its factor, less what `yarn_log_multiplier` takes back."""
    if h.rope_scaling not in ("yarn", "longrope"):
        return 1.0
    grown = h.rope_attn_factor
    if h.rope_scaling == "yarn":
        grown *= yarn_magnitude(h.rope_factor)
        if h.rope_log_multiplier:
            grown /= yarn_magnitude(h.rope_factor, h.rope_log_multiplier)
    return grown


def check_rope(h: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong between rope and the rest."""
    if h["rope_dim"] > h["head_dim"] or h["rope_dim"] % 2:
        yield Problem(
            f"rope.dimension_count is {h['rope_dim']}; expected an even number up to the head dimension, {h['head_dim']}"
        )
