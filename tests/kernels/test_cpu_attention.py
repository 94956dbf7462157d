"""Attention over pages against the twin in float64."""

import itertools

import numpy as np
import pytest

from paged import PagedCase
from qtransformers.errors import ConfigError
from qtransformers.kernels import cpu, kv, reference

EPS = np.finfo(np.float32).eps
PAGE = kv.PAGE_TOKENS
CODECS = list(kv.CODECS)


class Case(PagedCase):
    """A case for the CPU's kernels."""

    def fast(self, isa="", threads=1):
        pages = self.pages.copy()
        with cpu.Pool(threads, isa):
            return self.run(cpu.attention, pages), pages

    def check(self, isa, tolerance=None):
        if tolerance is None:
            # integer products round what weighs values: to 15 bits of the page's largest, or 7 where values have but 4
            rounding = {0: 16 * EPS, 4: 3e-2}.get(
                len(kv.CODECS[self.codec][1].planes) and kv.CODECS[self.codec][1].bits, 2e-4
            )
            tolerance = rounding if isa == "avx512" else 16 * EPS
        expected = self.pages.copy()
        truth = self.run(reference.attention, expected)
        y, pages = self.fast(isa)
        assert y.dtype == np.float32
        assert y.shape == truth.shape
        assert np.isfinite(truth).all()
        assert np.abs(y - truth).max() <= tolerance * max(1, np.abs(truth).max())
        np.testing.assert_array_equal(pages, expected)
        again, _ = self.fast(isa, threads=3)
        np.testing.assert_array_equal(again, y)


@pytest.mark.parametrize("codec", ["f32", "f16"])
@pytest.mark.parametrize(
    "heads, kv_heads, d, dv",
    [(1, 1, 1, 1), (4, 4, 64, 64), (8, 2, 64, 64), (6, 2, 20, 23), (5, 1, 13, 7), (3, 3, 128, 128), (40, 1, 33, 48), (2, 1, 192, 128), (14, 2, 80, 80)],
)  # fmt: skip
def test_heads(heads, kv_heads, d, dv, codec, isa):
    Case([21, 1, 3], [0, 50, 17], heads, kv_heads, d, dv, codec).check(isa)


@pytest.mark.parametrize("codec", ["q8", "q6", "q4", "k8v4"])
@pytest.mark.parametrize(
    "heads, kv_heads, d, dv",
    [(1, 1, 8, 8), (2, 1, 16, 24), (4, 1, 40, 40), (3, 1, 64, 64), (5, 1, 80, 80), (6, 1, 96, 96), (7, 1, 112, 112), (8, 1, 192, 128), (40, 2, 256, 256), (2, 2, 48, 72)],
)  # fmt: skip
def test_heads_of_codes(heads, kv_heads, d, dv, codec, isa):
    Case([21, 1, 3], [0, 300, 17], heads, kv_heads, d, dv, codec).check(isa)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("lengths, past", [([1], [0]), ([1], [255]), ([1], [256]), ([300], [0]), ([70], [3]), ([1, 1, 1], [0, 511, 63]), ([65, 1], [64, 5])])  # fmt: skip
def test_lengths(lengths, past, codec, isa):
    Case(lengths, past, 4, 2, 32, 32, codec).check(isa)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("window", [1, 2, 16, 63, 64, 65, 200, 1000])
def test_window(window, codec, isa):
    Case([90, 1, 2], [40, 130, 300], 4, 2, 24, 24, codec, window=window).check(isa)


@pytest.mark.parametrize("softcap", [1e-3, 0.5, 2.0, 50.0, 1e6])
@pytest.mark.parametrize("scale", [1e-3, 0.2, 30.0])
def test_softcap(softcap, scale, isa):
    Case([70, 1, 2], [0, 40, 100], 4, 2, 24, 24, scale=scale, softcap=softcap).check(isa, tolerance=max(8 * EPS, scale * 2e-6))  # fmt: skip


@pytest.mark.parametrize("sinks", [0, 1, 30, 1e4])
def test_sinks(sinks, isa):
    Case([70, 1, 2, 1], [0, 40, 100, 3000], 4, 2, 24, 24, sinks=sinks).check(isa)


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


@pytest.mark.parametrize("codec", CODECS)
def test_all_at_once(codec, isa):
    Case([130, 1, 33], [0, 1500, 50], 6, 2, 24, 16, codec, window=100, softcap=5.0, sinks=2).check(isa)


