"""Norms, rotations, activations and routes on torch tensors, against their NumPy twins."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

import torch

from qtransformers.errors import ConfigError
from qtransformers.kernels import kernels_for, reference, triton
from qtransformers.kernels.table import FUNCTIONS
from qtransformers.kernels.triton.products import pack, packed

rng = np.random.default_rng


def there(x):
    """An array as a tensor where kernels run."""
    return (
        x if not isinstance(x, np.ndarray) else torch.from_numpy(x).to("cuda" if torch.cuda.is_available() else "cpu")
    )


def close(found, expected, error=2e-6):
    assert tuple(found.shape) == expected.shape and expected.size
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=error, atol=error * np.nanmax(np.abs(expected)))


def floats(*shape, seed=0):
    return rng(seed).standard_normal(shape, np.float32)


def test_tensors_go_to_these_kernels():
    assert kernels_for(torch.zeros(1)) is triton
    with pytest.raises(TypeError, match="no kernels for builtins"):
        kernels_for([])
    with pytest.raises(AttributeError, match="nonsense"):
        triton.nonsense


@pytest.mark.parametrize("shape", [(1, 1), (3, 2, 70), (2, 256), (1, 5000)])
def test_norms(shape):
    x, w, b = floats(*shape), floats(shape[-1], seed=1), floats(shape[-1], seed=2)
    x[0] *= 1e3
    close(triton.rms_norm(there(x), there(w), 1e-5), reference.rms_norm(x, w, 1e-5))
    close(triton.layer_norm(there(x), there(w), there(b), 1e-5), reference.layer_norm(x, w, b, 1e-5), 1e-5)
    ones = np.ones(shape[-1], np.float32)
    close(triton.layer_norm(there(x), None, None, 1e-5), reference.layer_norm(x, ones, None, 1e-5), 1e-5)


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("shape", [(1, 64), (3, 352), (8, 96)])
def test_norms_that_products_read_come_packed(planes, shape):
    """With the bits that packing them afterwards gives."""
    x, w = there(floats(*shape)), there(floats(shape[-1], seed=1))
    x[-1, 5] = torch.nan if planes == 2 else 0.0
    w.planes = planes
    y = triton.rms_norm(x, w, 1e-5)
    rows = 1 << (shape[0] - 1).bit_length()
    expected = pack(y.clone(), planes, rows)
    found = packed(y, planes, rows)
    assert found is y.packed and (found.planes, found.rows) == (planes, rows)
    for part in ("codes", "scales", "sums"):
        a, b = (getattr(p, part).view(planes, rows, -1)[:, : shape[0]].cpu().numpy() for p in (found, expected))
        np.testing.assert_array_equal(a, b)
    y += 1
    assert packed(y, planes, rows) is not y.packed
    assert not hasattr(triton.rms_norm(there(floats(9, 64)), there(floats(64)), 1e-5), "packed")


def test_norm_of_what_has_nothing():
    assert triton.rms_norm(there(floats(0, 8)), there(floats(8)), 1e-5).shape == (0, 8)
    assert not triton.rms_norm(there(np.zeros((2, 8), np.float32)), there(floats(8)), 1e-5).any()
    assert triton.rms_norm(there(np.full((1, 8), np.nan, np.float32)), there(floats(8)), 1e-5).isnan().all()
    with pytest.raises(ConfigError, match=r"weight of \[7\]; expected \[8\]"):
        triton.rms_norm(there(floats(1, 8)), there(floats(7)), 1e-5)


def test_norm_of_a_part_of_a_tensor():
    x, w = floats(6, 32), floats(16)
    close(triton.rms_norm(there(x)[:, 16:], there(w), 1e-5), reference.rms_norm(x[:, 16:], w, 1e-5))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("half, d", [(8, 16), (4, 16), (12, 24), (5, 17), (1, 2)])
def test_rope(half, d, interleaved):
    x, positions = floats(3, 5, d), np.array([0, 7, 131_071], np.int32)
    freqs = 1e4 ** -(np.arange(half) / half)
    close(
        triton.rope(there(x), there(positions), freqs, interleaved, 1.5),
        reference.rope(x, positions, freqs, interleaved, 1.5),
    )


def test_rope_of_other_shapes():
    freqs = np.ones(4)
    with pytest.raises(ConfigError, match="at most 3"):
        triton.rope(there(floats(2, 1, 6)), there(np.zeros(2, np.int32)), freqs, False)
    with pytest.raises(ConfigError, match=r"positions \[1\]"):
        triton.rope(there(floats(2, 1, 8)), there(np.zeros(1, np.int32)), freqs, False)


@pytest.mark.parametrize("act", FUNCTIONS)
@pytest.mark.parametrize("size", [1e-3, 4, 200])
def test_activate(act, size):
    x, up = floats(5, 300) * np.float32(size), floats(5, 300, seed=1)
    x[0, :3] = 0, 88, -89
    close(triton.activate(there(x), act), reference.activate(x, act))
    close(triton.activate(there(x), act, there(up)), reference.activate(x, act, up))


def test_activate_refuses():
    with pytest.raises(ConfigError, match="expected one of silu"):
        triton.activate(there(floats(1)), "relu")
    with pytest.raises(ConfigError, match="same shape"):
        triton.activate(there(floats(2)), "silu", there(floats(1)))


ROUTES = {
    "softmax": {},
    "normalised": {"normalize": True},
    "v3": {"gate": "sigmoid", "normalize": True, "scale": 2.5, "n_groups": 4, "n_groups_used": 2, "group_top": 2, "bias": floats(12)},
    "v2": {"n_groups": 3, "n_groups_used": 1, "group_top": 1, "scale": 16.0},
}  # fmt: skip


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("n_used", [1, 3, 4])
def test_route(name, n_used):
    logits = floats(7, 12) * 3
    logits[0] = 0  # ties go to the first
    ids, weights = triton.route(there(logits), n_used, **{k: there(v) for k, v in ROUTES[name].items()})
    expected_ids, expected = reference.route(logits, n_used, **ROUTES[name])
    assert ids.dtype == torch.int32 and (ids.cpu().numpy() == expected_ids).all()
    close(weights, expected)


def test_route_refuses():
    for given, said in ({"gate": "tanh"}, "gate"), ({"n_groups": 5}, "5 groups"), ({"bias": there(floats(3))}, "bias"):
        with pytest.raises(ConfigError, match=said):
            triton.route(there(floats(1, 12)), 2, **given)
    with pytest.raises(ConfigError, match="n_used=13"):
        triton.route(there(floats(1, 12)), 13)


def test_arrays_are_cut_and_joined_as_numpys():
    x, y = floats(3, 4, 10), floats(3, 4, 6, seed=1)
    cpu = kernels_for(x)
    for found, expected in zip(triton.split(there(x), (2, 7), -1), cpu.split(x, (2, 7), -1), strict=True):
        assert found.is_contiguous() and (found.cpu().numpy() == expected).all()
    assert (triton.join((there(x), there(y))).cpu().numpy() == cpu.join((x, y))).all()
    assert (triton.repeat(there(x), 3, 1).cpu().numpy() == cpu.repeat(x, 3, 1)).all()
    close(triton.softplus(there(x * 40)), cpu.softplus(x * 40))
    whole = np.array([0, 1, 100_000], np.int32)
    close(triton.log1p(there(whole)), cpu.log1p(whole))
