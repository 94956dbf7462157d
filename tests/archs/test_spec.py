"""The declarations an architecture is made of."""

import copy

import numpy as np
import pytest

from qtransformers.archs import SPECS, Hyperparameters, dimension
from qtransformers.archs.llama import SPEC
from qtransformers.archs.rotary import llama3 as rope_factors
from qtransformers.archs.spec import Spoken, read_hparams

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


def test_hyperparameters_are_frozen():
    h = Hyperparameters.frozen({"n_heads": 4}, {"n_heads": "llama.attention.head_count"})
    assert h.n_heads == h["n_heads"] == 4
    assert dict(h) == {"n_heads": 4}
    for tampering in (lambda: setattr(h, "n_heads", 5), lambda: h.values_.update(n_heads=5)):
        with pytest.raises((AttributeError, TypeError)):
            tampering()
    with pytest.raises(AttributeError, match="no hyperparameter 'n_head'"):
        h.n_head
    assert copy.copy(h).n_heads == 4
    assert h.replaced(n_heads=5).n_heads == 5 and h.n_heads == 4


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


METADATA = {
    "general.architecture": "llama", "llama.block_count": 3, "llama.context_length": 128, "llama.embedding_length": 64, "llama.feed_forward_length": 96,
    "llama.attention.head_count": 8, "llama.attention.head_count_kv": 4, "llama.attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
}  # fmt: skip
ROWS = {"token_embd": 512}


def read(rows=ROWS, config=None, **changes):
    metadata = {**METADATA, **{k.replace("__", "."): v for k, v in changes.items()}}
    return read_hparams(SPEC, "m.gguf", {k: v for k, v in metadata.items() if v is not None}, rows, config)


def test_hyperparameters_and_where_they_came_from():
    h, problems = read()
    assert not problems
    assert (h.n_layers, h.n_kv_heads, h.head_dim, h.head_dim_v, h.rope_dim, h.rope_base, h.vocab_size) == (3, 4, 8, 8, 8, 10000.0, 512)  # fmt: skip
    assert h.rms_eps == pytest.approx(1e-5, rel=1e-6)
    assert h.origins["n_heads"] == "llama.attention.head_count"
    assert h.origins["rope_base"] == "default"
    assert h.origins["vocab_size"] == "rows of token_embd"


def test_defaults_that_derive():
    h, problems = read(llama__attention__head_count_kv=None, llama__attention__key_length=16)
    assert not problems
    assert (h.n_kv_heads, h.head_dim, h.head_dim_v, h.rope_dim) == (8, 16, 16, 16)


@pytest.mark.parametrize("value, found", [
    ("8", "'8' (str)"), (8.0, "8.0 (float)"), (True, "True (bool)"), (0, "is 0"), (-3, "is -3"), (2**40, str(2**40)), (None, "is missing"),
    (["a", "b", "c"], "differs between layers"), ([], "has 0 values"), ([8, 8], "has 2 values"), (np.arange(5000), "has 5000 values"),
])  # fmt: skip
def test_a_bad_whole_number(value, found):
    h, problems = read(llama__attention__head_count=value)
    assert found in problems[0].text and problems[0].text.startswith("m.gguf: llama.attention.head_count")
    assert "expected" in problems[0].text or problems[0].grade == "unsupported"
    assert "n_heads" not in h


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e-5, "1e-5", 10**400, [1e-5, 1e-6, 1e-5]])
def test_a_bad_float(value):
    _, problems = read(llama__attention__layer_norm_rms_epsilon=value)
    assert len(problems) == 1 and "layer_norm_rms_epsilon" in problems[0].text


def test_whole_numbers_serve_as_floats():
    h, problems = read(llama__rope__freq_base=500000)
    assert not problems and h.rope_base == 500000.0 and type(h.rope_base) is float


@pytest.mark.parametrize("value", [np.array([4, 4, 4], np.int32), [4, 4, 4]])
def test_an_array_of_equal_values_is_one_value(value):
    h, problems = read(llama__attention__head_count_kv=value)
    assert not problems and h.n_kv_heads == 4


def test_an_array_of_different_values_is_unsupported():
    _, problems = read(llama__attention__head_count_kv=np.array([4, 2, 4], np.uint32))
    assert [p.grade for p in problems] == ["unsupported"]
    assert "llama.attention.head_count_kv differs between layers" in problems[0].text


def test_every_problem_is_found_at_once():
    _, problems = read(llama__block_count=None, llama__embedding_length="64", llama__rope__freq_base=-1.0)
    assert len(problems) == 3
    assert {p.text.split()[1] for p in problems} == {"llama.block_count", "llama.embedding_length", "llama.rope.freq_base"}  # fmt: skip


@pytest.mark.parametrize("changes, found, grade", [
    ({"llama__attention__head_count_kv": 3}, "no multiple", "error"),
    ({"llama__rope__dimension_count": 10}, "rope.dimension_count is 10", "error"),
    ({"llama__expert_count": 8, "llama__expert_used_count": 9}, "expert_used_count is 9; expected 1 to expert_count, 8", "error"),
    ({"llama__rope__scaling__type": "unheard"}, "'unheard'", "unsupported"),
])  # fmt: skip
def test_what_they_may_not_be_together(changes, found, grade):
    _, problems = read(**changes)
    assert [p.grade for p in problems] == [grade] and found in problems[0].text


def test_the_rows_of_the_embedding_count():
    h, problems = read(llama__vocab_size=500)
    assert h.vocab_size == 512 and [p.grade for p in problems] == ["warning"]
    h, problems = read(rows={}, llama__vocab_size=500)
    assert h.vocab_size == 500 and not problems
    _, problems = read(rows={})
    assert "llama.vocab_size is missing" in problems[0].text


def test_config_fills_what_the_file_does_not_say():
    config = {"sliding_window": Spoken(4096, "sliding_window"), "n_layers": Spoken(9, "num_hidden_layers"), "context_length": Spoken(64, "max_position_embeddings")}  # fmt: skip
    h, problems = read(config=config, llama__context_length=None)
    assert (h.sliding_window, h.n_layers, h.context_length) == (4096, 3, 64)  # the file's word counts where it has one
    assert h.origins["sliding_window"] == "config.json: sliding_window"
    assert [p.grade for p in problems] == ["warning"] and "attention.sliding_window; 4096" in problems[0].text


def test_hyperparameters_of_any_size_are_checked_in_no_time():
    """A hostile value may be huge; nothing loops over it."""
    _, problems = read(llama__block_count=10**30, llama__attention__head_count_kv=np.zeros(10**7, np.uint8))
    assert len(problems) == 2
