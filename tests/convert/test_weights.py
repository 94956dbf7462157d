import numpy as np
import pytest

from qtransformers.convert import weights
from qtransformers.convert.sources import Lying
from qtransformers.convert.weights import encoded
from qtransformers.errors import LoadError
from qtransformers.load.checkpoint import Stored, interleave
from qtransformers.nn import rope, rope_frequencies
from qtransformers.quants import reference_dequantize, reference_quantize
from qtransformers.types import BY_NAME


def stored(values, type="F32"):
    values = np.asarray(values, np.float32)
    return Lying(
        Stored("w", type, values.shape, reference_quantize(values.reshape(-1), BY_NAME[type]), "m.safetensors")
    )


def test_interleaving_turns_halves_into_neighbours():
    """Rotating interleaved rows as neighbours is rotating the original rows as halves."""
    rng = np.random.default_rng(0)
    n_heads, dim = 3, 8
    x = rng.standard_normal((5, n_heads * dim)).astype(np.float32)
    order = interleave(n_heads * dim, n_heads)
    freqs, positions = rope_frequencies(dim, 10000.0), np.arange(5, dtype=np.int32)
    halves = rope(x.reshape(5, n_heads, dim), positions, freqs, interleaved=False)
    pairs = rope(np.ascontiguousarray(x[:, order]).reshape(5, n_heads, dim), positions, freqs, interleaved=True)
    np.testing.assert_array_equal(halves.reshape(5, -1)[:, order], pairs.reshape(5, -1))
    assert sorted(order) == list(range(n_heads * dim))


@pytest.mark.parametrize("slab", [1, 3 * 64 * 4, 1 << 20])
@pytest.mark.parametrize("source", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("target", ["F32", "F16", "BF16", "Q8_0"])
def test_slabs_join_to_the_encoded_whole(source, target, slab, monkeypatch):
    monkeypatch.setattr(weights, "SLAB", slab)
    rng = np.random.default_rng(1)
    tensor = stored(rng.standard_normal((8, 64)), source)
    order = interleave(8, 2)
    values = reference_dequantize(tensor.tensor.data, tensor.type).reshape(8, 64)[order]
    got = np.concatenate(list(encoded(tensor, BY_NAME[target], order)))
    np.testing.assert_array_equal(got, reference_quantize(np.ascontiguousarray(values).reshape(-1), BY_NAME[target]))


def test_a_bias_is_reordered_like_its_rows():
    tensor = stored(np.arange(8))
    got = np.concatenate(list(encoded(tensor, BY_NAME["F32"], interleave(8, 2)))).view(np.float32)
    np.testing.assert_array_equal(got, [0, 2, 1, 3, 4, 6, 5, 7])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("target", ["F32", "Q8_0"])
def test_values_that_are_not_finite_are_refused(bad, target):
    values = np.zeros((2, 32), np.float32)
    values[1, 5] = bad
    with pytest.raises(LoadError, match=r"m\.safetensors: w holds (nan|inf)"):
        list(encoded(stored(values), BY_NAME[target]))


def test_values_too_large_for_f16_are_refused():
    with pytest.raises(LoadError, match=r"w holds inf in F16\. Convert to BF16 or F32"):
        list(encoded(stored([[1e5, 1.0]]), BY_NAME["F16"]))
