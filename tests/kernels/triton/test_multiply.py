"""Products with stored weights on the GPU, in the interpreter, against the twins in float64."""

from dataclasses import replace

import numpy as np
import pytest

from blocks import random_blocks
from qtransformers.errors import ConfigError
from qtransformers.kernels import reference, staging
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME

torch = pytest.importorskip("torch")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

blocks = pytest.importorskip("qtransformers.kernels.triton.blocks")
from qtransformers.kernels.triton import multiply, products  # noqa: E402
from qtransformers.kernels.triton.weights import FLOATS, bind  # noqa: E402

TYPES = [name for name in blocks.LAYOUTS if not BY_NAME[name].activation]
# By accuracy, the largest error as a part of the norms of x and of a weight's row.
BOUNDS = {"fast": 5e-3, "high": 1e-5, "exact": 2e-7}


def weight(name, *shape, seed=0):
    kind = BY_NAME[name]
    n = int(np.prod(shape)) // kind.block_size
    return QTensor("blk.0.w", kind, shape, random_blocks(kind, n, seed), "a.gguf")


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def array(x):
    return None if x is None else torch.from_numpy(x)


def assert_close(y, truth, x, tensor, accuracy):
    norms = np.linalg.norm(x, axis=-1)[:, None] * np.linalg.norm(tensor.dequantize(), axis=-1)
    y = y.numpy()
    assert y.shape == truth.shape
    assert y.dtype == np.float32
    assert (np.abs(y - truth) <= BOUNDS[accuracy] * norms + 1e-6).all()


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("accuracy, tokens", [("high", 1), ("exact", 1), ("fast", 10)])
def test_every_type(name, accuracy, tokens):
    tensor = weight(name, 3, 3 * BY_NAME[name].block_size)
    x, bias = floats(tokens, tensor.shape[1]), floats(3, seed=1)
    y = multiply.linear(array(x), bind(tensor, accuracy, "cpu"), array(bias))
    assert_close(y, reference.linear(x, tensor, bias), x, tensor, accuracy)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K"])
@pytest.mark.parametrize("accuracy", BOUNDS)
@pytest.mark.parametrize("tokens", [0, 2, 7, 17])
def test_every_number_of_tokens(name, accuracy, tokens):
    tensor = weight(name, 3, BY_NAME[name].block_size)
    x = floats(tokens, tensor.shape[1])
    y = multiply.linear(array(x), bind(tensor, accuracy, "cpu"))
    assert_close(y, reference.linear(x, tensor), x, tensor, accuracy)


@pytest.mark.parametrize("accuracy", BOUNDS)
def test_slabs_of_rows(accuracy, monkeypatch):
    monkeypatch.setattr(multiply, "TILE_TOKENS", dict.fromkeys(BOUNDS, 0))
    monkeypatch.setattr(staging, "SLAB_BYTES", 3 * 64 * 4)
    tensor, x, bias = weight("Q5_0", 7, 64), floats(9, 64), floats(7)
    w = bind(tensor, accuracy, "cpu")
    assert staging.slab_rows(7, 64, accuracy) == (6 if accuracy == "fast" else 3)
    y = multiply.linear(array(x), w, array(bias))
    assert_close(y, reference.linear(x, tensor, bias), x, tensor, accuracy)


