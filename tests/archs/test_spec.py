"""The declarations an architecture is made of."""

import pytest

from qtransformers.archs import SPECS, dimension
from qtransformers.archs.llama import SPEC
from qtransformers.archs.rotary import llama3 as rope_factors

H = {"n_heads": 6, "head_dim": 8, "rope_dim": 6}


@pytest.mark.parametrize("expression, size", [("n_heads", 6), ("n_heads*head_dim", 48), ("rope_dim/2", 3), ("2*n_heads*head_dim/3", 32), ("7", 7)])  # fmt: skip
def test_dimensions(expression, size):
    assert dimension(expression, H) == size


def test_slots_name_every_tensor_once():
    slots = list(SPEC.slots({"n_layers": 2, "n_experts": 0}))
    names = [s.name for s in slots]
    assert len(names) == len(set(names))
    by = {s.name: s for s in slots}
    h = {"n_embd": 16, "n_heads": 4, "head_dim": 8, "vocab_size": 50, "rope_dim": 8}
    assert by["blk.1.attn_q.weight"].shape(h) == (32, 16)
    assert by["blk.1.attn_q.bias"].shape(h) == (32,)
    assert by["blk.1.attn_q.bias"].attr == "attn_q_bias"
    assert by["rope_freqs.weight"].shape(h) == (4,)
    presence = {name: by[name].presence for name in ("blk.0.attn_q.weight", "blk.0.attn_q.bias", "blk.0.attn_norm.bias", "output.weight", "rope_freqs.weight")}  # fmt: skip
    assert list(presence.values()) == ["required", "optional", "never", "optional", "optional"]


@pytest.mark.parametrize("spec", {id(s): s for s in SPECS.values()}.values(), ids=lambda s: s.id)
def test_specs_are_consistent(spec):
    names = {p.name for p in spec.hparams}
    assert len(names) == len(spec.hparams)
    assert {"n_layers", "context_length", "n_embd", "vocab_size"} <= names
    sizes = {**dict.fromkeys(names, 12), "rope_dim": 6}
    attrs = [t.attr for t in (*spec.tensors, *spec.layer_tensors)]
    assert len(attrs) == len(set(attrs))
    for t in (*spec.tensors, *spec.layer_tensors):
        assert all(dimension(d, sizes) > 0 for d in t.shape)  # every symbol is a hyperparameter
        assert not t.permute or t.permute in names
        kind, _, target = t.on_absent.partition(":")
        assert kind in ("error", "none") or (kind == "tie" and target in attrs)
    for p in spec.hparams:
        assert not p.rows_of or p.rows_of in attrs


def test_llama3_rope_factors():
    """Against the published constants of Llama 3.1: wavelengths up to 2048 stay, from 8192 on they are divided by 8."""
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    h = {"rope_dim": 128, "rope_base": 500000.0}
    factors = rope_factors({"rope_scaling": rope}, h)
    assert factors.shape == (64,)
    for i, factor in enumerate(factors):
        wavelength = 2 * 3.141592653589793 * 500000 ** (i / 64)
        if wavelength < 2048:
            assert factor == 1
        elif wavelength > 8192:
            assert factor == 8
        else:
            s = (8192 / wavelength - 1) / 3
            assert factor == pytest.approx(1 / ((1 - s) / 8 + s), rel=1e-6)
    assert rope_factors({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, h) is None
    assert rope_factors({"rope_scaling": None}, h) is None
