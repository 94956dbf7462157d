"""Products with stored weights and gathered rows, against the twins in float64."""

import ctypes
import mmap
import threading

import numpy as np
import pytest

from blocks import edge_blocks, random_blocks
from qtransformers.errors import ConfigError, UnsupportedError
from qtransformers.kernels import cpu, reference
from qtransformers.kernels.table import why_not
from qtransformers.tensor import QTensor
from qtransformers.types import BY_NAME, TYPES

WEIGHTS = [t for t in TYPES.values() if why_not("linear", t) is None]
by_name = pytest.mark.parametrize("kind", WEIGHTS, ids=lambda t: t.name)
EPS = np.finfo(np.float32).eps


def weight(kind, rows, cols, seed=0, data=None):
    n = rows * cols // kind.block_size
    data = random_blocks(kind, n, seed) if data is None else data
    return QTensor("blk.0.ffn_up.weight", kind, (rows, cols), data, "a.gguf")


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def assert_close(y, x, tensor, bias=None):
    """Within a few units of the sum of the products' sizes: what summation in float32 may lose."""
    w = tensor.dequantize().astype(np.float64)
    size = np.abs(x.astype(np.float64)) @ np.abs(w).T + (0 if bias is None else np.abs(bias))
    assert y.dtype == np.float32
    assert y.shape == (len(x), len(w))
    assert (np.abs(y - reference.linear(x, tensor, bias)) <= 4 * EPS * size + 1e-45).all()


def test_every_float_type_is_a_weight():
    assert {t.name for t in TYPES.values()} - {t.name for t in WEIGHTS} == {"I8", "I16", "I32", "I64", "Q8_1", "Q8_K"}


@by_name
@pytest.mark.parametrize("rows, blocks, tokens", [(1, 1, 1), (7, 3, 1), (37, 2, 5), (5, 5, 8), (67, 1, 19)])
def test_every_type(kind, rows, blocks, tokens, isa):
    cols = 256 * blocks
    tensor, x, bias = weight(kind, rows, cols), floats(tokens, cols), floats(rows)
    with cpu.Pool(2, isa):
        assert_close(cpu.linear(x, cpu.bind(tensor), bias), x, tensor, bias)
        assert_close(cpu.linear(x, cpu.bind(tensor)), x, tensor)


@by_name
def test_extreme_blocks_times_one_give_what_decoding_gives(kind, isa):
    blocks = edge_blocks(kind)
    cols = 4 * kind.block_size if kind.is_quantized else 400
    rows = blocks.size // kind.row_bytes(cols)
    tensor = weight(kind, rows, cols, data=blocks[: rows * kind.row_bytes(cols)])
    truth = tensor.dequantize()
    finite = np.isfinite(truth).all(1)
    assert finite.sum() >= rows // 8, "too few rows left to compare"
    with cpu.Pool(1, isa):
        y = cpu.linear(np.eye(cols, dtype=np.float32), cpu.bind(tensor)).T
        one = cpu.linear(np.eye(cols, dtype=np.float32)[:1], cpu.bind(tensor)).T
    np.testing.assert_array_equal(y[finite], truth[finite])
    np.testing.assert_array_equal(one[finite], truth[finite, :1])


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "F64"])
@pytest.mark.parametrize("cols", [1, 13, 24, 1023, 1025, 2056])
def test_odd_widths(name, cols, isa):
    tensor, x = weight(BY_NAME[name], 9, cols), floats(9, cols)
    with cpu.Pool(1, isa):
        y = cpu.linear(x, cpu.bind(tensor))
        assert_close(y, x, tensor)
        for n in (1, 3):
            np.testing.assert_array_equal(cpu.linear(x[:n], cpu.bind(tensor)), y[:n])


@pytest.mark.parametrize("cols", [1024, 1280, 4096])
def test_deep_sums(cols, isa):
    tensor, x = weight(BY_NAME["Q4_K"], 33, cols), floats(7, cols)
    with cpu.Pool(2, isa):
        assert_close(cpu.linear(x, cpu.bind(tensor)), x, tensor)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ2_XS"])