@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "BF16"])
@pytest.mark.parametrize("slabs", [1, 3])
def test_halves_meet_weights_as_they_are(name, slabs, monkeypatch):
    """No array of floats is made beside the result, the bias is added before anything is rounded, and rows are decoded a slab at a time."""
    tensor, x, bias = weight(name, 7, 512), floats(140, 512), 300 * floats(7)
    w, halves, near = bind(tensor, "fast", "cpu"), array(x).bfloat16(), array(bias).bfloat16()
    monkeypatch.setattr(staging, "SLAB_BYTES", 512 * 2 * -(-7 // slabs))
    seen = []

    class Noted(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            seen.append((found.dtype, found.numel()))
            return found

    with Noted():
        y = multiply.linear_like(halves, w, near)
    sizes = [n for dtype, n in seen if dtype == torch.bfloat16]
    assert y.dtype == torch.bfloat16 and {dtype for dtype, _ in seen if dtype.is_floating_point} == {torch.bfloat16}
    assert max(sizes) <= (7 * 512 if name == "BF16" else 512 * -(-7 // slabs))
    rows = torch.from_numpy(tensor.dequantize()).bfloat16().double()
    truth = halves.double() @ rows.T + near.double()
    assert ((y.double() - truth).abs() <= truth.abs() / 256 + 1e-6).all()  # one rounding


@pytest.mark.parametrize("tokens, dtype", [(1, "bfloat16"), (40, "bfloat16"), (140, "float16"), (140, "float32")])
def test_results_are_in_the_dtype_of_x(tokens, dtype):
    tensor, x, bias = weight("Q5_K", 5, 256), floats(tokens, 256), floats(5)
    w = bind(tensor, "fast", "cpu")
    y = multiply.linear_like(array(x).to(getattr(torch, dtype)), w, array(bias))
    assert y.dtype == getattr(torch, dtype)
    assert_close(y.float(), reference.linear(x, tensor, bias), x, tensor, "fast")


@pytest.mark.parametrize("accuracy", BOUNDS)
@pytest.mark.parametrize("tokens", [1, 9, 140])
@pytest.mark.parametrize("name", ["Q8_0", "F16"])
def test_biases_may_be_halves(name, accuracy, tokens):
    """As those of a model in bfloat16, whatever its products are computed in."""
    tensor, x, bias = weight(name, 5, 256), floats(tokens, 256), array(floats(5)).bfloat16()
    y = multiply.linear(array(x), bind(tensor, accuracy, "cpu"), bias)
    assert y.dtype == torch.float32
    assert_close(y, reference.linear(x, tensor, bias.float().numpy()), x, tensor, accuracy)


@pytest.mark.parametrize("tokens, n", [(1, 1), (3, 8)])
@pytest.mark.parametrize("accuracy", ["fast", "exact"])
def test_parts_of_the_columns_are_added_up(tokens, n, accuracy):
    """One part of 2 blocks, or 8 of which the last have nothing but padding."""
    tensor, x, bias = weight("Q8_0", 5, 32 * 34), floats(tokens, 32 * 34), floats(5)
    w = bind(tensor, accuracy, "cpu")
    shape = products.TileShape(64, 16, 4, n)
    y = products.tile_product(array(x), w, array(bias), shape=shape)
    assert_close(y, reference.linear(x, tensor, bias), x, tensor, accuracy)
    assert products.tile_shape(w, tokens).parts == 2


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("accuracy", BOUNDS)
@pytest.mark.parametrize("tokens, size", [(1, 1e6), (9, 1e-6)])
def test_plain_floats(name, accuracy, tokens, size):
    """Also where x is more than halves can hold, or less."""
    tensor, x = weight(name, 5, 24), size * floats(tokens, 24)
    y = multiply.linear(array(x), bind(tensor, accuracy, "cpu")) / size
    assert_close(y, reference.linear(x, tensor) / np.float32(size), x / size, tensor, accuracy)


def test_other_floats_and_strides_are_taken():
    tensor, x = weight("Q8_0", 5, 64), floats(3, 128)
    w = bind(tensor, "fast", "cpu")
    whole = multiply.linear(array(np.ascontiguousarray(x[:, :64])), w)
    assert torch.equal(multiply.linear(array(x)[:, :64], w), whole)
    assert torch.equal(multiply.linear(array(np.asfortranarray(x[:, :64])), w), whole)
    halves = multiply.linear(array(x[:, :64]).to(torch.bfloat16), w)
    assert_close(halves, whole.numpy(), x[:, :64], tensor, "fast")


def test_what_is_no_number_stays_in_its_row():
    tensor, x = weight("Q4_0", 5, 64), floats(3, 64)
    x[1, 40] = np.nan
    y = multiply.linear(array(x), bind(tensor, "fast", "cpu"))
    assert torch.isnan(y[1]).all()
    assert torch.isfinite(y[[0, 2]]).all()


def test_a_row_of_zeros_gives_zeros():
    x = np.zeros((2, 64), np.float32)
    y = multiply.linear(array(x), bind(weight("Q4_1", 3, 64), "fast", "cpu"))
    assert torch.equal(y, torch.zeros(2, 3))


@pytest.mark.parametrize("planes, bound", [(1, 1 / 127), (2, 1 / 127 / 127)])
def test_packing(planes, bound):
    x = floats(3, 96)
    p = products.pack(array(x), planes, 4)
    codes = p.codes.view(planes, 4, 3, 32)[:, :3].numpy().astype(np.float64)
    stands_for = codes * p.scales.view(planes, 4, 3, 1)[:, :3].numpy()
    most = np.abs(x.reshape(3, 3, 32)).max(-1)[..., None]
    assert (np.abs(stands_for.sum(0) - x.reshape(3, 3, 32)) <= bound * most).all()
    sums = p.sums.view(planes, 4, 6)[:, :3].numpy()
    np.testing.assert_allclose(sums, stands_for.reshape(planes, 3, 6, 16).sum(-1), rtol=1e-5, atol=1e-5)


def test_what_is_packed_is_not_packed_again_unless_it_was_changed():
    x = array(floats(2, 64))
    w = bind(weight("Q8_0", 3, 64), "fast", "cpu")
    other = products.pack(array(floats(2, 64, seed=1)), 1)
    truth, of_other = multiply.linear(x, w), multiply.linear(array(floats(2, 64, seed=1)), w)
    x.packed = replace(other, version=products.version(x))
    assert torch.equal(multiply.linear(x, w), of_other)
    x *= 2
    torch.testing.assert_close(multiply.linear(x, w), 2 * truth)


def test_several_weights_of_one_input_are_what_each_alone_is():
    tensors = [weight("Q4_K", 3, 256), weight("F32", 2, 256), weight("Q6_K", 1, 256)]
    ws = [bind(t, "high", "cpu") for t in tensors]
    x, bias = array(floats(2, 256)), array(floats(2))
    for y, w, b in zip(multiply.linears(x, ws, [None, bias, None]), ws, (None, bias, None), strict=True):
        assert torch.equal(y, multiply.linear(x, w, b))
    assert multiply.linears(x, [], []) == []


@pytest.mark.parametrize("act", reference.ACTIVATIONS)
@pytest.mark.parametrize("tokens, names", [(1, ("Q4_0", "Q4_0")), (3, ("Q4_0", "Q8_0")), (10, ("Q4_0", "Q4_0"))])
def test_gated(act, tokens, names):
    gate, up = (weight(name, 5, 64, seed=i) for i, name in enumerate(names))
    x, biases = floats(tokens, 64), (floats(5, seed=3), floats(5, seed=4))
    y = multiply.gated(array(x), *(bind(t, "exact", "cpu") for t in (gate, up)), act, *map(array, biases))
    np.testing.assert_allclose(y.numpy(), reference.gated(x, gate, up, act, *biases), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["Q5_1", "F16"])
@pytest.mark.parametrize("accuracy, tokens", [("exact", 1), ("exact", 3), ("exact", 10), ("high", 3), ("exact", 0)])
def test_per_head(name, accuracy, tokens):
    tensor, x = weight(name, 3, 5, 64), floats(tokens, 3, 64)
    y = multiply.per_head(array(x), bind(tensor, accuracy, "cpu")).numpy()
    truth = reference.per_head(x, tensor)
    assert y.shape == truth.shape
    np.testing.assert_allclose(
        y, truth, rtol=1e-3, atol=(5e-3 if name == "F16" else 1e-4) * np.abs(truth).max(initial=0)
    )


@pytest.mark.parametrize("name", [*TYPES, "F16", "F32"])
def test_embedding_has_the_bits_of_decoding(name):
    tensor = weight(name, 6, 3 * max(BY_NAME[name].block_size, 16))
    tokens = np.array([5, 0, 3, 3], np.int32)
    y = multiply.embedding(array(tokens), bind(tensor, "fast", "cpu"))
    np.testing.assert_array_equal(y.numpy(), reference.embedding(tokens, tensor))


@pytest.mark.parametrize("name", ["Q8_0", "F32"])
def test_ids_outside_the_vocabulary_give_no_numbers(name):
    tokens = torch.tensor([1, -1, 6, 2**31 - 1], dtype=torch.int32)
    y = multiply.embedding(tokens, bind(weight(name, 6, 64), "fast", "cpu"))
    assert torch.isnan(y).all(1).tolist() == [False, True, True, True]
    with pytest.raises(ConfigError, match=r"int32; found torch\.int64"):
        multiply.embedding(tokens.long(), bind(weight(name, 6, 64), "fast", "cpu"))


def test_what_does_not_fit_is_refused():
    w = bind(weight("Q8_0", 4, 64), "fast", "cpu")
    x = torch.ones(2, 64)
    for call, message in (
        (lambda: multiply.linear(torch.ones(2, 63), w), r"x is torch.float32 \[2, 63\]; blk.0.w, \[4, 64\], expects floats \[any, 64\]"),
        (lambda: multiply.linear(torch.ones(64), w), r"\[64\]; blk.0.w"),
        (lambda: multiply.linear(x.int(), w), "torch.int32"),
        (lambda: multiply.linear(x, w, torch.ones(5)), r"bias is \[5\]; expected \[4\]"),
        (lambda: multiply.linear(x.to("meta"), w), "x is on meta; blk.0.w is on cpu"),
        (lambda: multiply.linear(x.numpy(), w), "found ndarray, Weight"),
        (lambda: multiply.linear(x, None), "found Tensor, NoneType"),
        (lambda: multiply.linears(x, [w, w], [None]), "2 weights, but 1 biases"),
        (lambda: multiply.gated(x, w, w, "relu"), "act='relu'; expected one of silu"),
        (lambda: multiply.gated(x, w, bind(weight("Q8_0", 3, 64), "fast", "cpu")), "expected equal shapes"),
        (lambda: multiply.per_head(x[:, None], bind(weight("Q8_0", 2, 4, 64), "fast", "cpu")), r"expects \[any, 2, 64\]"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            call()
