"""Attention over pages against the twin in float64."""

import itertools

import numpy as np
import pytest

from qtransformers.errors import ConfigError
from qtransformers.kernels import cpu, reference

EPS = np.finfo(np.float32).eps


class Case:
    """Random queries, keys and values of several sequences over scattered pages, `past` tokens of each stored before."""

    def __init__(
        self,
        lengths,
        past,
        heads,
        kv_heads,
        d,
        dv,
        page=16,
        dtype=np.float32,
        window=0,
        scale=None,
        seed=0,
        softcap=0.0,
        sinks=None,
        causal=True,
    ):
        rng = np.random.default_rng(seed)
        total = np.add(past, lengths)
        used = [-(-int(n) // page) for n in total]
        numbers = rng.permutation(sum(used) + 3)
        T, wide = sum(lengths), (3 * np.eye(1, d)[0] + 1).astype(np.float32)  # some scores large, most small
        self.q = rng.standard_normal((T, heads, d), np.float32) * wide
        self.k = rng.standard_normal((T, kv_heads, d), np.float32)
        self.v = rng.standard_normal((T, kv_heads, dv), np.float32)
        # What nobody stored is NaN: reading it would show.
        self.k_pages = np.full((len(numbers), kv_heads, page, d), np.nan, dtype)
        self.v_pages = np.full((len(numbers), kv_heads, page, dv), np.nan, dtype)
        self.tables = np.full((len(lengths), max(used) + 1), -1, np.int32)
        for s, n in enumerate(used):
            self.tables[s, :n], numbers = numbers[:n], numbers[n:]
            for t in range(past[s]):
                at = self.tables[s, t // page], slice(None), t % page
                self.k_pages[at], self.v_pages[at] = (
                    rng.standard_normal((kv_heads, d)),
                    rng.standard_normal((kv_heads, dv)),
                )
        self.positions = np.concatenate([np.arange(p, p + n) for p, n in zip(past, lengths, strict=True)]).astype(
            np.int32
        )
        self.starts = np.cumsum([0, *lengths]).astype(np.int32)
        self.scale, self.window, self.softcap, self.causal = scale or d**-0.5, window, softcap, causal
        self.sinks = None if sinks is None else (rng.standard_normal(heads) * sinks).astype(np.float32)

    def run(self, attention, k_pages, v_pages):
        return attention(
            self.q, self.k, self.v, k_pages, v_pages, self.positions, self.starts, self.tables, self.scale, self.window,
            self.softcap, self.sinks, self.causal,
        )  # fmt: skip

    def fast(self, isa="", threads=1):
        k_pages, v_pages = self.k_pages.copy(), self.v_pages.copy()
        with cpu.Pool(threads, isa):
            return self.run(cpu.attention, k_pages, v_pages), k_pages, v_pages

    def check(self, isa, tolerance=8 * EPS):
        k_pages, v_pages = self.k_pages.copy(), self.v_pages.copy()
        truth = self.run(reference.attention, k_pages, v_pages)
        y, *pages = self.fast(isa)
        assert y.dtype == np.float32
        assert y.shape == truth.shape
        assert np.isfinite(truth).all()
        assert np.abs(y - truth).max() <= tolerance * max(1, np.abs(truth).max())
        np.testing.assert_array_equal(pages[0], k_pages)
        np.testing.assert_array_equal(pages[1], v_pages)
        again, *_ = self.fast(isa, threads=3)
        np.testing.assert_array_equal(again, y)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    "heads, kv_heads, d, dv",
    [(1, 1, 1, 1), (4, 4, 64, 64), (8, 2, 64, 64), (6, 2, 20, 23), (5, 1, 13, 7), (3, 3, 128, 128), (40, 1, 33, 48), (2, 1, 192, 128), (14, 2, 80, 80)],
)  # fmt: skip
def test_heads(heads, kv_heads, d, dv, dtype, isa):
    Case([21, 1, 3], [0, 50, 17], heads, kv_heads, d, dv, dtype=dtype).check(isa)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("lengths, past", [([1], [0]), ([1], [255]), ([1], [256]), ([300], [0]), ([70], [3]), ([1, 1, 1], [0, 511, 63]), ([65, 1], [64, 5])])  # fmt: skip
def test_lengths(lengths, past, dtype, isa):
    Case(lengths, past, 4, 2, 32, 32, page=256, dtype=dtype).check(isa)


@pytest.mark.parametrize("window", [1, 2, 16, 63, 64, 65, 200, 1000])
def test_window(window, isa):
    Case([90, 1, 2], [40, 130, 300], 4, 2, 24, 24, window=window).check(isa)


@pytest.mark.parametrize("softcap", [1e-3, 0.5, 2.0, 50.0, 1e6])
@pytest.mark.parametrize("scale", [1e-3, 0.2, 30.0])
def test_softcap(softcap, scale, isa):
    Case([70, 1, 2], [0, 40, 100], 4, 2, 24, 24, scale=scale, softcap=softcap).check(isa, tolerance=max(8 * EPS, scale * 1e-6))  # fmt: skip


@pytest.mark.parametrize("sinks", [0, 1, 30, 1e4])
def test_sinks(sinks, isa):
    Case([70, 1, 2, 1], [0, 40, 100, 3000], 4, 2, 24, 24, page=256, sinks=sinks).check(isa)


def test_a_sink_takes_its_share(isa):
    """With equal scores of 0 and a sink of log(n), half of the attention goes nowhere."""
    case = Case([4], [0], 2, 1, 8, 8)
    case.q[:], case.v[:] = 0, 1
    case.sinks = np.log(np.array([4, 1], np.float32))
    y = case.fast(isa)[0].reshape(4, 2, 8)
    np.testing.assert_allclose(y[:, 0, 0], [1 / 5, 2 / 6, 3 / 7, 4 / 8], rtol=1e-6)
    np.testing.assert_allclose(y[:, 1, 0], [1 / 2, 2 / 3, 3 / 4, 4 / 5], rtol=1e-6)


@pytest.mark.parametrize("window", [0, 1, 2, 7, 64, 500])
def test_both_directions(window, isa):
    Case([130, 1, 33], [0, 20, 50], 4, 2, 24, 20, window=window, causal=False).check(isa)


def test_all_at_once(isa):
    Case([130, 1, 33], [0, 1500, 50], 6, 2, 24, 20, page=64, dtype=np.float16, window=100, softcap=5.0, sinks=2).check(
        isa
    )


@pytest.mark.parametrize("page", [1, 3, 7, 64, 100])
def test_page_sizes(page, isa):
    Case([30, 1], [50, 77], 2, 1, 16, 16, page=page).check(isa)


@pytest.mark.parametrize("lengths, past", [([1], [1023]), ([1], [1024]), ([2, 1], [2047, 3000]), ([1100], [0]), ([40], [1000])])  # fmt: skip
def test_long_contexts_are_summed_in_segments(lengths, past, isa):
    Case(lengths, past, 2, 1, 16, 16, page=256, dtype=np.float16).check(isa)


@pytest.mark.parametrize("window", [0, 50])
def test_a_sequence_is_the_same_in_any_chunks(window, isa):
    whole = Case([1100], [0], 6, 2, 24, 20, page=64, window=window)
    truth, k_pages, v_pages = whole.fast(isa, threads=2)
    for cuts in ([0, 1, 2, 3, 65, 1000, 1099, 1100], [0, 512, 1100]):
        keys, values = whole.k_pages.copy(), whole.v_pages.copy()
        for first, last in itertools.pairwise(cuts):
            rows = slice(first, last)
            with cpu.Pool(2, isa):
                y = cpu.attention(
                    whole.q[rows], whole.k[rows], whole.v[rows], keys, values, whole.positions[rows],
                    np.array([0, last - first], np.int32), whole.tables, whole.scale, window,
                )  # fmt: skip
            np.testing.assert_array_equal(y, truth[rows])
        np.testing.assert_array_equal(keys, k_pages)
        np.testing.assert_array_equal(values, v_pages)


def test_pages_before_the_window_may_be_gone(isa):
    case = Case([3], [100], 2, 2, 16, 16, page=16, window=20)
    truth, *_ = case.fast(isa)
    case.tables[0, :5] = -1  # the first query sees positions 81 to 100
    np.testing.assert_array_equal(case.fast(isa)[0], truth)
    case.tables[0, 5] = -1
    with pytest.raises(ConfigError, match="page 5 is number -1"):
        case.fast(isa)


def test_sharp_and_flat_softmax(isa):
    Case([70], [10], 2, 1, 16, 16, scale=100.0).check(
        isa, tolerance=2e-4
    )  # scores in the thousands carry absolute errors
    Case([70], [10], 2, 1, 16, 16, scale=1e-30).check(isa)
    huge = Case([70], [10], 2, 1, 16, 16)
    huge.v *= np.float32(1e37)
    huge.check(isa)


def test_what_comes_later_cannot_be_felt(isa):
    """NaN and infinities in later tokens leave earlier ones as they were, to the bit."""
    case = Case([80], [5], 4, 2, 16, 16)
    truth, *_ = case.fast(isa)
    for bad in (np.nan, np.inf):
        case.k[50], case.v[50] = bad, bad
        y, *_ = case.fast(isa)
        np.testing.assert_array_equal(y[:50], truth[:50])
        assert np.isnan(y[50:]).all()


def test_nan_in_a_query_stays_there(isa):
    case = Case([40], [5], 4, 2, 16, 16)
    truth, *_ = case.fast(isa)
    case.q[7, 2, 3] = np.nan
    y = case.fast(isa)[0].reshape(40, 4, 16)
    assert np.isnan(y[7, 2]).all()
    y[7, 2] = truth.reshape(40, 4, 16)[7, 2]
    np.testing.assert_array_equal(y.reshape(40, -1), truth)


def test_halves_round_as_numpy_rounds(isa):
    """All sorts of floats on their way into an f16 page: ties, subnormals, overflow, NaN."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 40_000, np.uint64).astype(np.uint32)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    halves = halves[np.isfinite(halves)]
    ties = (halves[:-1] + halves[1:]) / 2
    bits = np.where(np.isnan(bits.view(np.float32)), 0, bits)  # NaN is NaN, whatever its payload
    values = np.concatenate([bits.astype(np.uint32).view(np.float32), halves, ties, np.nextafter(ties, 9), np.nextafter(ties, -9), [np.inf, -np.inf, np.nan, 65519.996, 65520]])  # fmt: skip
    values = np.resize(values.astype(np.float32), (-(-len(values) // 33), 1, 33))
    n = len(values)
    pages, ones = np.zeros((1, 1, n, 33), np.float16), np.zeros((1, 1, n, 33), np.float16)
    with cpu.Pool(1, isa):
        starts = np.array([0, n], np.int32)
        cpu.attention(np.zeros_like(values), values, np.zeros_like(values), pages, ones, np.arange(n, dtype=np.int32), starts, np.zeros((1, 1), np.int32), 1.0)  # fmt: skip
    with np.errstate(over="ignore", invalid="ignore"):
        truth = values[:, 0].astype(np.float16)
    np.testing.assert_array_equal(pages[0, 0], truth)


def test_no_sequences():
    case = Case([1], [0], 2, 1, 8, 8)
    case.q, case.k, case.v = case.q[:0], case.k[:0], case.v[:0]
    case.positions, case.starts, case.tables = case.positions[:0], case.starts[:1], case.tables[:0]
    assert case.fast()[0].shape == (0, 16)


def test_empty_sequences_between_others(isa):
    case = Case([5, 6], [0, 3], 2, 1, 8, 8)
    truth, *_ = case.fast(isa)
    case.starts = np.array([0, 0, 5, 5, 11, 11], np.int32)
    none = np.full((1, case.tables.shape[1]), -1, np.int32)
    case.tables = np.concatenate([none, case.tables[:1], none, case.tables[1:], none])
    np.testing.assert_array_equal(case.fast(isa)[0], truth)


def changed(**values):
    case = Case([3, 2], [4, 0], 4, 2, 8, 8)
    for name, change in values.items():
        setattr(case, name, change(getattr(case, name)))
    return case


def put(at, value):
    def change(x):
        x = x.copy()
        x[at] = value
        return x

    return change


@pytest.mark.parametrize(
    "case, message",
    [
        (changed(q=lambda x: x[:, :3]), "q has 3 heads; expected a multiple of the 2 of k"),
        (changed(q=lambda x: x[:, :0]), "q has 0 heads; expected a multiple of the 2 of k"),
        (changed(q=lambda x: x[..., :7]), r"k is \[5, 2, 8\]; expected \[5, any, 7\]"),
        (changed(k=lambda x: x[:4]), r"k is \[4, 2, 8\]; expected \[5, any, 8\]"),
        (changed(k=lambda x: x[:, :0], v=lambda x: x[:, :0], k_pages=lambda x: x[:, :0].copy(), v_pages=lambda x: x[:, :0].copy()), "the 0 of k"),
        (changed(v=lambda x: x[:, :1]), r"v is \[5, 1, 8\]"),
        (changed(k_pages=lambda x: x[..., :4].copy()), r"k_pages is .*; expected \[any, 2, any, 8\]"),
        (changed(v_pages=lambda x: x[1:].copy()), "v_pages is"),
        (changed(v_pages=lambda x: x.astype(np.float16)), "different types"),
        (changed(k_pages=lambda x: x.astype(np.float64), v_pages=lambda x: x.astype(np.float64)), "neither float32 nor float16"),
        (changed(positions=lambda x: x[:3]), r"positions is \[3\]; expected \[5\]"),
        (changed(positions=lambda x: x[::-1].copy()), "positions must rise"),
        (changed(positions=put(0, -1)), "positions must rise from 0 or more, found -1"),
        (changed(positions=put(2, 10_000)), "sequence 0: position 10000 lies beyond its 2 pages"),
        (changed(positions=put(4, 2**31 - 1)), "position 2147483647 lies beyond"),
        (changed(positions=lambda x: x.astype(np.int64)), "found .* int64"),
        (changed(starts=put(0, 1)), "starts runs from 1"),
        (changed(starts=put(2, 4)), "starts runs from 0 to 4; expected 0 to 5"),
        (changed(starts=put(1, 9)), "starts falls from 9 to 5"),
        (changed(starts=put(1, -9)), "starts falls from 0 to -9"),
        (changed(starts=lambda x: x[:0], tables=lambda x: x[:0]), "starts runs nowhere; expected 0 to 5"),
        (changed(tables=lambda x: x[:1]), r"page_tables is \[1, 2\]; expected \[2, any\]"),
        (changed(tables=put((0, 0), -1)), "sequence 0: page 0 is number -1; the cache has pages 0 to 4"),
        (changed(tables=put((1, 0), 5)), "sequence 1: page 0 is number 5"),
        (changed(tables=lambda x: x[:, :0]), "lies beyond its 0 pages"),
        (changed(window=lambda x: -1), "window is -1"),
        (changed(scale=lambda x: "big"), "found .*'big'"),
        (changed(softcap=lambda x: -1.0), "softcap is -1"),
        (changed(softcap=lambda x: np.nan), "softcap is nan"),
        (changed(softcap=lambda x: np.inf), "softcap is inf"),
        (changed(sinks=lambda x: np.zeros(3, np.float32)), r"sinks is \[3\]; expected \[4\]"),
        (changed(sinks=lambda x: "all"), "found .*'all'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(case, message):
    with pytest.raises(ConfigError, match=message):
        case.fast()


def test_pages_are_written_in_place_or_refused():
    case = Case([3], [4], 4, 2, 8, 8)
    read_only = case.k_pages.copy()
    read_only.flags.writeable = False
    with pytest.raises(ConfigError, match="read-only float32"):
        case.run(cpu.attention, read_only, case.v_pages)
    with pytest.raises(ConfigError, match="non-contiguous"):
        case.run(cpu.attention, case.k_pages.repeat(2, 0)[::2], case.v_pages)
    with pytest.raises(ConfigError, match="k_pages"):
        case.run(cpu.attention, case.k_pages[0], case.v_pages)