def test_results_depend_neither_on_threads_nor_on_the_batch(name, isa):
    tensor, x = weight(BY_NAME[name], 301, 1280), floats(61, 1280)
    w = cpu.bind(tensor)
    with cpu.Pool(1, isa):
        whole = cpu.linear(x, w)
    for threads in (2, 3, 16):
        with cpu.Pool(threads, isa):
            np.testing.assert_array_equal(cpu.linear(x, w), whole)
            for first, last in ((0, 1), (1, 3), (5, 8), (3, 10), (60, 61), (10, 61)):
                np.testing.assert_array_equal(cpu.linear(x[first:last], w), whole[first:last])


def test_tokens_are_shared_out_where_rows_are_few():
    tensor, x = weight(BY_NAME["Q8_0"], 3, 2048), floats(333, 2048)
    with cpu.Pool(4):
        assert_close(cpu.linear(x, cpu.bind(tensor)), x, tensor)


@pytest.mark.parametrize("rows, cols, tokens", [(4, 256, 0), (0, 256, 3), (4, 0, 3), (0, 0, 0)])
def test_nothing(rows, cols, tokens, isa):
    w = cpu.bind(weight(BY_NAME["Q4_K"], rows, cols))
    with cpu.Pool(2, isa):
        y = cpu.linear(np.ones((tokens, cols), np.float32), w, np.full(rows, 3, np.float32))
    np.testing.assert_array_equal(y, np.full((tokens, rows), 3, np.float32))


def test_nan_and_infinity_stay_in_their_rows(isa):
    tensor, x = weight(BY_NAME["F32"], 6, 40), floats(9, 40)
    x[2, 39], x[5, 0], x[7, 11] = np.nan, np.inf, 3e38
    with np.errstate(invalid="ignore", over="ignore"):
        truth = reference.linear(x, tensor)
    with cpu.Pool(1, isa):
        y = cpu.linear(x, cpu.bind(tensor))
    np.testing.assert_array_equal(np.isnan(y), np.isnan(truth))
    np.testing.assert_array_equal(y[5], truth[5])
    assert np.isfinite(y[[0, 1, 3, 4, 6, 8]]).all()


