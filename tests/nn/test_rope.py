"""Frequencies of every kind of rope scaling against transformers' own."""

import numpy as np
import pytest

from qtransformers.nn import rope_frequencies
from qtransformers.nn.rope import llama3_factors, yarn_magnitude

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402

DIM, CONTEXT, ORIGINAL = 64, 4096, 1024


def theirs(seq_len=None, **rope):
    config = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=4, max_position_embeddings=CONTEXT,
        rope_parameters={"rope_theta": 10_000.0, "original_max_position_embeddings": ORIGINAL, **rope},
    )  # fmt: skip
    freqs, magnitude = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu", seq_len=seq_len)
    return freqs.numpy(), magnitude


@pytest.mark.parametrize("factor", [1.0, 2.0, 40.0])
def test_linear(factor):
    freqs, _ = theirs(rope_type="linear", factor=factor)
    np.testing.assert_allclose(rope_frequencies(DIM, 1e4, "linear", factor), freqs, rtol=1e-5)


@pytest.mark.parametrize("length", [4096, 5000, 20_000])
def test_ntk_as_dynamic_at_a_length(length):
    """transformers' factor grows with the length at hand; at one length it is a fixed one."""
    freqs, _ = theirs(seq_len=length, rope_type="dynamic", factor=3.0)
    np.testing.assert_allclose(rope_frequencies(DIM, 1e4, "ntk", 3 * length / CONTEXT - 2), freqs, rtol=1e-5)
    plain = rope_frequencies(DIM, 1e4)
    assert (rope_frequencies(DIM, 1e4, "ntk", 1.0) == plain).all()
    np.testing.assert_allclose(rope_frequencies(DIM, 1e4, "ntk", 8.0)[[0, -1]], plain[[0, -1]] / [1, 8])


@pytest.mark.parametrize("factor, beta_fast, beta_slow", [(4.0, 32, 1), (40.0, 32, 1), (16.0, 8, 2), (1.0, 32, 1)])
def test_yarn(factor, beta_fast, beta_slow):
    freqs, magnitude = theirs(rope_type="yarn", factor=factor, beta_fast=beta_fast, beta_slow=beta_slow)
    found = rope_frequencies(DIM, 1e4, "yarn", factor, original=ORIGINAL, beta_fast=beta_fast, beta_slow=beta_slow)
    np.testing.assert_allclose(found, freqs, rtol=1e-5)
    assert yarn_magnitude(factor) == pytest.approx(magnitude)
    _, magnitude = theirs(rope_type="yarn", factor=factor, mscale=0.7, mscale_all_dim=0.3)
    assert yarn_magnitude(factor, 0.7) / yarn_magnitude(factor, 0.3) == pytest.approx(magnitude)


@pytest.mark.parametrize("length, which", [(1024, "short_factor"), (1025, "long_factor")])
def test_longrope(length, which):
    factors = {"short_factor": np.linspace(1, 2, 32).tolist(), "long_factor": np.linspace(1, 60, 32).tolist()}
    freqs, _ = theirs(seq_len=length, rope_type="longrope", factor=4.0, **factors)
    np.testing.assert_allclose(
        rope_frequencies(DIM, 1e4, "longrope", factors=np.array(factors[which])), freqs, rtol=1e-5
    )


def test_llama3():
    freqs, _ = theirs(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
    factors = llama3_factors(DIM, 1e4, 8.0, 1.0, 4.0, ORIGINAL)
    np.testing.assert_allclose(rope_frequencies(DIM, 1e4, factors=factors), freqs, rtol=1e-5)