@pytest.mark.parametrize("lengths, past", [([1], [1023]), ([1], [1024]), ([2, 1], [2047, 3000]), ([1100], [0]), ([40], [1000])])  # fmt: skip
def test_long_contexts_are_summed_in_segments(lengths, past, isa):
    Case(lengths, past, 2, 1, 16, 16, "f16").check(isa)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("window", [0, 50])
def test_a_sequence_is_the_same_in_any_chunks(window, codec, isa):
    whole = Case([1100], [0], 6, 2, 24, 16, codec, window=window)
    truth, stored = whole.fast(isa, threads=2)
    for cuts in ([0, 1, 2, 3, 65, 1000, 1099, 1100], [0, 512, 1100]):
        pages = whole.pages.copy()
        for first, last in itertools.pairwise(cuts):
            rows = slice(first, last)
            with cpu.Pool(2, isa):
                y = cpu.attention(
                    whole.q[rows], whole.k[rows], whole.v[rows], pages, codec, whole.positions[rows],
                    np.array([0, last - first], np.int32), whole.tables, whole.scale, window,
                )  # fmt: skip
            np.testing.assert_array_equal(y, truth[rows])
        np.testing.assert_array_equal(pages, stored)


def test_pages_before_the_window_may_be_gone(isa):
    case = Case([3], [531], 2, 2, 16, 16, window=20)
    truth, *_ = case.fast(isa)
    case.tables[0, :2] = -1  # the first query sees positions 512 to 531
    np.testing.assert_array_equal(case.fast(isa)[0], truth)
    case.tables[0, 2] = -1
    with pytest.raises(ConfigError, match="page 2 is number -1"):
        case.fast(isa)


def test_sharp_and_flat_softmax(isa):
    Case([70], [10], 2, 1, 16, 16, scale=100.0).check(
        isa, tolerance=2e-4
    )  # scores in the thousands carry absolute errors
    Case([70], [10], 2, 1, 16, 16, scale=1e-30).check(isa)
    huge = Case([70], [10], 2, 1, 16, 16)
    huge.v *= np.float32(1e37)
    huge.check(isa)


@pytest.mark.parametrize("codec", CODECS)
def test_what_comes_later_cannot_be_felt(codec, isa):
    """NaN and infinities in later tokens leave earlier ones as they were, to the bit."""
    case = Case([80], [5], 4, 2, 16, 16, codec)
    truth, *_ = case.fast(isa)
    for bad in (np.nan, np.inf):
        case.k[50], case.v[50] = bad, bad
        y, *_ = case.fast(isa)
        np.testing.assert_array_equal(y[:50], truth[:50])
        assert np.isnan(y[50:]).all()


@pytest.mark.parametrize("codec", CODECS)
def test_nan_in_a_query_stays_there(codec, isa):
    case = Case([40], [5], 4, 2, 16, 16, codec)
    truth, *_ = case.fast(isa)
    case.q[7, 2, 3] = np.nan
    y = case.fast(isa)[0].reshape(40, 4, 16)
    assert np.isnan(y[7, 2]).all()
    y[7, 2] = truth.reshape(40, 4, 16)[7, 2]
    np.testing.assert_array_equal(y.reshape(40, -1), truth)


@pytest.mark.parametrize("codec", ["q4", "k8v4", "q6", "q8"])
@pytest.mark.parametrize("scale", [1e-3, 0.2, 1.0])
def test_rounded_weights_are_drowned_by_rounded_values(scale, codec, isa):
    """Flat, usual, sharp: the kernel is hardly farther from attention over floats than exact sums over the same codes."""
    shape = [700], [0], 6, 2, 64, 64
    exact, coded = Case(*shape, "f32", scale=scale), Case(*shape, codec, scale=scale)
    truth = exact.run(reference.attention, exact.pages)
    ours, _ = coded.fast(isa)
    twin = coded.run(reference.attention, coded.pages)
    off, least = (np.sqrt(((y - truth)[100:] ** 2).mean()) for y in (ours, twin))
    assert off < 1.05 * least