def at_the_end_of_memory(*arrays):
    """Copies that end where the process's memory ends: one byte more would be fatal."""
    libc, areas = ctypes.CDLL(None, use_errno=True), []
    for data in arrays:
        room = -(-data.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        view = np.frombuffer(mmap.mmap(-1, room + mmap.PAGESIZE), np.uint8)
        guard = ctypes.c_void_p(view.ctypes.data + room)
        assert libc.mprotect(guard, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        areas.append(view[room - data.nbytes : room].view(data.dtype).reshape(data.shape))
        areas[-1][...] = data
    return areas


@by_name
@pytest.mark.parametrize("rows, blocks", [(1, 1), (3, 3), (1, 9), (5, 5)])
def test_nothing_is_read_beyond_the_tensor_and_its_input(kind, rows, blocks, isa):
    cols = 256 * blocks if kind.block_size == 1 else kind.block_size * blocks
    cols -= kind.block_size == 1 and blocks  # odd
    tensor, x = weight(kind, rows, cols), floats(33, cols)
    for tokens in (*range(1, 10), 33):
        data, edge = at_the_end_of_memory(tensor.data, x[:tokens])
        last = weight(kind, rows, cols, data=data)
        with cpu.Pool(1, isa):
            assert_close(cpu.linear(edge, cpu.bind(last)), x[:tokens], tensor)
            for accuracy in ("fast", "high"):
                inside = cpu.linear(x[:tokens].copy(), cpu.bind(tensor, accuracy))
                np.testing.assert_array_equal(cpu.linear(edge, cpu.bind(last, accuracy)), inside)
            cpu.embedding(np.array([rows - 1], np.int32), cpu.bind(last))


@pytest.mark.parametrize("name", ["F32", "F16", "F64", "Q4_K", "Q6_K", "Q8_0"])
def test_tensors_may_start_anywhere(name, isa):
    data = random_blocks(BY_NAME[name], 512 * 6 // BY_NAME[name].block_size)
    shifted = np.empty(data.size + 1, np.uint8)
    shifted[1:] = data
    tensor, x = weight(BY_NAME[name], 6, 512, data=shifted[1:]), floats(3, 512)
    with cpu.Pool(1, isa):
        assert_close(cpu.linear(x, cpu.bind(tensor)), x, tensor)


def test_a_weight_names_itself_and_keeps_its_bytes():
    w = cpu.bind(weight(BY_NAME["Q8_0"], 4, 64))
    assert (w.name, w.type, w.shape) == ("blk.0.ffn_up.weight", BY_NAME["Q8_0"], (4, 64))
    assert repr(w) == "Weight(blk.0.ffn_up.weight, Q8_0, [4, 64])"
    x = np.ones((1, 64), np.float32)
    np.testing.assert_array_equal(cpu.linear(x, w), cpu.linear(x, cpu.bind(weight(BY_NAME["Q8_0"], 4, 64))))


def test_other_real_arrays_are_converted():
    tensor, x = weight(BY_NAME["Q8_0"], 4, 64), floats(6, 64)
    w = cpu.bind(tensor)
    np.testing.assert_array_equal(cpu.linear(x.astype(np.float64), w), cpu.linear(x, w))
    np.testing.assert_array_equal(cpu.linear(np.asfortranarray(x), w), cpu.linear(x, w))
    np.testing.assert_array_equal(cpu.linear(x[::2], w), cpu.linear(np.ascontiguousarray(x[::2]), w))


@pytest.mark.parametrize(
    "x, bias, message",
    [
        (np.ones((2, 63), np.float32), None, r"x is \[2, 63\]; blk.0.ffn_up.weight, \[4, 64\], expects \[any, 64\]"),
        (np.ones(64, np.float32), None, r"x is \[64\]"),
        (np.ones((2, 64), np.float32), np.ones(5, np.float32), r"bias is \[5\]; expected \[4\]"),
        ([[1.0] * 64], None, r"linear expects x \[T, in\] float32.*found list, Weight"),
        (None, None, "found None"),
        (np.full((2, 64), "a"), None, r"found <U1 \[2, 64\]"),
        (np.ones((2, 64), np.float32), "bias", "found .*'bias'"),
    ],
)
def test_what_does_not_fit_is_refused(x, bias, message):
    with pytest.raises(ConfigError, match=message):
        cpu.linear(x, cpu.bind(weight(BY_NAME["Q8_0"], 4, 64)), bias)


def test_what_cannot_be_bound():
    with pytest.raises(UnsupportedError, match=r"a.gguf: blk.0.ffn_up.weight: I32 holds whole numbers"):
        cpu.bind(weight(BY_NAME["I32"], 2, 4))
    for shape in ((8,), (2, 2, 2, 1)):
        with pytest.raises(ConfigError, match=r"a.gguf: x is \[.*\]; expected a matrix"):
            cpu.bind(QTensor("x", BY_NAME["F32"], shape, np.zeros(32, np.uint8), "a.gguf"))
    with pytest.raises(ConfigError, match="has 68 bytes; expected 2 rows of 68"):
        cpu.bind(weight(BY_NAME["Q8_0"], 2, 64, data=np.zeros(68, np.uint8)))
    with pytest.raises(ConfigError, match="no multiple of the block"):
        cpu.bind(weight(BY_NAME["Q8_0"], 2, 33, data=np.zeros(68, np.uint8)))
    with pytest.raises(ConfigError, match="has 0 bytes"):
        cpu.bind(weight(BY_NAME["Q8_0"], 2**63, 64, data=np.zeros(0, np.uint8)))  # 2^63 rows of 68 bytes wrap to 0


def test_threads_may_share_a_weight():
    tensor, x = weight(BY_NAME["Q4_K"], 64, 512), floats(16, 512)
    w, results = cpu.bind(tensor), [None] * 4
    truth = cpu.linear(x, w)

    def work(i):
        with cpu.Pool(2):
            results[i] = [cpu.linear(x, w) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for result in results:
        for y in result:
            np.testing.assert_array_equal(y, truth)


@by_name
def test_embedding(kind, isa):
    tensor = weight(kind, 50, 512)
    tokens = np.array([0, 49, 7, 7, 31, *range(40)], np.int32)
    with cpu.Pool(2, isa):
        y = cpu.embedding(tokens, cpu.bind(tensor))
        assert cpu.embedding(tokens[:0], cpu.bind(tensor)).shape == (0, 512)
    np.testing.assert_array_equal(y, reference.embedding(tokens, tensor))
    np.testing.assert_array_equal(y, tensor.dequantize()[tokens])


@pytest.mark.parametrize("bad", [50, -1, 2**31 - 1, -(2**31)])
def test_embedding_refuses_ids_beyond_the_vocabulary(bad):
    with pytest.raises(ConfigError, match=f"token 1 has id {bad}; blk.0.ffn_up.weight has 50 rows"):
        cpu.embedding(np.array([0, bad], np.int32), cpu.bind(weight(BY_NAME["Q8_0"], 50, 64)))


@pytest.mark.parametrize("tokens", [np.array([0.5]), np.array([0]), np.array([[0]], np.int32), [0]])
def test_embedding_takes_32_bit_ids(tokens):
    with pytest.raises(ConfigError, match="tokens"):
        cpu.embedding(tokens, cpu.bind(weight(BY_NAME["Q8_0"], 50, 64)))


@pytest.mark.parametrize("accuracy", ["exact", "high", "fast"])
@pytest.mark.parametrize("tokens", [0, 1, 3, 9, 40])
def test_several_weights_of_one_input_are_what_each_alone_is(tokens, accuracy, isa):
    """Formats of their own, shared ones, and sizes that leave threads with little."""
    kinds = ["Q4_K", "Q6_K", "Q4_K", "F16", "IQ1_S", "F32", "Q5_K"]
    tensors = [
        weight(BY_NAME[kind], rows, 512, seed=rows)
        for kind, rows in zip(kinds, (130, 1, 7, 48, 96, 3, 49), strict=True)
    ]
    ws = [cpu.bind(t, accuracy) for t in tensors]
    biases = [floats(len(t.dequantize())) if i % 2 else None for i, t in enumerate(tensors)]
    x = floats(tokens, 512)
    with cpu.Pool(2, isa):
        ys = cpu.linears(x, ws, biases)
        for y, w, bias in zip(ys, ws, biases, strict=True):
            np.testing.assert_array_equal(y, cpu.linear(x, w, bias))
    if accuracy == "exact":
        for y, truth in zip(ys, reference.linears(x, tensors, biases), strict=True):
            np.testing.assert_allclose(y, truth, rtol=1e-4, atol=1e-4 * np.abs(truth).max(initial=0))


def test_several_weights_refuse_what_one_refuses():
    w = cpu.bind(weight(BY_NAME["Q4_0"], 5, 64))
    x = floats(2, 64)
    assert cpu.linears(x, [], []) == []
    for ws, biases, message in (
        ([w, None], [None, None], "weight 1 is None"),
        ([w, w], [None], "2 weights, but 1 biases"),
        ([w, 3], [None, None], "linears expects"),
        ([w], [floats(4)], r"bias is \[4\]; expected \[5\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            cpu.linears(x, ws, biases)
    with pytest.raises(ConfigError, match=r"x is \[2, 32\]"):
        cpu.linears(floats(2, 32), [w], [None])
