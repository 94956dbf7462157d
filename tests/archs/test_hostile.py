"""Hyperparameters that are well-formed and impossible: one clear error each, whatever the architecture."""

import math
import time

import numpy as np
import pytest

from qtransformers.archs import ALL
from qtransformers.archs.hparams import INT_LIMIT, read_hparams
from qtransformers.load.plan import match_tensors

# Of all hyperparameters that have no default anywhere, and of those whose default would be none of the feature.
SOUND = {
    "n_layers": 2, "context_length": 64, "n_embd": 64, "n_ff": 96, "n_heads": 4, "n_kv_heads": 2, "rms_eps": 1e-5, "norm_eps": 1e-5, "vocab_size": 100,
    "n_experts": 4, "n_experts_used": 2, "n_ff_expert": 32, "n_ff_shared": 48,
}  # fmt: skip
LATENT = {
    "n_kv_heads": 1, "head_dim": 24, "head_dim_v": 16, "head_dim_mla": 20, "head_dim_v_mla": 12, "rope_dim": 8, "kv_lora": 16, "q_lora": 24,
    "n_dense_layers": 1, "n_shared": 1,
}  # fmt: skip
STATES = {"n_conv": 4, "state_dim": 8, "n_state_k": 2, "n_state_v": 4, "n_inner": 32}
ENCODER = {"n_kv_heads": 4}
LLAMA_DENSE = {"n_experts": 0, "n_experts_used": 0}


def sound(spec):
    values = {**SOUND}
    if spec.id == "deepseek2":
        values |= LATENT
    if spec.id == "qwen3next":
        values |= STATES
    if spec.kind == "encoder" or spec.id == "gpt2":
        values |= ENCODER
    if spec.id == "llama":
        values |= LLAMA_DENSE
    return {p.name: values[p.name] for p in spec.hparams if p.name in values}


def read(spec, **changes):
    values = {**sound(spec), **changes}
    keys = {p.name: f"{spec.id}.{p.key}" for p in spec.hparams}
    return read_hparams(spec, "m.gguf", {keys[name]: value for name, value in values.items()})


def legal(p, value):
    """Whether the declaration itself allows the value: 0 where it says none of it, for one."""
    number = type(value) is p.kind or (p.kind is float and type(value) is int)
    if p.kind in (str, bool) or not number:
        return type(value) is p.kind and (not p.choices or value in p.choices)
    low = -math.inf if p.minimum is None else p.minimum
    high = p.maximum if p.maximum is not None else INT_LIMIT if p.kind is int else 3.4e38
    return low <= value <= high and (not p.choices or value in p.choices)


HOSTILE = (
    0,
    -1,
    -(2**31),
    2**31,
    2**63,
    2**200,
    0.0,
    -1.0,
    0.5,
    math.nan,
    math.inf,
    -math.inf,
    1e39,
    "",
    "x",
    True,
    [],
    [1, 2, 3],
    np.arange(5000),
)
CASES = [(spec, p) for spec in ALL for p in spec.hparams if p.key]


@pytest.mark.parametrize("spec", ALL, ids=lambda s: s.id)
def test_the_sound_ones_are(spec):
    h, problems = read(spec)
    assert not problems and {p.name for p in spec.hparams} <= set(h)


@pytest.mark.parametrize("spec, p", CASES, ids=lambda x: getattr(x, "id", "") or x.name)
def test_one_hostile_value_is_one_clear_error(spec, p):
    n_refused = 0
    for value in HOSTILE:
        if not isinstance(value, (list, np.ndarray)) and legal(p, value):
            continue
        h, problems = read(spec, **{p.name: value})
        n_refused += 1
        grave = [q.text for q in problems if q.grade != "warning"]
        assert len(grave) == 1, (value, grave)
        assert grave[0].startswith(f"m.gguf: {spec.id}.{p.key} ") and ("expected" in grave[0] or "differs" in grave[0])
        assert p.name not in h
    assert n_refused >= 10


TOGETHER = {
    "kv heads that do not divide": {"n_kv_heads": 3},
    "more kv heads than heads": {"n_kv_heads": 8},
    "a rope dimension beyond the head": {"rope_dim": 66},
    "an odd rope dimension": {"rope_dim": 7},
    "more experts used than there are": {"n_experts": 4, "n_experts_used": 5},
    "no expert used": {"n_experts": 4, "n_experts_used": 0},
    "heads that do not divide": {"n_heads": 3, "n_kv_heads": 3},
    "more heads than values": {"n_heads": 1000, "n_kv_heads": 1000},
}


@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.parametrize("spec", ALL, ids=lambda s: s.id)
def test_what_cannot_be_together(spec, name):
    changes = {key: value for key, value in TOGETHER[name].items() if key in {p.name for p in spec.hparams}}
    if set(changes) != set(TOGETHER[name]):
        assert spec.id in ABSENT[name]
        return
    _, problems = read(spec, **changes)
    grave = [q.text for q in problems if q.grade != "warning"]
    assert grave and all(text.startswith("m.gguf: ") and (" is " in text or " are " in text) for text in grave)


NO_EXPERTS = {s.id for s in ALL if "n_experts" not in {p.name for p in s.hparams}}
NO_ROPE = {s.id for s in ALL if "rope_dim" not in {p.name for p in s.hparams}}
ABSENT = {
    **{name: set() for name in TOGETHER}, "more experts used than there are": NO_EXPERTS, "no expert used": NO_EXPERTS,
    "a rope dimension beyond the head": NO_ROPE, "an odd rope dimension": NO_ROPE,
}  # fmt: skip


@pytest.mark.parametrize("spec", ALL, ids=lambda s: s.id)
def test_every_kind_of_rope_is_refused_or_has_what_it_needs(spec):
    """LongRoPE's factors are tensors: an architecture that has none of them cannot be said to be stretched so."""
    if spec.id in NO_ROPE:
        return
    _, problems = read(spec, rope_scaling="longrope")
    refused = any(p.grade == "unsupported" and "longrope" in p.text for p in problems)
    assert refused != ({"rope_long", "rope_short"} <= {t.attr for t in spec.tensors})


def test_only_these_lack_rope():
    assert {"gpt2", "bert"} == NO_ROPE


@pytest.mark.parametrize("spec", ALL, ids=lambda s: s.id)
def test_huge_sizes_cost_nothing(spec):
    """They are what the tensors do not have; nothing is allocated to find out."""
    h, problems = (
        read(spec, n_layers=512, n_embd=INT_LIMIT, n_ff=INT_LIMIT)
        if "n_ff" in sound(spec)
        else read(spec, n_layers=512, n_embd=INT_LIMIT)
    )
    grave = [q.text for q in problems if q.grade != "warning"]
    if grave:
        return
    begin = time.perf_counter()
    _, _, found = match_tensors(spec, h, {})
    assert len(found) > 5 and all("missing" in p.text for p in found)
    assert time.perf_counter() - begin < 30


@pytest.mark.parametrize("name, layers", [("gemma2", 46), ("gemma3", 62)])
def test_scores_of_the_27b_go_by_the_width_of_a_head(name, layers):
    """GGUF has no key for it; its config.json says query_pre_attn_scalar = hidden_size / heads, not the width of its keys."""
    (spec,) = (s for s in ALL if s.id == name)
    sizes = {"n_embd": 64, "n_heads": 2, "head_dim": 16}
    assert read(spec, n_layers=layers, **sizes)[0].attn_scale == 32**-0.5
    assert read(spec, n_layers=layers - 1, **sizes)[0].attn_scale == 16**-0.5