@pytest.mark.parametrize("codec", ["q4", "q8"])
@pytest.mark.parametrize("strong", [0, 31, 63])
def test_small_weights_count_together(strong, codec, isa):
    """63 keys with a 300th of the weight of another: rounded to the nearest of 127 steps, none of theirs would be left."""
    case = Case([64], [0], 1, 1, 32, 32, codec)
    case.q[:], case.k[:], case.v[:] = 0, 0, 0
    case.v[:, 0, 0] = 1
    case.q[:, 0, 0], case.k[strong, 0, 0], case.v[strong, 0, 0] = 1, np.log(300) / case.scale, -1
    y = case.fast(isa)[0][-1]
    assert y[0] == pytest.approx((63 - 300) / 363, abs=0.03)
    assert np.abs(y[1:]).max() < 0.03


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
    pages = np.zeros((-(-n // PAGE), 1, kv.head_bytes("f16", 33, 33)), np.uint8)
    with cpu.Pool(1, isa):
        starts, table = np.array([0, n], np.int32), np.arange(len(pages), dtype=np.int32)[None]
        cpu.attention(np.zeros_like(values), values, values, pages, "f16", np.arange(n, dtype=np.int32), starts, table, 1.0)  # fmt: skip
    with np.errstate(over="ignore", invalid="ignore"):
        truth = values[:, 0].astype(np.float16)
    cut = kv.key_bytes(kv.KINDS["f16"], 33)
    for part, is_key in ((pages[:, 0, :cut], True), (pages[:, 0, cut:], False)):
        stored = kv.decode_page(part, kv.KINDS["f16"], is_key, 33).reshape(-1, 33)[:n]
        np.testing.assert_array_equal(stored, truth)


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
        (changed(k=lambda x: x[:, :0], v=lambda x: x[:, :0], pages=lambda x: x[:, :0].copy()), "the 0 of k"),
        (changed(v=lambda x: x[:, :1]), r"v is \[5, 1, 8\]"),
        (changed(q=lambda x: x[..., :0], k=lambda x: x[..., :0]), "keys have heads of 0 values"),
        (changed(v=lambda x: x[..., :0]), "values have heads of 0 values"),
        (changed(pages=lambda x: x[..., :64].copy()), r"pages is .*; expected \[any, 2, 24576\]"),
        (changed(pages=lambda x: x[:, :1].copy()), "pages is"),
        (changed(codec=lambda x: "f16"), r"pages is \[5, 2, 24576\]; expected \[any, 2, 12288\]"),
        (changed(codec=lambda x: "q8", q=lambda x: x[..., :4], k=lambda x: x[..., :4]), "keys have heads of 4 values, and a cache type of q8 needs a multiple of 8"),
        (changed(codec=lambda x: "k8v4", v=lambda x: x[..., :6]), "values have heads of 6 values, and a cache type of q4"),
        (changed(pages=lambda x: x.view(np.int8)), "found .*int8"),
        (changed(positions=lambda x: x[:3]), r"positions is \[3\]; expected \[5\]"),
        (changed(positions=lambda x: x[::-1].copy()), "sequence 0: positions must follow each other"),
        (changed(positions=put(0, -1)), "positions must follow each other from 0 or more, found -1 at its row 0"),
        (changed(positions=put(2, 90)), "sequence 0: .* found 90 after . at its row 2"),
        (changed(positions=put(1, 2**31 - 1)), "found 2147483647 after . at its row 1"),
        (changed(positions=lambda x: x + 10_000), "sequence 0: position 10006 lies beyond its 2 pages"),
        (changed(positions=lambda x: x + (2**31 - 1 - x[2])), "position 2147483647 lies beyond"),
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
    read_only = case.pages.copy()
    read_only.flags.writeable = False
    with pytest.raises(ConfigError, match="read-only uint8"):
        case.run(cpu.attention, read_only)
    with pytest.raises(ConfigError, match="non-contiguous"):
        case.run(cpu.attention, case.pages.repeat(2, 0)[::2])
    with pytest.raises(ConfigError, match="pages"):
        case.run(cpu.attention, case.pages[0])


@pytest.mark.parametrize("codec", CODECS)
def test_only_the_slots_of_new_tokens_change(codec, isa):
    """Pages may be shared, and what was stored before stays, to the bit: each bit belongs to one slot."""
    d, dv = 40, 24
    one = Case([3], [130], 2, 2, d, dv, codec)
    after = one.fast(isa)[1]
    mask = np.zeros_like(one.pages)
    page = one.tables[0, 0]
    cut = kv.key_bytes(kv.CODECS[codec][0], d)
    for at, kind, is_key, wide in ((slice(0, cut), kv.CODECS[codec][0], True, d), (slice(cut, None), kv.CODECS[codec][1], False, dv)):  # fmt: skip
        for head in mask[page]:
            head[at] = kv.slot_bits(np.arange(130, 133), kind, is_key, wide)
    np.testing.assert_array_equal(after & ~mask, one.pages & ~mask)
    assert 0 < np.unpackbits(mask).sum() <= 8 * 3 * kv.bytes_per_token(codec, 2, d, dv)
