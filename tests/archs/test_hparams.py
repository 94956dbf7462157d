"""Hyperparameters: where they come from, and everything that is wrong with them."""

import copy

import numpy as np
import pytest

from qtransformers.archs import Hyperparameters
from qtransformers.archs.hparams import Spoken, read_hparams
from qtransformers.archs.llama import SPEC

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
